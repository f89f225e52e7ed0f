"""From the journals of a sweep's runs to MLflow, while they grow."""

from __future__ import annotations

import threading
from pathlib import Path

from mirai_bench.config.sweep_file import Cell
from mirai_bench.sweep.plan import Plan, run_dir_of
from mirai_bench.tracking import ship as tracking

EVERY_SECONDS = 2.0


class Shipper(threading.Thread):
    """Sends every cell's news at each evaluation. The store is made while Ray starts; nothing is sent before the sweep is `accepted`.

    One sender for all trials: none of their processes imports MLflow or waits for it, sqlite has one writer, credentials stay here.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(daemon=True)
        self.plan = plan
        self.parent: str | None = None
        self.error: Exception | None = None
        self.accepted = threading.Event()
        self.finish = threading.Event()
        self.sent: dict[
            Path, tuple[int, bool]
        ] = {}  # run folder → (evaluations and failures sent, whether that was all)

    def run(self) -> None:
        try:
            tracking.create_store()
            self.accepted.wait()
            self.parent = tracking.start_sweep(self.plan.content())
            while not self.finish.wait(EVERY_SECONDS):
                self._send_news()
            self._send_news()
        except Exception as error:  # raised again in end(), by whoever waits for this thread
            self.error = error

    def _send_news(self) -> None:
        for cell in (*self.plan.sweep.cells, *self.plan.kept):
            run_dir = run_dir_of(cell)
            before = self.sent.get(run_dir, (0, False))
            if before[1] or not (run_dir / "config.json").is_file():
                continue
            now = _news(run_dir)
            if now != before and self._send(run_dir, cell):
                self.sent[run_dir] = now

    def _send(self, run_dir: Path, cell: Cell) -> bool:
        return tracking.ship(
            run_dir, parent=self.parent, axis=self.plan.sweep.axis, arm=cell.arm, seed=cell.seed
        )

    def end(self, *, failed: bool) -> None:
        """Sends the rest and closes the parent run. Raises UserError where there was no usable store."""
        self.finish.set()
        self.join()
        if self.error is not None:
            raise self.error
        tracking.end_sweep(self.parent, failed=failed)


def _news(run_dir: Path) -> tuple[int, bool]:
    ended = (run_dir / "done.json").is_file()  # asked first: what is written before it is then seen below
    journal = run_dir / "journal.jsonl"
    evaluations = journal.read_bytes().count(b'"kind": "evaluation"') if journal.is_file() else 0
    return evaluations + (run_dir / "failed.json").is_file(), ended
