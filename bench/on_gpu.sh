#!/usr/bin/env bash
# Everything that needs a GPU, in one command, on a machine that may have no network:
#
#   bench/on_gpu.sh OUT [STAGE...]
#
# Stages, each under a limit of its own and all under 9 minutes; by default all of them:
#   environment  versions and clocks              tests      every test marked gpu
#   build        the package, with what compiles  tune       tables of the fastest algorithms
#   operators    the suite of single layers       sanitizer  compute-sanitizer over the gpu tests' smallest cases
#   networks     whole networks                   scaling    curves over P, B, C and size
#   hopper       the CUDA wgmma kernel
#   perceptual   perceptual gradients, true and predicted
# OUT gets a log per stage, the results as JSON, plots, summary.txt, and all of it once more as on_gpu.tar.gz.
# A stage that fails or runs out of time leaves the others' results alone; the exit status is then 1. A stage also fails
# where a backend of the project cannot run or a test was skipped for no accepted reason (bench/skipped.py).
# 2: no GPU, or an unknown stage. Python: $PYTHON (default python3), with torch in it. $TUNABLE_OPS_COMMIT names the
# commit where git or the repository is missing.
set -uo pipefail

ALL=(environment build tests tune operators networks perceptual hopper scaling sanitizer)
: "${LIMIT_environment:=30}" "${LIMIT_build:=150}" "${LIMIT_tests:=240}" "${LIMIT_tune:=60}" # seconds
: "${LIMIT_operators:=150}" "${LIMIT_networks:=60}" "${LIMIT_perceptual:=30}" "${LIMIT_hopper:=45}" "${LIMIT_scaling:=60}" "${LIMIT_sanitizer:=90}"
TOTAL=520

