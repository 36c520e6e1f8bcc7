#!/usr/bin/env bash
# Build the source distribution, the wheel from it, and try the wheel in an empty folder with the
# packages of an environment: tools/check_wheel.sh PYTHON
set -euo pipefail
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m pip install --disable-pip-version-check --quiet --target "$scratch/tools" build hatchling
PYTHONPATH="$scratch/tools" "$python" -m build --no-isolation --outdir "$scratch/dist" . >"$scratch/build.log" ||
  { cat "$scratch/build.log" >&2; exit 1; }
"$python" -m pip install --disable-pip-version-check --quiet --no-deps --target "$scratch/installed" \
  "$scratch"/dist/*.whl

mkdir "$scratch/empty"
cd "$scratch/empty"
export PYTHONPATH="$scratch/installed"
run() { "$python" -m memory_layers "$@"; }
where=$("$python" -c 'import memory_layers; print(memory_layers.__file__)')
[[ $where == "$scratch/installed/"* ]] || { echo "the wheel was not used, but $where" >&2; exit 1; }
run --help >/dev/null
run init my_run --examples examples
run show my_run.yaml >/dev/null
run train my_run.yaml --train.steps 2 --train.eval-every 2 --data.max-subjects 20 >/dev/null
run generate runs/my_run/model "The IATA code of" --max-tokens 4 >/dev/null
"$python" examples/airports.py airports
for name in benchmarks tools tests; do
  [ ! -e "$scratch/installed/$name" ] || { echo "the wheel holds $name/" >&2; exit 1; }
done
echo "the wheel trains and generates in an empty folder"
