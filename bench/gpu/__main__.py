"""`python -m tunable_ops.bench.gpu OUT PLAN [STAGE...]`, which bench/on_gpu.sh calls."""

import sys

from tunable_ops.bench.gpu.run import main

if __name__ == "__main__":
    sys.exit(main())
