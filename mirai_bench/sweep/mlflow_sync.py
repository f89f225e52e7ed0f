"""Sends the journals of a sweep's runs to MLflow while they grow."""

from __future__ import annotations

import threading

from mirai_bench.config.sweep_file import Cell
from mirai_bench.sweep.plan import Plan, folder_of
from mirai_bench.tracking import mlflow_store, ship
from mirai_bench.tracking.run_folder import RunFolder

EVERY_SECONDS = 2.0
News = tuple[int, str]
"""Number of evaluations of a run, and how it ended: "done", "failed" or "". It is sent again when its news changes."""


class Shipper(threading.Thread):
    """Sends every cell's news at each evaluation.

    The store is made while Ray starts, and nothing is sent before the sweep is `accepted`. There is one sender for
    all trials: no trial imports MLflow or waits for it, sqlite has one writer, and credentials stay in this process.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(daemon=True)
        self.plan = plan
        self.parent: str | None = None
        self.error: Exception | None = None
        self.accepted = threading.Event()
        self.finish = threading.Event()
        self.sent: dict[str, News] = {}

    def run(self) -> None:
        """Sends until `end` is called. An error is raised again there, by whoever waits for this thread."""
        try:
            mlflow_store.create_store()
            self.accepted.wait()
            self.parent = ship.start_sweep(self.plan.content())
            while not self.finish.wait(EVERY_SECONDS):
                self._send_news()
            self._send_news()
        except Exception as error:
            self.error = error

    def _send_news(self) -> None:
        for cell in (*self.plan.sweep.cells, *self.plan.kept):
            folder = folder_of(cell)
            sent = self.sent.get(cell.fingerprint, (0, ""))
            if sent[1] == "done" or not folder.holds_run:
                continue
            news = news_of(folder)
            if news != sent and self._send(folder, cell):
                self.sent[cell.fingerprint] = news

    def _send(self, folder: RunFolder, cell: Cell) -> bool:
        return ship.ship(
            folder, parent=self.parent, axis=self.plan.sweep.axis, arm=cell.arm, seed=cell.seed
        )

    def end(self, *, failed: bool) -> None:
        """Sends the rest and closes the parent run. Raises UserError if there was no usable store."""
        self.finish.set()
        self.join()
        if self.error is not None:
            raise self.error
        ship.end_sweep(self.parent, failed=failed)


def news_of(folder: RunFolder) -> News:
    """Returns the news of a run. The state is read first, so that what was written before it is seen afterwards."""
    state = folder.state
    return folder.num_evaluations(), state if state in ("done", "failed") else ""
