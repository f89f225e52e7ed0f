"""The artifacts of MLflow's runs: plans, records and grids, on this machine or on a server."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from mirai_bench.tracking.mlflow_store import sqlite_file, store_uri
from mirai_bench.utils.files import write_bytes

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def artifact(client: MlflowClient, run: Run, name: str, scratch: Path) -> Path:
    """Returns an artifact as a file.

    It is the artifact itself if that lies on this machine (it may not exist), or else a copy in
    `scratch`.
    """
    folder = artifacts_here(run)
    return download(client, run.info.run_id, name, scratch) if folder is None else folder / name


def artifacts_here(run: Run) -> Path | None:
    """Returns the folder of a run's artifacts, or None if they lie on a server.

    MLflow notes the whole path. If the project's folder was moved since then, the artifacts of an
    sqlite store are still beside its file.
    """
    uri = run.info.artifact_uri
    if not uri.startswith(("/", "file://")):
        return None
    folder = Path(urllib.parse.unquote(uri.removeprefix("file://")) if uri.startswith("file:") else uri)
    store = sqlite_file(store_uri())
    if not folder.exists() and store is not None and "mlruns" in folder.parts:
        last = len(folder.parts) - 1 - folder.parts[::-1].index("mlruns")
        return store.parent.joinpath(*folder.parts[last:])
    return folder


def artifact_sizes(client: MlflowClient, run: Run, *folders: str) -> dict[str, int]:
    """Returns the size of each artifact at the top and in these folders, by its path."""
    here = artifacts_here(run)
    if here is not None:
        files = [path for folder in ("", *folders) for path in (here / folder).glob("*") if path.is_file()]
        return {str(path.relative_to(here)): path.stat().st_size for path in files}
    found = [info for folder in (None, *folders) for info in client.list_artifacts(run.info.run_id, folder)]
    return {info.path: info.file_size or 0 for info in found}


def send_artifact(client: MlflowClient, run: Run, name: str, content: str | Path) -> None:
    """Stores a text, or a copy of a file, as an artifact. `name` is its path, at most one folder deep."""
    here = artifacts_here(run)
    if here is not None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(here / name, content.read_bytes() if isinstance(content, Path) else content.encode())
    elif isinstance(content, Path):
        folder = Path(name).parent
        client.log_artifact(run.info.run_id, str(content), None if folder == Path() else str(folder))
    else:
        client.log_text(run.info.run_id, content, name)


def download(client: MlflowClient, run_id: str, name: str, scratch: Path) -> Path:
    """Returns a copy of an artifact, in a folder of `scratch` that is the run's own."""
    folder = scratch / run_id
    folder.mkdir(exist_ok=True)
    return Path(client.download_artifacts(run_id, name, str(folder)))
