#!/bin/sh
# Builds the workbench, runs the tests that need a GPU and every measurement on one
# (benchmarks/gpu_*.py), in well under ten minutes:
#
#     benchmarks/gpu.sh [RESULTS]
#
# Nothing is fetched: it takes the machine's own Python ($PYTHON, python3), torch and build tools
# (nanobind, scikit-build-core, CMake, nvcc); what else is missing may lie below a folder in
# PYTHONPATH. The workbench goes into a folder of its own, $TARGET (build/gpu). JSON of each
# measurement and its output go to RESULTS (build/gpu-results).
#
# Exit code 0: all went well; 1: something failed; 2: there is no GPU here, or nothing was built.
set -u
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
TARGET=$(realpath -m "${TARGET:-build/gpu}")
RESULTS=$(realpath -m "${1:-build/gpu-results}")
EACH=${EACH:-200}   # seconds that one measurement may take
TESTS=${TESTS:-150} # and the tests

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
  echo "No GPU can be used here (nvidia-smi finds none): nothing was measured." >&2
  exit 2
fi
nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used --format=csv

mkdir -p "$RESULTS" && rm -f "$RESULTS"/*.json "$RESULTS"/*.txt
started=$(date +%s)
if ! "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps --no-index --upgrade \
  --target "$TARGET" -Cbuild-dir=build/gpu-cmake . >"$RESULTS/build.txt" 2>&1; then
  tail -n 30 "$RESULTS/build.txt" >&2
  echo "The workbench could not be built: $RESULTS/build.txt" >&2
  exit 2
fi
echo "built in $(($(date +%s) - started)) s"

# Without the current folder, in which sources have the names of packages.
export PYTHONPATH="$TARGET:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
failed=0
table="$RESULTS/table.txt"
: >"$table"

# Runs a command for at most some seconds and notes how it ended: LABEL SECONDS COMMAND…
measure() {
  label=$1 most=$2
  shift 2
  echo
  echo "== $label"
  began=$(date +%s)
  timeout "$most" "$@" >"$RESULTS/$label.txt" 2>&1
  code=$?
  cat "$RESULTS/$label.txt"
  outcome=ok
  [ $code -eq 124 ] && outcome="took more than $most s"
  [ $code -ne 0 ] && [ $code -ne 124 ] && outcome="failed ($code)"
  [ $code -ne 0 ] && failed=1
  said=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["summary"])' \
    "$RESULTS/$label.json" 2>/dev/null)
  printf '%-20s %-22s %5s s  %s\n' "$label" "$outcome" "$(($(date +%s) - began))" "$said" >>"$table"
}

measure tests "$TESTS" "$PYTHON" -m pytest -q -m gpu tests
for script in benchmarks/gpu_*.py; do
  label=$(basename "$script" .py)
  measure "$label" "$EACH" "$PYTHON" "$script" --json "$RESULTS/$label.json"
done

echo
cat "$table"
echo "JSON and output: $RESULTS; $(($(date +%s) - started)) s in all"
exit $failed
