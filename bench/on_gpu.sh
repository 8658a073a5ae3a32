#!/usr/bin/env bash
# What a machine with a GPU is asked to do, in one command under nine minutes; it may have no network.
#
#   bench/on_gpu.sh OUT first  [STAGE...]   environment smoke targets networks counters tests racecheck
#   bench/on_gpu.sh OUT second [STAGE...]   environment tune targets: measures the table of this GPU, and the targets with it
#   bench/on_gpu.sh OUT first --stand-in    the same on a CPU with tiny shapes, as a rehearsal
#
# OUT gets at most 8 files, written as results come in: summary.txt, logs, and results for `python -m bench --from`.
# bench/gpu/plan.py says what every stage runs and how long it may take. Where a CUDA library is missing, it is built
# first. The exit status is 1 if a stage failed, ran out of time, or left out what it must not; 2 without a GPU, or for
# wrong arguments. Python: $PYTHON (default python3), with torch in it. $TUNABLE_OPS_COMMIT names the commit where git or
# the repository is missing.
set -uo pipefail

[ $# -ge 2 ] || { echo "usage: bench/on_gpu.sh OUT first|second [STAGE...] [--stand-in]" >&2; exit 2; }
mkdir -p "$1" && OUT=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
if [[ " $* " != *" --stand-in "* ]]; then
    if ! said=$("$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>&1); then
        echo "on_gpu: this machine has no GPU that $PYTHON's torch can use; nothing was run" >&2
        [ -z "$said" ] || echo "$said" >&2
        exit 2
    fi
fi
commit=$(git describe --always --dirty --exclude='*' 2>/dev/null)
export TUNABLE_OPS_COMMIT=${commit:-${TUNABLE_OPS_COMMIT:-unknown}} PYTHONUNBUFFERED=1

# The package as a folder of links, so that it imports whether or not it can be installed here.
SITE=$(mktemp -d)
trap 'rm -rf "$SITE"' EXIT
mkdir "$SITE/tunable_ops"
ln -sfn "$PWD"/tunable_ops/* "$SITE/tunable_ops/"
ln -sfn "$PWD/bench" "$SITE/tunable_ops/bench"
ln -sfn "$PWD/triton_kernels" "$SITE/tunable_ops/triton_kernels"
# `python -m` without the working directory in sys.path, where the package lacks the links (`python -P` needs 3.11).
echo 'import runpy, sys; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)' >"$SITE/run.py"
export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}" TUNABLE_OPS_RUN="$SITE/run.py"
# In the background, so that a signal to this script reaches the plan, which then ends its processes.
"$PYTHON" "$SITE/run.py" tunable_ops.bench.gpu "$OUT" "$@" &
running=$!
trap 'kill -TERM $running' INT TERM
wait $running
code=$?
while kill -0 $running 2>/dev/null; do wait $running; code=$?; done
exit $code
