"""The benchmark's arithmetic and rows, on small shapes and beside a stand-in for a peer's checkout."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirai_bench.benchmark import report, sample, sweep, timing, train, workload
from mirai_bench.benchmark.__main__ import MEASUREMENTS, SHARED, SIZES, command, parser
from mirai_bench.benchmark.options import Options
from mirai_bench.benchmark.peer.checkout import MiraiCode, Peer
from mirai_bench.benchmark.peer.step import PeerStep, supports
from mirai_bench.benchmark.targets import PLAN, TARGETS
from mirai_bench.benchmark.timing import Sample, alternate, durations, phases_of, ratio, spread
from mirai_bench.config.load import SWEEPS
from mirai_bench.evaluate.extractors import EXTRACTORS
from mirai_bench.evaluate.pairs import BLOCK
from mirai_bench.model.cost import step_flops
from mirai_bench.sweep.__main__ import parser as sweep_parser
from mirai_bench.sweep.driver import Report
from mirai_bench.utils.device import Hardware
from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import write_json
from tests.support.paths import ROOT
from tests.support.synthetic import write_run

CPU = torch.device("cpu")
TINY = workload.Shape(3, 64, 4, 32, 4)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(workload.SHAPES, "small", TINY)
    monkeypatch.setattr(train, "ceiling", lambda *_: 1e12)


def new_step(arm="ntp"):
    return workload.TrainStep(workload.run_config(TINY, arm, "fp32"), Hardware(CPU))


def run_cell(arm="ntp", precisions=("fp32",), peers=()):
    rows = train.measure_fitting(list(precisions), Options(CPU, 2, 1, False, peers), "small", arm, 4)
    return [row | {"device": "cpu"} for row in rows]


def own_options(*words):
    """The options of a command line that only its measurement knows."""
    args = vars(parser().parse_args(words))
    return {name: value for name, value in args.items() if name not in SHARED}


@pytest.mark.parametrize("arm", [arm for arm in workload.ARMS if arm != "mirai-i-online"])
def test_a_row_of_each_arm(arm, monkeypatch):
    if arm.startswith("mirai-i"):
        pytest.importorskip("timm")
    if arm != "ntp":
        monkeypatch.setitem(workload.ARMS, arm, workload.ARMS[arm] | {"projector": {"hidden": 16}})
    (row,) = run_cell(arm)
    assert row["step_ms"]["median"] > 0
    assert row["images_per_second"] * 16 == pytest.approx(row["tokens_per_second"])
    assert {"forward", "backward", "optimizer", "EMA", "batch", "loss"} <= row["phases_ms"].keys()
    assert ("teacher" in row["phases_ms"]) == arm.startswith("mirai")
    assert row["mfu"] == pytest.approx(row["step_flops"] / (row["busy_ms"]["median"] / 1e3) / 1e12)
    assert row["status"] == "measured" and json.dumps(row)


def test_an_online_encoder_needs_no_weights():
    pytest.importorskip("timm")
    ours = new_step("mirai-i-online")
    assert np.isfinite(ours()) and ours.trainer.objective.foresight.source.encoder.width == 768


def test_cached_features_come_from_memory_and_cost_no_flops():
    pytest.importorskip("timm")
    ours = new_step("mirai-i-cached")
    source = ours.trainer.objective.foresight.source
    assert isinstance(source, workload.StoredFeatures) and source.width == 768
    batch = ours.trainer.codes.batch(seed=0, step=0, rank=0, world=1, batch_size=4)
    assert source(batch, batch.labels).shape == (4, 16, 768)
    online = workload.run_config(TINY, "mirai-i-online", "fp32")
    assert ours.config.foresight.encoder.cache and step_flops(ours.config) < step_flops(online)


def test_names_of_sizes_and_arms():
    """They are checked when a measurement starts, so that --help needs no torch, which lists the sizes."""
    assert SIZES.replace(" or ", ", ").split(", ") == list(workload.SHAPES)
    with pytest.raises(UserError, match=r"Unknown size 'smal'\. Did you mean 'small'"):
        workload.find_shape("smal")
    with pytest.raises(UserError, match=r"Unknown arm 'mirai-e-k2'\. Did you mean 'mirai-e-k"):
        workload.run_config(TINY, "mirai-e-k2", "fp32")
    with pytest.raises(UserError, match="Unknown arm"):  # before the first arm is measured
        next(
            train.measure(
                Options(CPU, 1, 1), **own_options("train", "--sizes=small", "--arms", "ntp", "mtpp")
            )
        )


def test_a_step_whose_flops_are_not_known_has_no_share_of_the_ceiling(monkeypatch):
    monkeypatch.setattr(train, "step_flops", lambda config: None)
    (row,) = run_cell()
    assert row["step_flops"] is None and row["mfu"] is None
    share = report.TRAIN_HEADER.index("of the matmul ceiling")
    assert report.train_line(row)[share] == "—"


def test_alternation_ratio_and_spread():
    order = []
    samples = alternate(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, rounds=3, warmup=1
    )
    assert "".join(order) == "abababab" and len(samples["a"]) == len(samples["b"]) == 3
    slow, fast = [Sample(4, 2), Sample(9, 2), Sample(8, 2)], [Sample(2, 2), Sample(3, 2), Sample(2, 2)]
    assert ratio(slow, fast, "wall")["median"] == 3 and ratio(slow, fast, "busy")["median"] == 1
    assert spread([5.0]) == {"median": 5.0, "q1": 5.0, "q3": 5.0, "n": 1}


def test_phases_are_exclusive_and_leave_nothing_behind():
    marks = [("outer", 0), ("inner", 1), ("outer", 2), ("end", 3)]
    assert durations(marks) == {"outer": 2, "inner": 1}
    ours = new_step("mirai-e-k3")
    modules = (ours.trainer.model.norm, ours.trainer.objective, ours.trainer.objective.foresight)
    before = [dict(vars(module)) for module in modules]
    backward = torch.Tensor.backward
    phases = phases_of(ours.trainer, 1, 0)
    assert [dict(vars(module)) for module in modules] == before and torch.Tensor.backward is backward
    taken = timing.timed(lambda: phases.update(phases_of(ours.trainer, 3, 1)), CPU).wall
    assert 0.5 * taken < 3e-3 * sum(phases.values()) <= taken, "the phases are the whole step"


class StandIn(nn.Module):
    """As much of the official model's interface as its training step uses."""

    def __init__(self, args):
        super().__init__()
        self.args = args
        self.table = nn.Embedding(args.vocab_size, args.dim)
        self.projectors = nn.ModuleList(
            nn.Linear(args.dim, w) for w in getattr(args, "z_dims", []) * getattr(args, "num_heads", 0)
        )

    def states(self, idx):
        return self.table(F.pad(idx, (1, 0)))

    def forward_ema(self, idx, cond_idx, targets=None):
        return self.states(idx)

    def forward(self, idx, cond_idx, targets):
        h = self.states(idx)
        logits = h @ self.table.weight.T
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return (logits, [p(h) for p in self.projectors], loss) if self.projectors else (logits, loss)


