"""`python -m bench`."""

import sys

from tunable_ops.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
