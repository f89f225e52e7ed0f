"""Ray of a sweep: a cluster that is joined, or a Ray of our own on this machine, closed to others."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.tune.execution import class_cache

from mirai_bench.utils.errors import UserError

# Of Ray's object store, through which only configurations travel. By default it takes a third of
# the memory.
OBJECT_STORE_BYTES = 128 * 2**20
# Ray's sockets lie up to 85 characters below its folder, and a socket's path has at most 107.
LONGEST_FOLDER = 20
TOKEN = secrets.token_hex(32)  # one for the whole process, because Ray keeps the first that it sees
ADDRESS_SECONDS = 10  # timeout of the question whether anybody is at an address


@contextlib.contextmanager
def session(address: str | None, environment: dict[str, str]) -> Iterator[None]:
    """Joins the cluster at `address`, or starts Ray on this machine and stops it afterwards.

    A session that is running in this process is used and left running. Raises UserError if Ray does
    not start.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    # Tune would write credentials into the environment of each trial, which Ray's logs hold. Trials
    # need none: whatever is sent to a store is sent from here.
    class_cache.ENV_VARS_TO_PROPAGATE -= {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")
    }
    with contextlib.ExitStack() as stack:
        if address:
            check_address(address)
            # Workers of a cluster do not inherit this process's environment, those of a local Ray do.
            options: dict[str, Any] = {"address": address, "runtime_env": {"env_vars": environment}}
        else:
            # "local" and not "auto", which would join whatever Ray runs on this machine.
            options = {"address": "local", "include_dashboard": False}
            options["object_store_memory"] = OBJECT_STORE_BYTES
            options["_temp_dir"] = str(stack.enter_context(private_folder()))
            # Ray listens on all addresses of this machine, and lets in whoever has its token. One of
            # this process's own lies in no file that others could read. What this process starts later
            # inherits none: it may belong to a cluster with another token.
            if not {"RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"} & os.environ.keys():
                os.environ["RAY_AUTH_TOKEN"] = TOKEN
                stack.callback(os.environ.pop, "RAY_AUTH_TOKEN", None)
        try:
            ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
        except Exception as error:  # a bare one if it has not started within 30 s, as on a busy machine
            where = f" at {address}{_origin(address)}" if address else ""
            raise UserError(f"Ray did not start{where}: {str(error).splitlines()[0]}") from None
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Makes a folder for Ray's sockets and logs that nobody else can enter, and removes it afterwards.

    It is in $RAY_TMPDIR or $TMPDIR, or in /tmp if they are too long for a socket's path.
    """
    places = [os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp"]
    place = next(place for place in places if (place and len(place) <= LONGEST_FOLDER) or place == "/tmp")
    try:
        folder = tempfile.mkdtemp(prefix="ray-", dir=place)  # with mode 0700
    except OSError as error:
        raise UserError(
            f"Ray has no place for its sockets ({error}): write RAY_TMPDIR=FOLDER, of at most "
            f"{LONGEST_FOLDER} characters, that you can write in"
        ) from None
    try:
        yield Path(folder) / "r"  # Ray opens its own folder to everybody (0777), but not the one above
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_address(address: str) -> None:
    """Raises UserError if nobody is at the address of a cluster. Ray itself would ask for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local") or ("://" in address and not address.startswith("ray://")):
        return
    if not host or not port.isdigit():
        form = "write auto, HOST:PORT or ray://HOST:PORT"
        raise UserError(f"{address!r}{_origin(address)} is no address of a Ray cluster: {form}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ADDRESS_SECONDS).close()
    except (OSError, OverflowError) as error:
        unset = "unset RAY_ADDRESS" if _origin(address) else "leave out --address"
        raise UserError(
            f"No Ray cluster is at {address}{_origin(address)} ({error}): start it, or {unset} to train on "
            "this machine"
        ) from None


def _origin(address: str) -> str:
    return " (from RAY_ADDRESS)" if os.environ.get("RAY_ADDRESS") == address else ""