def stand_in_peer(name="Mirai"):
    module = ModuleType("stand_in")
    module.Transformer, module.ModelArgs = StandIn, SimpleNamespace
    calls = []

    def update_ema(ema, model, decay=0.9):
        calls.append("ema")
        for e, p in zip(ema.parameters(), model.parameters(), strict=True):
            e.data.lerp_(p.data, 1 - decay)

    def losses(teacher, students):
        calls.append(len(students))
        return [-F.cosine_similarity(teacher[0], s, dim=-1).mean() for s in students]

    def optimizer(model, decay, rate, betas):
        return torch.optim.AdamW(model.parameters(), rate, betas, weight_decay=decay)

    mirai = MiraiCode(module, {"E": losses}, None) if name == "Mirai" else None
    return Peer(name, "c0ffee", module, None, update_ema, optimizer, mirai), calls


def test_the_peers_step_and_the_ratios():
    peer, calls = stand_in_peer()
    step = PeerStep(peer, new_step("mirai-e-k3"), bf16=False)
    before = step.raw.table.weight.clone()
    assert np.isfinite(step()) and calls == [3, "ema"]
    assert not torch.equal(before, step.raw.table.weight)
    assert all(
        torch.equal(a, b) for a, b in zip(step.teacher.parameters(), step.ema.parameters(), strict=True)
    )
    rows = run_cell("mirai-e-k3", ("fp32", "bf16"), peers=(stand_in_peer("LlamaGen")[0], peer))
    assert [row["peer"]["name"] for row in rows] == ["Mirai", "Mirai"]
    assert all(row["peer"][p]["busy"]["n"] == 2 for row in rows for p in ("fp32", "bf16"))
    assert "| small (3 x 64, 4x4, batch 4) | mirai-e-k3 | bf16 |" in report.table(rows)


