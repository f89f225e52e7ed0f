"""Places in the repository that tests read."""

import shutil
import subprocess
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
FIXTURES = TESTS / "fixtures"
RECORDS = FIXTURES / "records.jsonl"


def repository_files(*, untracked: bool = True) -> list[str]:
    """Returns the names of the repository's files that exist, without what git ignores."""
    words = ["git", "ls-files", "--cached"]
    if untracked:
        words += ["--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def copy_repository(folder: Path, *, untracked: bool = True) -> None:
    """Copies the repository's files into `folder`."""
    for name in repository_files(untracked=untracked):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
