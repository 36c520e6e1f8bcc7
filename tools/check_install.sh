#!/usr/bin/env bash
# Resolve what `make setup` installs as a machine with nothing but the package index would, once
# for every supported Python found here. Nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

# Local wheels, further indexes and constraints of this machine would hide a conflict.
unset PIP_FIND_LINKS PIP_EXTRA_INDEX_URL PIP_CONSTRAINT PIP_NO_INDEX PIP_PRE PIP_QUIET
export PIP_CONFIG_FILE=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_DEFAULT_TIMEOUT=20

pythons=()
for version in 3.11 3.12 3.13; do
  for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
    # Running it is the test: pyenv puts names on PATH that start nothing.
    found=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2], sys.executable)' \
      2>/dev/null) || continue
    if [ "${found%% *}" = "$version" ]; then
      pythons+=("${found#* }")
      break
    fi
  done
done
if [ ${#pythons[@]} -eq 0 ]; then
  echo "None of Python 3.11, 3.12 and 3.13 was found on PATH or among pyenv's versions." >&2
  exit 1
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# The pip that comes with a Python can be too old to read metadata without the whole wheel, and
# there are gigabytes of wheels.
"${pythons[0]}" -m venv "$scratch/venv"
pip="$scratch/venv/bin/python -m pip"
if ! $pip install --quiet --retries 1 'pip>=25.1,<27'; then
  echo "The package index cannot be reached (see above), so nothing was checked." >&2
  exit 1
fi

jobs=()
for i in "${!pythons[@]}"; do
  $pip --python "${pythons[$i]}" install --dry-run --ignore-installed --use-feature=fast-deps \
    --constraint constraints.txt '.[data,dev,eval,parquet,real,serve,train]' >"$scratch/$i.log" 2>&1 &
  jobs+=($!)
done

failed=0
for i in "${!pythons[@]}"; do
  if wait "${jobs[$i]}"; then
    packages=$(sed -n 's/^Would install //p' "$scratch/$i.log" | tr ' ' '\n')
    echo "resolved for ${pythons[$i]}: $(wc -w <<<"$packages") packages," \
      $(grep -E '^(torch|triton)-' <<<"$packages")
  else
    failed=1
    echo "NOT RESOLVED for ${pythons[$i]}:" >&2
    grep -v '^ *\(Collecting\|Obtaining\|Requirement already\)' "$scratch/$i.log" | tail -n 25 >&2
  fi
done
exit $failed
