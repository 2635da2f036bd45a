"""`python -m oplog`: the command line, if the console script is not on the path.

The guard is needed: `multiprocessing` imports this module in the processes that it starts, and
they must not run the command again.
"""

import sys

from oplog.cli import main

if __name__ == "__main__":
    sys.exit(main())
