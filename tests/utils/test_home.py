"""What libraries ask of a user, who may have neither a home nor a name."""

import getpass
import os
from pathlib import Path

import pytest

from mirai_bench.utils.home import ensure_home


@pytest.mark.parametrize("has_home", [True, False])
def test_a_user_without_a_home_and_a_name_is_given_both(tmp_path, monkeypatch, has_home):
    """As a container has it that is started with any number as its user."""

    def nobody(*_):
        raise KeyError("getpwuid(): uid not found")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    if not has_home:
        monkeypatch.delenv("HOME")
    ensure_home(tmp_path)
    assert Path.home() == (Path("/home/me") if has_home else tmp_path)
    assert getpass.getuser() == str(os.getuid())
