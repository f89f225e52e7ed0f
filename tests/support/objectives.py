"""A whole training objective with its teacher and one batch, for any foresight and regularizer."""

import torch

from mirai_bench.data.codes import open_codes
from mirai_bench.foresight import build_foresight
from mirai_bench.foresight.source import SourceContext
from mirai_bench.model.transformer import build_model
from mirai_bench.regularizer.registry import build_regularizer
from mirai_bench.train.objective import Objective
from mirai_bench.train.optim import clone_as_ema

CPU = torch.device("cpu")


def assemble(make_config, variant, **sections):
    """Returns (config, objective, teacher, batch). `variant` is the foresight, `sections` the rest."""
    config = make_config(foresight=variant, **sections)
    codes = open_codes(config, "train", CPU)
    model = build_model(config)
    torch.nn.init.normal_(model.output.weight, std=0.1, generator=torch.Generator().manual_seed(5))
    teacher = clone_as_ema(model)  # also stands for the frozen one
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6))
    context = SourceContext(config, teacher, codes, lambda: teacher, CPU)
    objective = Objective(model, build_foresight(context), build_regularizer(context))
    return config, objective, teacher, codes.batch(seed=0, step=0, rank=0, world=1, batch_size=8)


def eager_and_captured(objective, *inputs):
    """Returns the losses of an objective, and those of the one graph that it is captured as.

    The eager backend captures the graph, of which a break is an error, and compiles nothing.
    """
    torch.compiler.reset()  # graphs belong to the code: those of other variants count, too
    compiled = torch.compile(objective, backend="eager", fullgraph=True, dynamic=False)
    losses = []
    for forward in (objective, compiled):
        torch.manual_seed(0)
        losses.append([loss.item() for loss in forward(*inputs)])
    return losses
