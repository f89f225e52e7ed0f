"""What is logged while a search runs: which runs have ended, and now and then how far the others are."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from mirai_bench.config.run_config import RunConfig
from mirai_bench.config.sweep_file import Search
from mirai_bench.sweep.search_table import in_words
from mirai_bench.tracking.run_folder import RunFolder

log = logging.getLogger(__name__)

EVERY_SECONDS = 60.0  # between two lines about runs that have not ended


class Progress(tune.Callback):
    """Logs each run that has ended and, every minute, the epochs of those that run.

    `config_of` returns the configuration of a run from the drawn values of its trial.
    """

    def __init__(self, search: Search, arm: str, config_of: Callable[[dict[str, Any]], RunConfig]) -> None:
        self.search = search
        self.arm = arm
        self.config_of = config_of
        self.ended = 0
        self.last_line = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Is called by Tune whenever it has looked at its trials."""
        if time.monotonic() - self.last_line < EVERY_SECONDS:
            return
        running = [self._how_far(trial) for trial in trials if trial.status == Trial.RUNNING]
        if running:
            self._say(" · ".join([f"{self._counted()} runs ended", *running]))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Is called by Tune when a run has ended, or was stopped early."""
        self._say_ended(trial, trial.last_result or {})

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Is called by Tune when a run has failed."""
        self._say_ended(trial, {})

    def _say_ended(self, trial: Trial, found: dict[str, Any]) -> None:
        self.ended += 1
        value = found.get(self.search.metric, math.nan)
        came_out = "nothing was measured" if math.isnan(value) else f"{self.search.metric} {value:.4g}"
        self._say(f"{self._counted()} runs ended: {self._named(trial)}: {came_out}")

    def _say(self, line: str) -> None:
        self.last_line = time.monotonic()
        log.info(line)

    def _counted(self) -> str:
        return f"{self.ended}/{self.search.num_runs(self.arm)}"

    def _named(self, trial: Trial) -> str:
        space = self.search.arms[self.arm]
        return f"{in_words({name: trial.config[name] for name in space})}, seed {trial.config['seed']}"

    def _how_far(self, trial: Trial) -> str:
        config = self.config_of(trial.config)
        epochs = config.train.epochs
        epoch = RunFolder(config.run_path).journal.progress(epochs).epoch
        return f"{self._named(trial)}: epoch {epoch:.1f}/{epochs}"
