"""`python -m tests.real.working NAME prepare|work URL`: what a program does, in its environment."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from tests.real.programs import BY_NAME


def main(arguments: Sequence[str]) -> int:
    """Make the program's tables, without the log; or do its work, with the log in the URL."""
    name, step, url = arguments
    module = importlib.import_module(BY_NAME[name].module)
    {"prepare": module.prepare, "work": module.work}[step](url)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
