"""Ray: whose address, which folder, and what of this process's environment it sees. None is started."""

import os
import platform
import socket
import subprocess
import sys
import tempfile

import pytest
import ray
from ray.tune.execution import class_cache

from mirai_bench.sweep import ray_session
from mirai_bench.sweep.driver import KEPT_MEMORY, WORKERS
from mirai_bench.sweep.ray_session import check_address, private_folder, session
from mirai_bench.utils.errors import UserError


@pytest.fixture
def started(monkeypatch):
    """Returns the options of each start of Ray, of which there is none."""
    calls = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_no_credentials_reach_the_environment_of_trials(started, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.setenv(name, "SeCrEt")
    with session(None, {}):
        seen = []
        monkeypatch.setattr(ray, "remote", lambda **options: seen.append(options) or (lambda kind: kind))
        class_cache._ActorClassCache().get(object)
    assert seen and "SeCrEt" not in str(seen)


def test_a_ray_of_ours_has_a_folder_and_a_token_of_its_own(started, monkeypatch):
    monkeypatch.setenv("HOME", "/nonexistent")
    with session(None, {}):
        folder = started[0]["_temp_dir"]
        # Ray opens its own folder to everybody, so that it is the one above that is closed.
        assert os.stat(os.path.dirname(folder)).st_mode & 0o777 == 0o700
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert not os.path.exists(os.path.dirname(folder))
    assert started[0]["address"] == "local"
    assert "RAY_AUTH_TOKEN" not in os.environ, "what is started later may belong to another cluster"


def test_a_token_that_the_user_has_set_is_kept(started, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    with session(None, {}):
        assert os.environ["RAY_AUTH_TOKEN"] == "mine"
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "file")
    with session(None, {}):
        assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("length", [5, 60, 200])
def test_the_folder_is_short_enough_for_a_socket(tmp_path, monkeypatch, variable, length):
    place = "/tmp" if length == 5 else str(tmp_path / ("x" * length))
    os.makedirs(place, exist_ok=True)
    monkeypatch.setenv(variable, place)
    monkeypatch.setattr(tempfile, "tempdir", None)  # where Python keeps what it found
    session_name = "session_2026-11-26_13-06-38_825046_1234567"
    with private_folder() as folder:
        path = str(folder / session_name / "sockets" / "plasma_store")
        assert len(path) <= 107
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_without_any_place_the_message_names_the_variable(monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ray_session.tempfile, "mkdtemp", full)
    with pytest.raises(UserError, match="RAY_TMPDIR=FOLDER"), private_folder():
        pass


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    "address", ["nonsense", "host:", ":6379", "host:port", "ray://", "ray://host", "a b"]
)
def test_what_is_no_address_is_refused(address, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"is no address of a Ray cluster: write auto, HOST:PORT"):
        check_address(address)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_where_nobody_listens_is_known_at_once_and_where_the_address_came_from(form, monkeypatch):
    address = form.format(free_port())
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=r"\(from RAY_ADDRESS\).* unset RAY_ADDRESS"):
        check_address(address)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(UserError, match="leave out --address"):
        check_address(address)


def test_where_somebody_listens_ray_is_asked():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")
    check_address("auto")


# Takes twenty tensors of 4 MB and frees them a hundred times, as steps do. Prints the page faults of each.
STEPS = """
import resource
for _ in range(3): [bytearray(4 << 20) for _ in range(20)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100): [bytearray(4 << 20) for _ in range(20)]
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 100)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is that of another C library")
def test_a_trial_keeps_the_memory_that_a_step_has_freed():
    def faults(environment):
        bare = {name: value for name, value in os.environ.items() if name not in KEPT_MEMORY}
        # A trial is a child of Ray's processes, which are children of the driver.
        words = ["sh", "-c", f"{sys.executable} -c '{STEPS}'; true"]
        done = subprocess.run(words, env=bare | environment, capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert faults(WORKERS) < 10 < faults({})
