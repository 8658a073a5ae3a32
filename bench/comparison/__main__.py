"""Say what the former command `python -m bench.comparison` is now called."""

import sys

print("error: this command is now called python -m bench --suite comparison --runs DIR", file=sys.stderr)
sys.exit(2)