[ $# -ge 1 ] || { echo "usage: bench/on_gpu.sh OUT [STAGE...]; stages: ${ALL[*]}" >&2; exit 2; }
mkdir -p "$1" && OUT=$(cd "$1" && pwd) || exit 2
shift
STAGES=("$@")
[ $# -gt 0 ] || STAGES=("${ALL[@]}")
for stage in "${STAGES[@]}"; do
    [[ " ${ALL[*]} " == *" $stage "* ]] || { echo "on_gpu: stage must be one of ${ALL[*]}; got $stage" >&2; exit 2; }
done

cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>"$OUT/no_gpu.log"; then
    echo "on_gpu: this machine has no GPU that $PYTHON's torch can use; nothing was run" >&2
    cat "$OUT/no_gpu.log" >&2
    exit 2
fi
rm -f "$OUT/no_gpu.log"
commit=$(git describe --always --dirty --exclude='*' 2>/dev/null)
export TUNABLE_OPS_COMMIT=${commit:-${TUNABLE_OPS_COMMIT:-unknown}} PYTHONUNBUFFERED=1

# The package as a folder of links, so that it imports whether or not it can be installed here.
SITE=$(mktemp -d)
trap 'rm -rf "$SITE"' EXIT
mkdir "$SITE/tunable_ops"
link_package() {
    ln -sfn "$PWD"/tunable_ops/* "$SITE/tunable_ops/"
    ln -sfn "$PWD/bench" "$SITE/tunable_ops/bench"
    ln -sfn "$PWD/triton_kernels" "$SITE/tunable_ops/triton_kernels"
}
link_package
# `python -m` without the working directory in sys.path, where the package lacks the links (`python -P` needs 3.11).
echo 'import runpy, sys; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)' >"$SITE/run.py"
export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}"
BENCH=("$PYTHON" "$SITE/run.py" tunable_ops.bench --device cuda)

# What was left out, counted; fails where that is not accepted.
check_skipped() { "$PYTHON" "$SITE/run.py" tunable_ops.bench.skipped "$@"; }

run_environment() {
    nvidia-smi
    command -v nvcc ninja compute-sanitizer cuobjdump
    "$PYTHON" -m torch.utils.collect_env
    "$PYTHON" -c 'import sys; sys.path = sys.path[1:]; import torch, triton, tunable_ops
print(torch.__version__, triton.__version__, tunable_ops.__file__)'
}
run_build() {
    "$PYTHON" setup.py --quiet build_ext --inplace
    local code=$?
    link_package
    check_skipped && return $code
}
# Most of their time goes into compiling kernels: a process per core.
run_tests() {
    local parts=$(($(nproc) < 12 ? $(nproc) : 12)) running=() failed=0 files
    mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
    mkdir -p "$OUT/tests"
    for ((i = 1; i <= parts; i++)); do
        "$PYTHON" "$SITE/run.py" pytest -q -o pythonpath="$SITE" -m gpu -p no:cacheprovider --part "$i/$parts" "${files[@]}" \
            >"$OUT/tests/$i.log" 2>&1 &
        running+=($!)
    done
    for process in "${running[@]}"; do wait "$process" || failed=1; done
    wait # TERM ends one of the waits above early
    tail -n 1 "$OUT"/tests/*.log
    grep -h ^FAILED "$OUT"/tests/*.log
    check_skipped "$OUT"/tests/*.log && return $failed
}
run_tune() { "$PYTHON" "$SITE/run.py" tunable_ops.cli autotune --out "$OUT/tune.json"; }
# Runs the benchmark with results in OUT/$1.json.
bench() {
    "${BENCH[@]}" --out "$OUT/$1.json" "${@:2}"
    local code=$?
    check_skipped "$OUT/$1.json" && return $code
}
run_operators() { bench operators --plots "$OUT"; }
run_networks() { bench networks --suite networks; }
run_perceptual() { bench perceptual --suite perceptual; }
run_hopper() {
    bench hopper --cases kind=3x3,1x1 direction=forward dtype=bf16 mode=graph \
        --providers tunable tunable-cuda cuda-hopper --plots "$OUT"
}
run_scaling() { bench scaling --suite scaling --providers tunable grouped-trick p-convolutions --plots "$OUT"; }
run_sanitizer() {
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not here"; return 1; }
    # Without torch's pool every tensor is an allocation of its own, so that reads past its end and of leftovers show.
    local tool failed=0 fill
    mkdir -p "$OUT/sanitizer"
    for tool in memcheck racecheck initcheck; do
        [ -z "$STOPPED" ] || break
        fill=()
        [ $tool != initcheck ] || fill=(--leave-uninitialized)
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" "$SITE/run.py" pytest -q -x \
            -o pythonpath="$SITE" -p no:cacheprovider -m gpu -k sanitizer "${fill[@]}" tests/gpu \
            >"$OUT/sanitizer/$tool.log" 2>&1 || failed=1
        echo "== $tool"
        tail -n 40 "$OUT/sanitizer/$tool.log"
    done
    check_skipped "$OUT"/sanitizer/*.log && return $failed
}

START=$SECONDS
FAILED=()
export -f link_package check_skipped bench $(printf 'run_%s ' "${ALL[@]}")
: >"$OUT/summary.txt"
for stage in "${STAGES[@]}"; do
    limit_name=LIMIT_$stage
    left=$((TOTAL - (SECONDS - START)))
    limit=$((${!limit_name} < left ? ${!limit_name} : left))
    began=$SECONDS
    # Results of an earlier run in the same folder would count as this one's.
    rm -f "$OUT/$stage".{log,json} "$OUT/$stage"_*.png "$OUT/$stage"/*.log
    if [ "$left" -lt 5 ]; then
        verdict="left out: no time left"
        FAILED+=("$stage")
    else
        # An own process group, so that a stage's children end with it. TERM first: pytest then reports what failed, the
        # benchmark keeps what it has, and the stage, which outlives it, sums up.
        SITE=$SITE OUT=$OUT PYTHON=$PYTHON STAGE=$stage BENCH_COMMAND="${BENCH[*]}" timeout --kill-after=20 "$limit" \
            bash -c 'STOPPED= && trap STOPPED=yes TERM; read -ra BENCH <<<"$BENCH_COMMAND"; "run_$STAGE"' \
            >"$OUT/$stage.log" 2>&1
        code=$?
        case $code in
            0) verdict=ok ;;
            124 | 137) verdict="stopped at its limit of $limit s"; FAILED+=("$stage") ;;
            *) verdict="failed with status $code"; FAILED+=("$stage") ;;
        esac
    fi
    skipped=$(grep '^skipped: ' "$OUT/$stage.log" 2>/dev/null)
    printf '%-12s %4d s  %s%s\n' "$stage" $((SECONDS - began)) "$verdict" "${skipped:+; $skipped}" | tee -a "$OUT/summary.txt"
    [ "$verdict" = ok ] || tail -n 15 "$OUT/$stage.log" 2>/dev/null
done
tar -czf "$SITE/on_gpu.tar.gz" -C "$OUT" --exclude=on_gpu.tar.gz . && mv "$SITE/on_gpu.tar.gz" "$OUT/"
[ ${#FAILED[@]} -eq 0 ] || { echo "on_gpu: not all stages ended well: ${FAILED[*]}" >&2; exit 1; }
