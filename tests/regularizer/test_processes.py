"""Two processes with half of the batch each train what one with the whole batch trains."""

import subprocess
import sys

import pytest
import torch

from tests.support.small_run import saved

VARIANTS = [{"name": "rear"}, {"name": "st-ar", "group": 25, "mask_ratio": 0.5, "view": 0}]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant["name"])
def test_two_processes_equal_one(make_config, tmp_path, variant):
    """Without dropout, because each rank has its own masks. What a regularizer draws is of the batch."""
    from safetensors.torch import load_file

    no_dropout = {"token_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0}
    weights = {}
    for workers in (1, 2):
        config = make_config(
            model=no_dropout,
            regularizer=variant,
            train={"batch_size": 250},
            machine={"runs": str(tmp_path / str(workers))},
        )
        (tmp_path / "config.json").write_text(config.model_dump_json())
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if workers == 2 else []
        words = ["-m", "mirai_bench.train", str(tmp_path / "config.json")]
        done = subprocess.run([sys.executable, *launcher, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        weights[workers] = load_file(saved(config.run_path)[-1] / "model.safetensors")
    assert any(name.startswith("regularizer.") for name in weights[1])
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[2][name], tensor, atol=5e-4, rtol=5e-3)
