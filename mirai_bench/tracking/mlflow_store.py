"""MLflow's store: where it is, its client, and what happens while it is away.

The store is MLFLOW_TRACKING_URI, or sqlite in the current folder. Credentials come from MLflow's
own environment variables and are never written or shown.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import shlex
import sqlite3
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirai_bench.utils.errors import UserError
from mirai_bench.utils.files import atomic, locked, remove_leftovers
from mirai_bench.utils.home import ensure_home

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

EXPERIMENT = "mirai_bench"
MOST_POINTS = 1000  # in one log_batch: MLflow's limit
# With this tag the page of the experiment opens on its runs, and not on traces of chats.
TRAINING = {"mlflow.experimentKind": "custom_model_development"}
SQLITE = "sqlite:///"
HTTP = ("http://", "https://")
HEALTH_SECONDS = 5  # timeout of the question whether a server is there
PATIENCE_SECONDS = 60.0  # for a locked sqlite file, on top of MLflow's own 20 s per attempt
LONGEST_PAUSE = 5.0  # seconds between two attempts
# Settings of MLflow's client, unless the user has set them. Few retries, because the journal keeps
# everything and training need not wait; nothing on stdout, which is for results; no progress bar
# per run.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# These loggers print a traceback for each attempt on a locked file.
NOISY_LOGGERS = ("mlflow.store.db.utils", "mlflow.store.tracking.sqlalchemy_store", "alembic")

REPLAY = "Later runs of this sweep send it, or: python -m mirai_bench.tracking replay RUN…"
# What MLflow and Alembic say of a database of another version.
OTHER_VERSION = ("out-of-date database schema", "Can't locate revision")
# What SQLite says of a full disk.
FULL = ("database or disk is full", "disk I/O error")

_away: set[str] = set()  # stores about which a warning has been logged


# ---- the address


def store_uri() -> str:
    """Returns the address of the store.

    The path of an sqlite file is absolute, because trials run in other folders.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    path = sqlite_file(uri)
    return uri if path is None else f"{SQLITE}{path.absolute()}"


def sqlite_file(uri: str) -> Path | None:
    """Returns the file of an sqlite store, or None for another store."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def redact_credentials(text: str) -> str:
    """Returns the text without the user, password and query of any address in it."""
    # A password may hold every character, an @ and a / among them: all up to the last @ goes.
    text = re.sub(r"//\S+@", "//", text)
    text = re.sub(r"(^|[\s'\"(])[^\s'\"(:/@]+:[^\s/]\S*@", r"\1", text)  # user:password@host
    return re.sub(r"\?[^\s?'\")]+=[^\s'\")]*", "?…", text)


def is_reachable(uri: str) -> bool:
    """Tells whether the store answers.

    Asked before each use, because MLflow's own retries would hold up training.
    """
    path = sqlite_file(uri)
    if path is not None:
        return path.is_file()
    if not uri.startswith(HTTP):
        return True
    try:
        parts = urllib.parse.urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]
        address = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/health"
        urllib.request.urlopen(address, timeout=HEALTH_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # a server that wants a login, or a proxy
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # MLflow decides whether to trust it
    except (OSError, ValueError, http.client.HTTPException):  # no address at all, for instance
        return False
    return True


def ui_command() -> str:
    """Returns the command that shows the store in a browser, or the address of the server."""
    uri = store_uri()
    path = sqlite_file(uri)
    # Without the option MLflow may show the folder mlruns, which is another kind of store.
    return redact_credentials(uri) if path is None else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


# ---- the client


def create_store() -> str:
    """Creates the store if it is an sqlite file, and returns its address.

    The driver calls this before any worker starts, because a fresh sqlite file is damaged if
    several processes open it. The absolute address goes into this process's environment, for the
    workers. If a server does not respond, a warning is logged once and the sweep continues. Raises
    UserError for an address that MLflow cannot use.
    """
    # 1. The address, for this process and those that it starts.
    uri = store_uri()
    os.environ["MLFLOW_TRACKING_URI"] = uri
    # 2. A server makes its own store.
    path = sqlite_file(uri)
    if uri.startswith((*HTTP, "databricks")):
        if not is_reachable(uri):
            warn_unreachable(uri, "no answer")
        return uri
    if path is None:
        raise UserError(
            f"MLFLOW_TRACKING_URI is {redact_credentials(uri)!r}: write the address of a server "
            "(http://host:5000), sqlite:///FILE, or leave it unset"
        )
    # 3. An sqlite file gets its tables from MLflow, one process at a time.
    with locked(Path(f"{path}.lock"), wait=True):
        try:
            if path.exists():
                retry_while_locked(lambda: experiment_id(connect(uri), uri))
            else:
                _create_sqlite(path, uri)
        except UserError:
            raise
        except Exception as error:  # MLflow, SQLAlchemy and Alembic each raise their own
            reason = redact_credentials(str(error)).splitlines()[0]
            advice = "move it away and replay the runs"
            if any(word in str(error) for word in OTHER_VERSION):
                advice = (
                    "it was made by another version of MLflow: make a copy and run `mlflow db upgrade "
                    f"{SQLITE}{path}`, or install the newer version"
                )
            elif any(word in str(error) for word in FULL):
                advice = "make room on its disk and run the same command again"
            raise UserError(f"{path} is not usable as MLflow's store ({reason}): {advice}") from error
    return uri


def _create_sqlite(path: Path, uri: str) -> None:
    """Creates the sqlite file of a store: with all of its tables, or not at all.

    MLflow cannot go on with a file of which it has made some tables when the disk was full.
    """
    remove_leftovers(path)
    if "?" in str(path):  # what follows is an option for SQLAlchemy, which then names the file itself
        experiment_id(connect(uri), uri)
    else:
        with atomic(path) as temporary:
            experiment_id(connect(f"{SQLITE}{temporary.absolute()}"), uri)
    # The file of another project keeps what it was made with.
    with sqlite3.connect(path, timeout=PATIENCE_SECONDS) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # writes cost a third
    connection.close()


def connect(uri: str) -> MlflowClient:
    """Returns a client of the store."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    ensure_home(Path.cwd())
    import mlflow

    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow.MlflowClient(uri)


