"""Where MLflow keeps runs: MLFLOW_TRACKING_URI, or sqlite in the current folder. Its client, and what happens while it is away.

Credentials come from MLflow's own environment variables and are never written or shown.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from mirai_bench.utils.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)


EXPERIMENT = "mirai_bench"


TRAINING = {
    "mlflow.experimentKind": "custom_model_development"
}  # its page opens on the runs, not on traces of chats


PATIENCE_SECONDS = 60.0  # for a locked sqlite file, on top of MLflow's own 20 s an attempt


_away: set[str] = set()  # stores that did not answer, already said


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, or sqlite in the current folder; sqlite paths are absolute, since trials run in folders of their own."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    return (
        f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
        if uri.startswith("sqlite:///")
        else uri
    )


def redact_credentials(text: str) -> str:
    """Without user and password of any address in it."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def create_store() -> str:
    """Called by the driver before any worker starts: a fresh sqlite file opened by several processes is ruined for good.

    Puts the absolute address into this process' environment, for the workers, and returns it. A server that does not answer is
    said once and does not stop a sweep. Raises UserError for an address that MLflow cannot use.
    """
    uri = os.environ["MLFLOW_TRACKING_URI"] = store_uri()
    if uri.startswith(("http://", "https://", "databricks")):
        if not is_reachable(uri):
            warn_unreachable(uri, "no answer")
        return uri
    if not uri.startswith("sqlite:///"):
        raise UserError(
            f"MLFLOW_TRACKING_URI is {redact_credentials(uri)!r}: write the address of a server (http://host:5000), sqlite:///FILE, or leave it unset"
        )
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        try:
            retry_while_locked(lambda: experiment_id(connect(uri), uri))
            with sqlite3.connect(path, timeout=PATIENCE_SECONDS) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # about 3 times cheaper writes
            connection.close()
        except Exception as error:  # MLflow, SQLAlchemy and Alembic each raise their own
            raise UserError(
                f"{path} is not usable as MLflow's store: {redact_credentials(str(error)).splitlines()[0]}. Move it away and replay the runs"
            ) from error
    return uri


def connect(uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault(
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"
    )  # the journal keeps everything: training need not wait
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for results
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar a run
    import mlflow

    for name in ("mlflow.store.db.utils", "mlflow.store.tracking.sqlalchemy_store", "alembic"):
        logging.getLogger(name).setLevel(
            logging.CRITICAL
        )  # they print a traceback for each attempt on a locked file
    return mlflow.MlflowClient(uri)


def is_reachable(uri: str) -> bool:
    """Whether something listens there; asked before each use, since MLflow's own retries would hold up the training."""
    if not uri.startswith(("http://", "https://")):
        return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file()
    try:
        urllib.request.urlopen(re.sub(r"//[^/@]+@", "//", uri).rstrip("/") + "/health", timeout=5).close()
    except urllib.error.HTTPError:
        return True  # a server that wants a login, or a proxy: it is there
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # whether to trust it is MLflow's to decide
    except OSError:
        return False
    return True


def warn_unreachable(uri: str, reason: str) -> None:
    if uri not in _away:
        _away.add(uri)
        log.info(
            f"MLflow at {redact_credentials(uri)} is away ({redact_credentials(reason)}): training goes on and the journals keep everything. "
            "Later runs of this sweep send it, or: python -m mirai_bench.tracking replay RUN…"
        )


def send_or_skip(send: Callable[[MlflowClient, str], Any]) -> Any:
    """send(client, uri); None, said once, when the store is away or refuses: no failure of the tracking may end a training."""
    uri = store_uri()
    if not is_reachable(uri):
        return warn_unreachable(uri, "no answer" if uri.startswith("http") else "there is no such file")
    try:
        answer = retry_while_locked(lambda: send(connect(uri), uri))
    except Exception as error:  # artifact stores raise errors of their own libraries
        return warn_unreachable(
            uri, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
    _away.discard(uri)
    return answer


def retry_while_locked(attempt: Callable[[], Any]) -> Any:
    """Tries again, for about a minute, while another process holds the sqlite file."""
    start, pause = time.monotonic(), 0.25
    while True:
        try:
            return attempt()
        except Exception as error:
            if "database is locked" not in str(error) or time.monotonic() - start > PATIENCE_SECONDS:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def experiment_id(client: MlflowClient, uri: str) -> str:
    """Its id; MLFLOW_EXPERIMENT_NAME is honoured."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        # beside the sqlite file, wherever this was called from; a server has its own artifact store
        beside = (
            Path(uri.removeprefix("sqlite:///")).parent / "mlruns" / name
            if uri.startswith("sqlite:///")
            else None
        )
        try:
            folder = str(beside) if beside else None
            return client.create_experiment(name, artifact_location=folder, tags=TRAINING)
        except Exception:
            found = client.get_experiment_by_name(name)  # another process was first
            if found is None:
                raise
    return found.experiment_id


def children(client: MlflowClient, experiment: str, parent: Run) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs(
            [experiment],
            f"tags.mlflow.parentRunId = '{parent.info.run_id}'",
            max_results=1000,
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def artifact(client: MlflowClient, run: Run, name: str, scratch: Path) -> Path:
    """This artifact as a file: where it lies if that is on this machine (it may not exist), else downloaded into `scratch`."""
    uri = run.info.artifact_uri
    if uri.startswith(("/", "file://")):
        return Path(uri.removeprefix("file://")) / name
    folder = scratch / run.info.run_id
    folder.mkdir(exist_ok=True)
    return Path(client.download_artifacts(run.info.run_id, name, str(folder)))
