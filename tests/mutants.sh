#!/usr/bin/env bash
# Change one module in many small ways, one at a time, and list the changes that its tests do not notice.
#
#   tests/mutants.sh MODULE TESTS [SAMPLE]   for example: s2rm_jax/evaluation/metrics.py tests/evaluation/test_metrics.py
#
# SAMPLE is the number of changes to try, drawn at random; without it, all are tried. It works on a copy of the tracked
# files in build/mutants, so the clone stays as it is. Each change costs one start of pytest. What was found before is
# kept with the results in docs/results/mutation.md.
set -euo pipefail
[[ $# -eq 2 || $# -eq 3 ]] || { sed -n '4s/^# *//p' "$0"; exit 2; }
python=$(realpath --no-symlinks "$(command -v "${PYTHON:-python}")")  # of an environment, relative to this folder
PATH=$(dirname "$python"):$PATH
cd "$(dirname "$0")/.."
copy=build/mutants
rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z | tar --create --null --files-from - | tar --extract --directory "$copy"
cd "$copy"

# Left out: replacements that hardly anybody writes by mistake, such as + by <<, and those of | in annotations.
cat > cosmic-ray.toml <<CONFIG
[cosmic-ray]
module-path = "$1"
timeout = 600.0
excluded-modules = []
test-command = "$python -m pytest -q -x -p no:cacheprovider $2"

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = [
  "core/ReplaceBinaryOperator_.*_(FloorDiv|Mod|Pow|RShift|LShift|BitOr|BitAnd|BitXor)",
  "core/ReplaceBinaryOperator_BitOr_.*",
  "core/ReplaceComparisonOperator_.*_(Is|IsNot)",
]
CONFIG
export PYTHONPATH=$PWD
cosmic-ray init cosmic-ray.toml session.sqlite
cr-filter-operators session.sqlite cosmic-ray.toml
if [[ -n ${3-} ]]; then
  "$python" - "$3" <<'PROGRAM'
import sqlite3, sys

left = "SELECT job_id FROM work_items WHERE job_id NOT IN (SELECT job_id FROM work_results)"
with sqlite3.connect("session.sqlite") as session:
    session.execute(f"CREATE TEMP TABLE dropped AS {left} ORDER BY random() LIMIT -1 OFFSET ?", sys.argv[1:])
    for table in ("mutation_specs", "work_items"):
        session.execute(f"DELETE FROM {table} WHERE job_id IN (SELECT job_id FROM dropped)")
PROGRAM
fi
cosmic-ray baseline cosmic-ray.toml
cosmic-ray exec cosmic-ray.toml session.sqlite
cr-report --surviving-only --show-diff --no-show-output session.sqlite
