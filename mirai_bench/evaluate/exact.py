"""What a planted data set measures by itself, exactly: no extractor, no reference.

Letters: B images, T cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mirai_bench.config.data_config import StaircaseConfig
from mirai_bench.config.run_config import RunConfig
from mirai_bench.data.images.staircase import floor, obeys, planted_cells
from mirai_bench.data.tokenizers import Tokenizer, load_tokenizer
from mirai_bench.utils.errors import UserError

SOLVED = 0.99  # accuracy at the decisive cell above which the task counts as solved


@dataclass(frozen=True)
class Rule:
    """The rule of a planted data set, and what follows from it for samples and held-out losses."""

    planted: StaircaseConfig
    tokenizer: Tokenizer
    """The pixel tokenizer, which is exact on these images and those of a model."""

    def obeyed(self, images: np.ndarray) -> np.ndarray:
        """Tells of each image uint8 (B, h, w, 3) whether it obeys the rule, (B,).

        Raises UserError for images of another size.
        """
        codes = self.tokenizer.encode(torch.from_numpy(images)).cpu().numpy()
        cells = planted_cells(self.planted).stop
        if codes.shape[1] != cells:
            height, width = images.shape[1:3]
            raise UserError(f"images of the staircase have {cells} pixels, found {height}x{width}")
        return obeys(codes, self.planted)

    def of_heldout(self, nats: Tensor, accuracy: Tensor) -> dict[str, float]:
        """Returns the metrics of held-out losses (T,) and accuracies (T,) of each cell.

        The decisive cell is the first planted one. The others have their number in their names.
        """
        first, *others = planted_cells(self.planted)
        values = {
            "heldout_excess": nats.mean().item() - floor(self.planted),
            "decisive_nats": nats[first].item(),
            "decisive_accuracy": accuracy[first].item(),
            "solved": float(accuracy[first].item() > SOLVED),
        }
        for cell in others:
            values[f"nats_{cell}"] = nats[cell].item()
            values[f"accuracy_{cell}"] = accuracy[cell].item()
        return values


def metrics_of_heldout(planted: StaircaseConfig) -> list[str]:
    """Returns the names of the metrics that `Rule.of_heldout` gives."""
    _, *others = planted_cells(planted)
    names = ["heldout_excess", "decisive_nats", "decisive_accuracy", "solved"]
    return [*names, *(f"{name}_{cell}" for cell in others for name in ("nats", "accuracy"))]


def open_rule(config: RunConfig, device: torch.device) -> Rule | None:
    """Returns the rule of the config's data set, or None if it has none."""
    if config.data.dataset != "staircase":
        return None
    return Rule(config.data.staircase, load_tokenizer(config, device))
