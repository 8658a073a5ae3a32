"""`python -m bench.comparison`."""

import sys

from tunable_ops.bench.comparison.cli import main

if __name__ == "__main__":
    sys.exit(main())
