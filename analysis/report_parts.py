"""The parts of a report that are words and numbers."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from claims import CLAIMS, NOT_RUN, judge
from report_page import Part, Verdict
from report_pictures import arms_of
from speedup import DEFINITION, speedup_grid

from mirai_bench.config.yaml_file import read_yaml
from mirai_bench.results.cost import at_equal_cost, equal_cost_notes, one_off, one_off_notes, with_one_off
from mirai_bench.results.diagnoses import Diagnoses
from mirai_bench.results.frame import MEASURED_WITH, Results
from mirai_bench.results.looks import BETTER, PILOT, SMALL, UNDECIDED, WORSE
from mirai_bench.results.notes import MISSING, as_change
from mirai_bench.results.row import Row
from mirai_bench.results.stats import CONFIDENCE, t_interval
from mirai_bench.results.table import Table, build_table
from mirai_bench.results.teachers import TEACHER
from mirai_bench.results.writers import difference, document, p_value
from mirai_bench.utils.assets import shipped
from mirai_bench.utils.hashing import file_sha256

# What is said of an arm with each verdict.
SENTENCES = {
    BETTER: "is better than {baseline}",
    WORSE: "is worse than {baseline}",
    SMALL: "differs from {baseline} by less than the smallest effect of interest",
    UNDECIDED: "is undecided: these seeds do not tell whether it is better or worse than {baseline}",
    PILOT: "has a pilot only, which decides nothing",
    TEACHER: "gets no verdict from {metric}, because its own teacher would be the judge",
}


# ---- what came out


def verdicts(results: Results, table: Table) -> Part:
    """Returns a sentence for each arm that is compared with the baseline, and how many there are of each."""
    arms = {arm.name: arm for arm in arms_of(results)}
    found = []
    for row in table.rows:
        if row.arm != table.baseline:
            word, said = said_of(table, row)
            change = row.differences.get(table.metrics[0])
            measured = "no seed of it can be compared"
            if change is not None:
                measured = f"{table.metrics[0]} {difference(change, table.metrics[0])}, {change.n} seeds"
            found.append(Verdict(arms[row.arm], word, said, measured))
    words = Counter(verdict.word for verdict in found if verdict.word)
    summary = ", ".join(f"{n} {word}" for word, n in words.items())
    text = f"{len(found)} arms are compared with {table.baseline}{f': {summary}' if summary else ''}."
    return Part("verdicts", "What came out", texts=[text], verdicts=found)


def said_of(table: Table, row: Row) -> tuple[str, str]:
    """Returns the verdict on an arm, if looks are planned, and in words what the table says of it."""
    word, _, look = (row.verdict or "").partition(" (")
    if word in SENTENCES:
        said = SENTENCES[word].format(baseline=table.baseline, metric=table.metrics[0])
        return word, f"{said}, decided at {look.rstrip(')')}" if look else said
    change = row.differences.get(table.metrics[0])
    if change is None or math.isnan(change.p):
        return "", "is not tested"
    does = "differs significantly" if change.p < 1 - CONFIDENCE else "is not shown to differ"
    return "", f"{does} from {table.baseline} (Holm-corrected p {p_value(change.p)})"


def of_claims(results: Results, diagnoses: Sequence[Diagnoses]) -> Part | None:
    """Returns the verdicts on those of the paper's claims that this sweep has tested."""
    rows = [row for claim in read_yaml(CLAIMS)["claims"] for row in judge(claim, [results], diagnoses)]
    tested = [[claim, side, text] for claim, _, _, side, text in rows if side != NOT_RUN]
    if not tested:
        return None
    note = "By this sweep alone. Of all sweeps together the verdicts may differ (analysis/claims.py)."
    grid = [["claim", "verdict", "evidence"], *tested]
    return Part("claims", "The paper's claims", grids=[grid], notes=[note])


def table_part(table: Table) -> Part:
    """Returns the table, with what has to be known to read it."""
    texts = document(table)
    return Part("table", "Table", grids=texts.grids, notes=texts.notes)


def speedups(results: Results, metric: str, timing: bool) -> Part:
    """Returns the speed-ups read off the curves."""
    grid = speedup_grid(results, metric, timing)
    return Part("speedup", "Speed-up", grids=[grid], notes=[DEFINITION])


# ---- cost


def costs(results: Results, table: Table, timing: bool) -> Part:
    """Returns what a run of each arm costs, and the table at equal FLOPs."""
    # 1. The means over the seeds, one-off costs included.
    header = ["arm", "training FLOPs", "of these for its teacher", "FLOPs ×"]
    fields = ["train_seconds", "sample_seconds", "evaluate_seconds"] if timing else []
    header += [f"{field.removesuffix('_seconds')} (s)" for field in fields]
    ratios = {row.arm: row.flops for row in table.rows}
    rows = []
    whole = with_one_off(results)
    for arm in results.arms:
        flops = t_interval(whole.by_seed(arm, results.last_step, "train_flops").values())
        once = t_interval(
            one_off(record, "train_flops") for record in results.records if record["arm"] == arm
        )
        ratio = ratios[arm]
        cells = [f"{flops.mean:.3g}" if flops else MISSING, f"{once.mean:.3g}" if once else MISSING]
        cells.append(f"{ratio.mean:.2f}" if ratio else MISSING)
        for field in fields:
            seconds = t_interval(whole.by_seed(arm, results.last_step, field).values())
            cells.append(f"{seconds.mean:.4g}" if seconds else MISSING)
        rows.append([arm, *cells])
    grids = [[header, *rows]]
    # 2. The arms where they have spent as much as the baseline in all.
    equal = at_equal_cost(results, "flops")
    notes = ["Mean over the seeds at the last evaluation.", *one_off_notes(results, timing=timing)]
    if equal.records:
        grids.append(document(build_table(equal, timing=timing)).grids[0])
        notes += [
            f"The second table: {note[0].lower()}{note[1:]}" for note in equal_cost_notes(equal, "flops")
        ]
    return Part("cost", "Cost", grids=grids, notes=notes)