def test_arms_that_a_peer_lacks():
    llamagen, mirai = stand_in_peer("LlamaGen")[0], stand_in_peer()[0]
    configs = {arm: workload.run_config(TINY, arm, "fp32") for arm in ("ntp", "mirai-e-k3", "mtp")}
    assert {arm: (supports(llamagen, c), supports(mirai, c)) for arm, c in configs.items()} == {
        "ntp": (True, True), "mirai-e-k3": (False, True), "mtp": (False, False)
    }  # fmt: skip
    with pytest.raises(UserError, match="LlamaGen has no counterpart of foresight"):
        PeerStep(llamagen, new_step("mirai-e-k3"), False)


def test_out_of_memory_is_a_row(monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(train, "measure_cell", full)
    options = own_options("train", "--sizes", "small", "--arms", "ntp", "--rounds", "1")
    (row,) = train.measure(Options(CPU, 1, 1), **options)
    assert row["status"] == "out of memory" and "out of memory" in report.table([row])


def test_a_cell_that_does_not_fit_is_measured_at_the_batch_that_does(monkeypatch):
    real = train.measure_cell

    def small_card(shape, *others):
        if shape.batch > 2:
            raise torch.OutOfMemoryError
        return real(shape, *others)

    monkeypatch.setattr(train, "measure_cell", small_card)
    (row,) = train.measure_fitting(["fp32"], Options(CPU, 1, 1), "small", "ntp", 8, 1)
    assert (row["asked_batch"], row["batch"]) == (8, 2)
    (row,) = train.measure_fitting(["fp32"], Options(CPU, 1, 1), "small", "ntp", 8, 2)
    assert (row["batch"], row["micro_batches"]) == (2, 2)
    assert "batch 2 in 2 parts" in report.table([row])


def test_a_cell_that_fails_costs_no_other_and_none_is_measured_twice(monkeypatch, tmp_path, capsys):
    measured = []

    def measure_fitting(precisions, options, **cell):
        measured.append(cell["arm"])
        if cell["arm"] == "mtp":
            raise RuntimeError("the compiler broke\nat length")
        return [{"kind": "train", "status": "measured", **cell, "peak_mib": None}]

    monkeypatch.setattr(train, "measure_fitting", measure_fitting)
    monkeypatch.setattr(report, "train_line", lambda row: [row["arm"]])
    out = tmp_path / "train.json"
    words = ["train", "--device", "cpu", "--sizes", "small", "--arms", "ntp", "mtp", "mirai-e-k1"]
    for expected in (["ntp", "mtp", "mirai-e-k1"], ["mtp"]):
        measured.clear()
        assert command([*words, "--out", str(out)]) == 0
        assert measured == expected
        rows = json.loads(out.read_text())["rows"]
        found = {row["arm"]: row["status"] for row in rows}
        assert found["mtp"] == "failed: RuntimeError: the compiler broke"
        assert found["ntp"] == found["mirai-e-k1"] == "measured" and len(rows) == 3
    assert "the compiler broke" in capsys.readouterr().out
    # A command that asks for other cells adds to the file, as the parts of a first GPU do.
    command(["train", "--device", "cpu", "--sizes", "medium", "--arms", "ntp", "--out", str(out)])
    found = [(row["size"], row["arm"]) for row in json.loads(out.read_text())["rows"]]
    assert sorted(found) == [("medium", "ntp"), ("small", "mirai-e-k1"), ("small", "mtp"), ("small", "ntp")]
    # Rows of another machine or another code are not taken over, and no cell begins too late.
    changed = json.loads(out.read_text())
    changed["machine"]["cpu"] = "another"
    write_json(out, changed)
    measured.clear()
    command([*words, "--out", str(out), "--seconds", "-1"])
    assert measured == []


def test_targets_without_rows_are_not_measured_and_with_rows_are_judged():
    table = report.targets_table([])
    assert table.count("not measured") == len(TARGETS)
    row = {
        "kind": "train",
        "status": "measured",
        "device": "cpu",
        "size": "small",
        "arm": "ntp",
        "precision": "bf16",
    }
    rows = [row | {"peer": {"bf16": {"busy": spread([1.4])}}}]
    rows.append({"kind": "data", "status": "measured", "device": "cpu", "files_over_shards": spread([25.0])})
    table = report.targets_table(rows)
    assert "| CPU step, small, ntp, bf16 | ≥ 1.5x | 1.40x | missed |" in table
    assert "| codes, random access, cold Python | ≥ 20x | 25.00x | met |" in table
    assert table.count("not measured") == len(TARGETS) - 2


def test_the_cost_of_foresight_and_the_best_batches():
    step = {"kind": "train", "status": "measured", "device": "cuda", "size": "B", "asked_precision": "bf16"}
    step |= {"micro_batches": 1}
    ntp = step | {"arm": "ntp", "images_per_second": 200.0, "step_flops": 1e12, "batch": 100}
    # Twice the operations an image, and 1.9 times its time, at another batch.
    arm = step | {"arm": "mirai-e-k3", "images_per_second": 200 / 1.9, "step_flops": 1e12, "batch": 50}
    sampling = {"kind": "sample", "status": "measured", "device": "cuda", "size": "B", "cfg_scale": 2.0}
    sampling |= {"foresight_cost": spread([1.0])}
    in_parts = ntp | {"micro_batches": 2, "images_per_second": 1.0}
    rows = [ntp, arm, in_parts]
    for batch, ours, theirs in ((16, 70.0, 80.0), (256, 400.0, 300.0), (1024, 450.0, None)):
        peer = {"images_per_second": theirs, "wall": spread([1.5])}
        rows.append(sampling | {"batch": batch, "images_per_second": ours, "peer": peer})
    found = {target.what: target.value(rows) for target in TARGETS}
    assert found["GPU, cost of Mirai-E K 3 over its FLOPs"] == pytest.approx(0.95)
    assert found["GPU, cost of Mirai-I online over its FLOPs"] is None
    assert found["GPU, sampling, B, CFG 2, best batch of each"] == pytest.approx(450 / 300)


@pytest.mark.parametrize("device", PLAN)
def test_the_plan_is_of_valid_commands(device):
    for words in PLAN[device]:
        assert parser().parse_args(words).kind in MEASUREMENTS
        assert set(getattr(parser().parse_args(words), "sizes", None) or ()) <= workload.SHAPES.keys()


def test_without_a_gpu_the_gpu_targets_say_so(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    assert command(["targets", "--device", "cuda", "--out", str(tmp_path)]) == 0
    assert (
        "not measured" in (tmp_path / "targets.md").read_text()
        and "no CUDA device" in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="no CUDA device is visible"):
        command(["train", "--device", "cuda"])


def test_files_tables_and_chart_come_from_the_rows(tmp_path):
    head = Options(CPU, 2, 1).head()
    write_json(tmp_path / "train_cpu.json", head | {"rows": run_cell(peers=(stand_in_peer()[0],))})
    (tmp_path / "parity_mirai.json").write_text(json.dumps({"rows": [{"quantity": "logits"}]}))
    (tmp_path / "README.md").write_text("before\n<!-- tables -->\noutdated\n<!-- end of tables -->\nafter\n")
    first = report.write_report(tmp_path)
    readme = (tmp_path / "README.md").read_text()
    assert (
        readme.startswith("before\n")
        and readme.endswith("after\n")
        and first in readme
        and "outdated" not in readme
    )
    assert first == report.write_report(tmp_path) and "| ntp | fp32 |" in first
    drawn = (tmp_path / "speed.svg").read_bytes()
    assert command(["report", str(tmp_path)]) == 0 and (tmp_path / "speed.svg").read_bytes() == drawn
    head = json.loads((tmp_path / "train_cpu.json").read_text())
    assert {"machine", "versions", "git", "statistic"} <= head.keys()
    for row in head["rows"]:
        del row["micro_batches"]  # as in a file of version 0.2
    write_json(tmp_path / "train_cpu.json", head)
    assert first == report.write_report(tmp_path)


def test_a_step_without_a_counterpart_of_its_precision_is_in_no_chart(tmp_path):
    """On a GPU the official step is computed in bf16 only."""
    row = {"kind": "train", "precision": "fp32", "peer": {"name": "Mirai", "bf16": {"busy": spread([1.1])}}}
    failed = {"kind": "train", "status": "out of memory"}
    report.chart([row, failed], tmp_path / "speed.svg")
    assert not (tmp_path / "speed.svg").exists()


def test_the_committed_report_is_made_of_the_committed_files(tmp_path):
    folder = ROOT / "reports" / "benchmarks"
    for file in (*folder.glob("*.json"), folder / "README.md"):
        shutil.copy(file, tmp_path)
    report.write_report(tmp_path)
    for name in ("README.md", "table.md", "targets.md"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert (tmp_path / "speed.svg").is_file()  # whose bytes depend on the version of matplotlib


def test_sampling_with_and_without_a_peer():
    """Its sampler is driven as LlamaGen's script does, with one row per batch size and guidance."""
    peer, _ = stand_in_peer("LlamaGen")
    calls = []
    generator = SimpleNamespace(generate=lambda *words, **options: calls.append((words[2], options)))
    chosen = own_options("sample", "--sizes", "small", "--batch-sizes", "2")
    peers = (peer, replace(peer, generate=generator))
    rows = list(sample.measure(Options(CPU, 1, 1, False, peers), **chosen))
    assert [(row["batch"], row["cfg_scale"]) for row in rows] == [(2, 1.0), (2, 2.0)]
    assert all(row["status"] == "measured" and row["foresight_cost"]["n"] == 1 for row in rows)
    assert calls[0] == (16, {"cfg_scale": 1.0}) and len(calls) == 4
    assert "times LlamaGen's; with / without foresight training" in report.table(rows)


def test_data_in_both_layouts_is_the_same(tmp_path):
    from mirai_bench.benchmark import data
    from mirai_bench.data.shards import open_shards

    data.write_both(tmp_path, 1500)
    rows = np.array([1400, 3, 1024])
    shards = open_shards(tmp_path, ["00000", "00001"]).take(rows, np.zeros_like(rows))
    assert (shards == np.concatenate([np.load(tmp_path / "codes" / f"{row}.npy") for row in rows])).all()
    assert data.read_shards(tmp_path, rows) > 0 and data.read_files(tmp_path, rows) > 0


def test_extractors_whose_weights_are_not_at_hand_are_measured_with_random_ones(
    make_config, monkeypatch, tmp_path
):
    from mirai_bench.benchmark import evaluate
    from mirai_bench.evaluate import networks

    monkeypatch.delenv("MIRAI_BENCH_ASSETS", raising=False)
    monkeypatch.setattr(evaluate, "noise", lambda n, side: np.zeros((1, side, side, 3), np.uint8))
    row = evaluate.extractor_row(make_config(), "inception", Options(CPU, 1, 1))
    assert (row["status"], row["weights"]) == ("measured", "random")
    assert "inception, batch 1, random weights |" in report.table([row])
    lacking = evaluate.extractor_row(make_config(), "inception_2015", Options(CPU, 1, 1))
    assert lacking["status"].startswith("not measured")
    classifier = evaluate.extractor_row(make_config(), "fashion_mnist", Options(CPU, 1, 1))
    assert (classifier["status"], classifier["weights"]) == ("measured", "random")
    pytest.importorskip("timm")
    small = "vit_small_patch14_dinov2"
    monkeypatch.setattr(networks, "DINOV2_MODEL", small)
    evaluate.UNTRAINED["dinov2"](tmp_path / "random.pth")
    assert networks.Dinov2(tmp_path / "random.pth", small).eval()(
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    )["pool"].shape == (1, 384)


@pytest.mark.slow  # Inception and the decoder of 64x64 pixels
def test_an_evaluation_at_the_papers_size_is_measured_without_its_data(tmp_path):
    from mirai_bench.benchmark import evaluate

    profile = tmp_path / "small.yaml"
    profile.write_text(
        "profile: imagenet256_b\nmodel: {size: nano}\ndata: {image_size: 64, crop_ranges: [1.0]}\n"
        "train: {precision: fp32}\nmachine: {workers: 1, gpus: 0, cpus: 1}\n"
    )
    row = evaluate.untrained_row(20, Options(CPU, 1, 1), str(profile))
    assert (row["status"], row["size"], row["samples"]) == ("measured", "nano", 20)
    assert row["seconds"] == pytest.approx(sum(row["parts"].values())) and min(row["parts"].values()) > 0
    assert "20 samples, random weights | " in report.table([row])
    target = next(target for target in TARGETS if "50,000" in target.what)
    of_gpu = row | {"device": "cuda", "size": "B", "samples": 50_000}
    for seconds, met in ((250, True), (301, False)):
        value = target.value([of_gpu | {"seconds": seconds}])
        assert (target.met(value), target.shown(value)) == (met, f"{seconds} s")


def test_evaluate(trained_run, monkeypatch):
    from mirai_bench.benchmark import evaluate

    monkeypatch.delenv("MIRAI_BENCH_ASSETS", raising=False)
    monkeypatch.setattr(evaluate, "UNTRAINED", {})  # they would take minutes
    small = ["--statistics", "200", "--memory", "1000", "9000"]
    options = own_options("evaluate", "--config", str(trained_run / "config.json"), *small)
    rows = list(evaluate.measure(Options(CPU, 1, 1), **options))
    whole, extractors = rows[0], {row["size"]: row for row in rows if row["kind"] == "extractor"}
    assert whole["samples"] == 100 and whole["images_per_second"]["sample"] > 0
    assert extractors.keys() == EXTRACTORS.keys() and extractors["digits"]["images_per_second"]["median"] > 0
    assert extractors["dinov2"]["status"].startswith("not measured")
    statistics = {row["what"]: row["seconds"] for row in rows if row["kind"] == "statistics"}
    assert len(statistics) == 4 and all(seconds > 0 for seconds in statistics.values())
    few, many = (row for row in rows if row["kind"] == "memory")
    # what grows with the number of images is their features (64 float64); blocks of products are
    # bounded, and so are the holes that they leave in memory
    growth, features = (many[key] - few[key] for key in ("peak_megabytes", "features_megabytes"))
    assert growth < 3 * features + 12 * 8 * BLOCK**2 / 2**20
    assert report.table(rows).count("\n") == 2 + len(rows)
    # The same command again takes what it has measured, and begins nothing when the time is over.
    late = Options(CPU, 1, 1, earlier=tuple(rows), deadline=0.0)
    assert list(evaluate.measure(late, **options)) == [row for row in rows if row["status"] == "measured"]


def test_a_sweeps_wall_clock_is_accounted_for(monkeypatch):
    """Two cells of 24 s + 7 evaluations of 1.5 s, side by side, in a command of 41 s: overhead is
    what is left of 2 x 41 s."""

    def run(plan, options):
        plan.write()
        for cell in plan.sweep.cells:
            write_run(plan.runs, cell.config, lambda epoch: {"FD-digits": 4.0}, seconds_per_epoch=1.0)
        return Report(
            {"ray start": 1.0, "trials": 39.0, "ray stop": 1.0},
            slots=2,
            trial_seconds=74.0,
            ready_seconds=3.0,
        )

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "restored afterwards")
    monkeypatch.setattr(sweep, "run_sweep", run)
    monkeypatch.setattr(Report, "phase", lambda self, name: nullcontext())
    settings = ["--set=train.epochs=24", "--set=evaluation.at=[2,4,8,12,16,20,24]"]
    chosen = own_options("sweep", "--only", "baseline", "output-1d", "--seeds", "0", *settings)
    (row,) = sweep.measure(Options(CPU, 1, 1), **chosen)
    assert (row["status"], row["cells"]) == ("measured", 2)
    assert (row["cell_seconds"], row["wall_seconds"]) == (24 + 7 * 1.5, 41)
    assert row["overhead"] == pytest.approx(1 - 69 / 82)
    assert sum(row["slot_seconds"].values()) == pytest.approx(82)
    assert row["slot_seconds"]["checkpoints, journals and the rest of trials"] == 2
    assert row["slot_seconds"]["waiting for a trial"] == 4
    assert (
        "| sweep | injection_level, 2 cells of 34 s, 2 at a time | overhead 15.9%: training steps 58.5%"
        in report.table([row])
    )
    target = next(target for target in TARGETS if target.what.startswith("sweep"))
    assert target.value([row | {"device": "cpu"}]) is None, "its cells are none of a minute"
    assert target.value([row | {"device": "cpu", "cell_seconds": 60.0}]) == row["overhead"]
    assert not target.met(row["overhead"])


def test_the_cells_of_a_sweep_without_settings_take_a_minute(monkeypatch, tmp_path):
    """Two epochs and an evaluation take 3.5 s: seventeen times as much is a minute."""

    def run(command, **kwargs):
        assert command[1:3] == ["-m", "mirai_bench.sweep"]
        args = sweep_parser().parse_intermixed_args(command[3:])
        (file,) = args.files
        plan = sweep.make_plan(Path(file), seeds=args.seeds, only=args.only, settings=args.settings)
        for cell in plan.sweep.cells:
            write_run(plan.runs, cell.config, lambda epoch: {"FD-digits": 4.0}, seconds_per_epoch=1.0)
        return SimpleNamespace(returncode=len(failing))

    failing = []
    monkeypatch.setattr(sweep.subprocess, "run", run)
    arguments = (SWEEPS / "injection_level.yaml", ["baseline", "output-1d"], 0, "cpu", tmp_path)
    settings = sweep.a_minute(*arguments)
    assert settings[0] == "train.epochs=34"
    assert settings[1].startswith("evaluation.at=[2,4,") and settings[1].endswith(",34]")
    failing.append("it")
    with pytest.raises(UserError, match=r"the short sweep .* did not end well"):
        sweep.a_minute(*arguments)
