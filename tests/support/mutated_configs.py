"""Sweep files and profiles that were mutated at random: values, names and structure, or characters."""

import json
import time
from collections import Counter
from pathlib import Path

import yaml
from hypothesis import strategies as st

from mirai_bench.config.load import SWEEPS, load_run
from mirai_bench.sweep.overview import dry_run
from mirai_bench.sweep.plan import make_plan
from mirai_bench.utils.errors import UserError


def shortened(sweep):
    """Keeps two seeds and few arms, because the files are written and read a thousand times."""
    few = {"seeds": [10, 11], "pilot": 1, "looks": [2]}
    return sweep | few | {"arms": dict(list(sweep["arms"].items())[::4])}


SHIPPED = {
    "sweep": [
        shortened(yaml.safe_load((SWEEPS / f"{axis}.yaml").read_text()))
        for axis in ("injection_level", "foresight_layout", "foresight_source")
    ],
    "profile": [yaml.safe_load(path.read_text()) for path in sorted((SWEEPS / "profiles").glob("*.yaml"))],
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            10**30,
            -1,
            0,
            1e308,
            "8/12",
            "0/0",
            "1/0",
            "999/1",
            "internal",
            "ema",
            "../x",
            "\0",
            "1e-4",
            "digits",
            "paper",
            "x" * 70,
        ]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3),
    max_leaves=6,
)


def places(tree, path=()):
    yield path
    for key, value in (
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    ):
        yield from places(value, (*path, key))


def mutate(draw, tree):
    """Replaces, removes or renames one node, or adds one next to it."""
    path = draw(st.sampled_from(list(places(tree))))
    if not path:
        return draw(VALUES)
    *parents, last = path
    holder = tree
    for key in parents:
        holder = holder[key]
    action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add"]))
    if action == "replace" or isinstance(holder, list):
        number = isinstance(holder[last], (int, float)) and draw(st.booleans())
        holder[last] = holder[last] * draw(st.sampled_from([1, 2, 4, 0.5])) if number else draw(VALUES)
    elif action == "remove":
        del holder[last]
    else:
        name = draw(
            st.sampled_from(["k", "layer", "level", "encoder", "protocol", "baseline"]) | st.text(max_size=8)
        )
        holder[name] = holder.pop(last) if action == "rename" else draw(VALUES)
    return tree


STREWN = [
    "\t",
    ": ",
    "- ",
    "{",
    "]",
    "&a ",
    "*a",
    "!!python/object:os.system ",
    "\x07",
    "'",
    "? ",
    "<<: ",
    "|",
]


def scramble(draw, text):
    """Removes, doubles or inserts characters."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        length = draw(st.integers(0, 12))
        text = (
            text[:at] + draw(st.sampled_from(["", text[at : at + length] * 2, *STREWN])) + text[at + length :]
        )
    return text


@st.composite
def files(draw):
    texts = {}
    victim = draw(st.sampled_from(["sweep", "profile"]))
    for name, shipped in SHIPPED.items():
        tree = json.loads(json.dumps(draw(st.sampled_from(shipped))))
        if name == victim:
            for _ in range(draw(st.integers(0, 2))):
                tree = mutate(draw, tree)
        texts[name] = yaml.safe_dump(tree, allow_unicode=draw(st.booleans()))
    if draw(st.integers(0, 4)) == 0:
        texts[victim] = scramble(draw, texts[victim])
    return texts


def write_files(texts: dict[str, str], folder: Path) -> None:
    """Writes sweep.yaml and profile.yaml."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))


def read_in_this_process(folder: Path, outcomes: Counter[str]) -> float:
    """Plans the sweep with the profile, and reads the profile as a run. Returns the seconds of CPU
    time, and counts whether each was accepted or refused in a message."""
    began = time.process_time()
    for read in (
        lambda: dry_run(make_plan(folder / "sweep.yaml", profile=str(folder / "profile.yaml")), None),
        lambda: load_run(str(folder / "profile.yaml")),
    ):
        try:
            read()
            outcomes["accepted"] += 1
        except UserError as error:
            assert str(error)
            outcomes["refused"] += 1
    return time.process_time() - began