# ---- how it was measured, and by what


def protocol(results: Results, table: Table) -> Part:
    """Returns how the sweep was planned, trained and measured."""
    run = results.records[0]["run"]  # the protocol is that of all records
    looks = results.registered.get("now", {}).get("looks", [])
    floor = MISSING if table.floor is None else as_change(table.floor, table.metrics[0])
    facts = [("profile", results.profile), ("primary metric", table.metrics[0])]
    for seeds, arms in by_seeds(results).items():
        facts.append(("seeds" if len(arms) == len(results.arms) else f"seeds of {', '.join(arms)}", seeds))
    facts.append(("planned looks", f"at {', '.join(map(str, looks))} seeds" if looks else "none"))
    facts += [("noise floor", floor), ("evaluated at epochs", epochs(results))]
    facts += [("set otherwise than in the sweep file", setting) for setting in results.settings]
    for part in MEASURED_WITH:
        facts.append((part, ", ".join(f"{key} {value}" for key, value in run[part].items())))
    facts.append(("digest of all that", run["protocol_digest"]))
    return Part("protocol", "Protocol", facts=facts)


def by_seeds(results: Results) -> dict[str, list[str]]:
    """Returns the arms by their planned seeds, as a text."""
    found: dict[str, list[str]] = {}
    for arm in results.arms:
        seeds = ", ".join(map(str, sorted(results.seeds(arm))))
        found.setdefault(seeds or MISSING, []).append(arm)
    return found


def epochs(results: Results) -> str:
    """Returns the epochs of all evaluations."""
    return ", ".join(f"{epoch:g}" for epoch in sorted({record["epoch"] for record in results.records}))


def provenance(results: Results, files: Iterable[Path]) -> Part:
    """Returns where the numbers come from: code, versions, machines, files."""
    runs = list({id(record["run"]): record["run"] for record in results.records}.values())
    states = Counter(cell["status"] for cell in results.cells)
    facts = [
        ("records", f"{len(results.records)} evaluations of {len(runs)} runs"),
        ("cells", ", ".join(f"{n} {status}" for status, n in states.items())),
        ("commit", counted(commit(run) for run in runs)),
        ("device", counted(run["device"] for run in runs)),
        ("precision", counted(run["precision"] for run in runs)),
    ]
    for name in dict.fromkeys(name for run in runs for name in run.get("versions", {})):
        facts.append((name, counted(run.get("versions", {}).get(name, MISSING) for run in runs)))
    facts += [(path.name, file_sha256(path)) for path in files]
    return Part("provenance", "Provenance", facts=facts)


def commit(run: dict[str, Any]) -> str:
    """Returns the commit of a run, and whether the code had been changed since."""
    return f"{run['git']['commit'] or 'unknown'}{', changed' if run['git']['dirty'] else ''}"


def counted(values: Iterable[str]) -> str:
    """Returns the distinct values, with how often each is there if there are several."""
    found = Counter(values)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{value} ({n})" for value, n in found.items())


def repetition(results: Results, files: Sequence[Path]) -> Part:
    """Returns the commands that train the sweep anew and write its page."""
    # A sweep with other settings than its file has is called by the file and by what was set.
    axis, _, _ = results.axis.partition("+")
    ships = shipped("sweeps", f"{axis}.yaml").is_file()
    name = f"sweeps/{axis}.yaml" if ships else f"{axis}.yaml"
    seeds = sorted({cell["seed"] for cell in results.cells})
    words = ["python", "-m", "mirai_bench.sweep", name, "--profile", results.profile]
    words += ["--seeds", *map(str, seeds)]
    for setting in results.settings:
        words += ["--set", setting]
    commits = Counter(record["run"]["git"]["commit"] for record in results.records)
    ((commit, _),) = commits.most_common(1)  # of most runs: the others are those of a table's notes
    script = ["python", "analysis/report.py"]
    source = (
        ["--records", *map(str, files)] if files else ["--axis", results.axis, "--profile", results.profile]
    )
    lines = [f"git checkout {commit}", "pip install -e . -c constraints.txt", shlex.join(words)]
    texts = [] if ships else [f"The sweep file of {axis} does not ship with the project."]
    return Part(
        "repeat", "How to repeat it", texts=texts, commands=["\n".join(lines), shlex.join([*script, *source])]
    )


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
