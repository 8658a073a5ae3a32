"""`python -m tunable_ops`, the same as `tunable-ops`."""

import sys

from tunable_ops.cli import main

if __name__ == "__main__":
    sys.exit(main())
