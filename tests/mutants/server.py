"""The server that all mutants share, in a process that may import the package.

Prints its URL, and ends when its input does: also when whoever started it was killed.
"""

from __future__ import annotations

import sys

from oplog.testing import EmbeddedServer

if __name__ == "__main__":
    with EmbeddedServer(fsync=False) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        sys.stdin.read()
