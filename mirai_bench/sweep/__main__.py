import sys

from ..cli import run
from .command import command

if __name__ == "__main__":
    sys.exit(run(command))
