"""Servers as a user starts them, on 127.0.0.1: MLflow's, and PostgreSQL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from mirai_bench.tracking import mlflow_store

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)  # Debian's


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class MlflowServer:
    """`mlflow server` with these words, on `port`; it can be killed and started again."""

    def __init__(self, words, port, environment=None, log=None):
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.words = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            *words,
            "--host=127.0.0.1",
            f"--port={port}",
            "--workers=1",
        ]
        self.environment = os.environ | quiet | (environment or {})
        self.uri, self.log = f"http://127.0.0.1:{port}", log or Path(os.devnull)

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.words, env=self.environment, start_new_session=True, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 120
        while not mlflow_store.is_reachable(self.uri):
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.3)

    def kill(self):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *error):
        self.kill()


@contextmanager
def postgres(password):
    """A PostgreSQL of its own, with user and database `mlflow` → its port.

    It refuses to run as root: then it is Debian's `postgres`.
    """
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text(password)
        for path in (folder, folder / "password") if user else ():
            shutil.chown(path, "postgres")

        def run(program, *words):
            done = subprocess.run(
                [POSTGRES / program, *words],
                cwd=folder,
                env=os.environ | {"PGPASSWORD": password},
                capture_output=True,
                text=True,
                **user,
            )
            assert done.returncode == 0, done.stderr

        data = folder / "data"
        run(
            "initdb",
            "-D",
            data,
            "-U",
            "mlflow",
            "--auth=scram-sha-256",
            f"--pwfile={folder / 'password'}",
            "--no-sync",
        )
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "-D", data, "-l", folder / "log", "-o", options, "-w", "start")
        try:
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow")
            yield port
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
