"""Sends the journals of a sweep's runs to MLflow while they grow, and its page when they have ended."""

from __future__ import annotations

import logging
import threading

from mirai_bench.sweep.page import import_scripts, send_summary
from mirai_bench.sweep.plan import Plan, folder_of
from mirai_bench.tracking import mlflow_store, ship

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0  # between two looks at the run folders
News = tuple[int, str]
"""Number of evaluations of a run, and how it ended: "done", "failed" or "". It is sent again when
its news changes."""


class Shipper(threading.Thread):
    """Sends every cell's news at each evaluation, and at the end the sweep's own page.

    The store is made while Ray starts, and nothing is sent before the sweep is accepted. There is
    one sender for all trials: no trial imports MLflow or waits for it, sqlite has one writer, and
    credentials stay in this process.
    """

    def __init__(self, plan: Plan) -> None:
        # A daemon, so that a command whose check failed does not wait for `accepted` forever.
        super().__init__(daemon=True)
        self.plan = plan
        self.parent: str | None = None  # id of the sweep's own run in MLflow
        self.error: Exception | None = None
        self.opened = threading.Event()  # the store is known to be of use, or not
        self.accepted = threading.Event()
        self.ended = threading.Event()  # all trials
        self.sent: dict[str, News] = {}  # by fingerprint

    def accept(self) -> None:
        """Makes the plan valid, for tables and for MLflow. Called once the check is passed."""
        if not self.accepted.is_set():
            self.plan.write()
            self.accepted.set()

    def check(self) -> None:
        """Waits until the store is made. Raises UserError if it is of no use."""
        self.opened.wait()
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        """Sends until `end` is called, and then the rest."""
        try:
            mlflow_store.create_store()
        except Exception as error:
            self.error = error
            return
        finally:
            self.opened.set()
        try:
            self.accepted.wait()
            self.parent = ship.start_sweep(self.plan.content())
            if self.parent is not None:
                import_scripts()  # now, while the trials train, and not when all waits for the page
            while not self.ended.wait(EVERY_SECONDS):
                self._send_news()
            self._send_news()  # what was written since the last look
            states = [folder_of(cell).state for cell in self.plan.sweep.cells]
            ship.end_sweep(self.parent, failed="failed" in states)
            if self.parent is not None:
                send_summary(self.plan, self.parent)
        except Exception as error:
            self.error = error

    def _send_news(self) -> None:
        for cell in (*self.plan.sweep.cells, *self.plan.kept):
            folder = folder_of(cell)
            sent = self.sent.get(cell.fingerprint, (0, ""))
            if sent[1] == "done" or not folder.holds_run:
                continue
            # The state is read first, so that evaluations written before the end are seen with it.
            state = folder.state
            news = (folder.journal.counts().evaluations, state if state in ("done", "failed") else "")
            axis = self.plan.sweep.axis
            # What MLflow did not take, because it is away, is tried again at the next look.
            if news != sent and ship.ship(
                folder, parent=self.parent, axis=axis, arm=cell.arm, seed=cell.seed
            ):
                self.sent[cell.fingerprint] = news

    def end(self) -> None:
        """Says that all trials have ended. What is left is sent meanwhile: `close` waits for it."""
        self.ended.set()

    def close(self) -> None:
        """Waits until everything is sent. What goes wrong is said, and takes nothing with it."""
        self.end()
        self.join()
        if self.error is not None:
            reason = mlflow_store.redact_credentials(str(self.error))
            log.warning(f"not everything was sent to MLflow ({reason}). {mlflow_store.REPLAY}")
