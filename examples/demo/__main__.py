"""`python -m examples.demo`: prints the demonstration on standard output.

Exit code 0: everything was proved. 1: something was not, and standard error says what. 130 and
143: ended by a signal. Server, processes and files are removed in each of these cases.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import signal
import sys
from collections.abc import Sequence

import sqlalchemy as sa

from examples.demo.narration import Narrator, ProofFailedError
from examples.demo.story import QUICK, Sizes, tell
from oplog.errors import OplogError


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell the story as the command line asks; return the exit code."""
    asked = _parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that the terminal cannot show must not end the demonstration.
        sys.stdout.reconfigure(errors="backslashreplace")
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    narrator = Narrator(sys.stdout, colours)
    # These signals have to clean up, as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        sizes = QUICK if asked.quick else Sizes()
        tell(narrator, sizes=sizes, seed=asked.seed, bundled=asked.bundled)
    except KeyboardInterrupt:
        return _stop("interrupted; everything was removed", code=128 + signal.SIGINT)
    except ProofFailedError as error:
        return _stop(f"NOT PROVED: {error}\nrun again with --seed {asked.seed}", code=1)
    except BrokenPipeError:
        # The reader closed the pipe; the interpreter must not fail when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _stop("the output was closed; everything was removed", code=1)
    except (OplogError, sa.exc.SQLAlchemyError, OSError) as error:
        return _stop(f"the demonstration failed in step {narrator.steps}: {error}", code=1)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="Log real transactions, rebuild the tables from the log alone, compare.",
    )
    parser.add_argument("--quick", action="store_true", help="every step, on little data")
    parser.add_argument(
        "--bundled", action="store_true", help="use the bundled history even in a git checkout"
    )
    parser.add_argument(
        "--seed", type=int, default=random.randrange(10**6), help="for everything random"
    )
    return parser.parse_args(arguments)


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _stop(text: str, *, code: int) -> int:
    print(f"\n{text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
