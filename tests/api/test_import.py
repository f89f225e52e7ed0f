"""What is imported when the package is, and what the names that it exports need."""

import subprocess
import sys

import pytest

import mirai_bench
from tests.support.paths import ROOT

BLOCKED = """
import sys
for name in ("ray", "mlflow", "torch_fidelity", "timm"):
    sys.modules[name] = None  # an import of it fails
import mirai_bench
assert "torch" not in sys.modules and "pandas" not in sys.modules, "the package alone imports nothing"
"""
LOSS = """
import torch
loss = mirai_bench.ForesightLoss(width=8, grid=(2, 2), k=2, projector_hidden=8)
hidden = torch.randn(3, 4, 8, requires_grad=True)
loss(hidden, torch.randn(3, 4, 8)).backward()
assert hidden.grad.abs().sum() > 0
"""
READ = """
frame = mirai_bench.read_results("reports/data/injection_level_digits.jsonl")
assert {"arm", "seed", "FD-digits"} <= set(frame.columns) and len(frame) > 0
"""
REGISTER = "assert callable(mirai_bench.register.layout) and callable(mirai_bench.run_sweep)"


@pytest.mark.parametrize("code", [LOSS, READ, REGISTER], ids=["loss", "read", "register"])
def test_neither_ray_nor_mlflow_is_needed(code):
    done = subprocess.run([sys.executable, "-c", BLOCKED + code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_name_that_is_exported_is_there_and_documented():
    page = (ROOT / "docs" / "python.md").read_text()
    for name in mirai_bench.__all__:
        assert getattr(mirai_bench, name).__doc__, name
        assert f"`{name}" in page, name
    assert set(mirai_bench.__all__) <= set(dir(mirai_bench))
    with pytest.raises(AttributeError, match="no attribute 'ForesightLos'"):
        _ = mirai_bench.ForesightLos
