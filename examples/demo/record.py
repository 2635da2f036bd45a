"""Writes the newest commits of this checkout in the format of the bundled history.

`python -m examples.demo.record 40` prints it; the file is `examples/demo/history.jsonl`.
"""

from __future__ import annotations

import sys

from examples.demo.history import ROOT, NoHistoryError, read_checkout, record_history

EVERY = 3


def main() -> int:
    """Write the newest commits, as many as the argument says."""
    try:
        history = read_checkout(ROOT, limit=int(sys.argv[1]) if len(sys.argv) > 1 else 40)
    except NoHistoryError as error:
        print(error, file=sys.stderr)
        return 1
    for line in record_history(history, every=EVERY):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