def warn_unreachable(uri: str, reason: str) -> None:
    """Logs once that a store is away, and how its runs are sent later."""
    if uri not in _away:
        _away.add(uri)
        log.warning(
            f"MLflow at {redact_credentials(uri)} is away ({redact_credentials(reason)}): training "
            f"continues and the journals keep everything. {REPLAY}"
        )


def send_or_skip(send: Callable[[MlflowClient, str], Any]) -> Any:
    """Returns send(client, uri), or None, with one warning, if the store is away or refuses.

    No failure of the tracking may end a training.
    """
    uri = store_uri()
    if not is_reachable(uri):
        return warn_unreachable(uri, "no answer" if uri.startswith("http") else "there is no such file")
    try:
        answer = retry_while_locked(lambda: send(connect(uri), uri))
    except Exception as error:  # artifact stores raise errors of their own libraries
        reason = str(error).partition("\n")[0]
        return warn_unreachable(uri, f"{type(error).__name__}: {reason}")
    _away.discard(uri)
    return answer


def retry_while_locked(attempt: Callable[[], Any]) -> Any:
    """Returns attempt(). Retries for about a minute while another process holds the sqlite file."""
    start = time.monotonic()
    pause = 0.25
    while True:
        try:
            return attempt()
        except Exception as error:
            waited = time.monotonic() - start
            if "database is locked" not in str(error) or waited > PATIENCE_SECONDS:
                raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


# ---- what is in the store


def experiment_id(client: MlflowClient, uri: str) -> str:
    """Returns the id of the project's experiment, or of the one that MLFLOW_EXPERIMENT_NAME names.

    The experiment is created if there is none. The artifacts of an sqlite store lie next to its
    file, wherever this was called from; a server has its own artifact store.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        path = sqlite_file(uri)
        folder = None if path is None else str(path.parent / "mlruns" / name)
        try:
            return client.create_experiment(name, artifact_location=folder, tags=TRAINING)
        except Exception:
            found = client.get_experiment_by_name(name)  # another process was first
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"MLflow's experiment {name!r} was deleted: restore it with `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`, or set MLFLOW_EXPERIMENT_NAME to another name"
        )
    return found.experiment_id


def children(client: MlflowClient, experiment: str, parent: Run) -> Iterator[Run]:
    """Yields the runs of a parent run, page by page."""
    query = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    token = None
    while True:
        page = client.search_runs([experiment], query, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
