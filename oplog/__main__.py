"""`python -m oplog`: the command line, for where the console script is not on the path.

Holds one call, and must not know more. The hard thing is the guard: a process that starts
others by importing this module must not run the command once more.
"""

import sys

from oplog.cli import main

if __name__ == "__main__":
    sys.exit(main())
