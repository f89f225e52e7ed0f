"""What a record says of the code that made it."""

import subprocess

from mirai_bench.tracking.provenance import content_hash, git_state


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def checkout(folder):
    package = folder / "package"
    package.mkdir()
    (package / "code.py").write_text("x = 1\n")
    (folder / "report.md").write_text("a table\n")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return package


def test_only_changes_of_the_package_make_a_commit_dirty(tmp_path):
    package = checkout(tmp_path)
    git_state.cache_clear()
    clean = git_state(package)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False and "content" not in clean
    (tmp_path / "report.md").write_text("another table\n")
    git_state.cache_clear()
    assert git_state(package) == clean
    (package / "code.py").write_text("x = 2\n")
    git_state.cache_clear()
    assert git_state(package) == clean | {"dirty": True}


def test_a_package_in_a_checkout_of_something_else_has_no_commit_but_a_hash(tmp_path):
    checkout(tmp_path)
    installed = tmp_path / "venv" / "site-packages" / "package"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("x = 1\n")
    git_state.cache_clear()
    state = git_state(installed)
    assert (state["commit"], state["dirty"]) == (None, None)
    assert state["content"] == content_hash(installed) and len(state["content"]) == 12
    (installed / "code.py").write_text("x = 2\n")
    assert content_hash(installed) != state["content"]
