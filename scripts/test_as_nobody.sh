#!/usr/bin/env bash
# Runs the tests as a user without a name and a home, from a checkout that can only be read, as containers may do.
#
#     scripts/test_as_nobody.sh [arguments of pytest]
#
# It needs root and setpriv (util-linux). The environment is the one in .venv, whose files are only read.
set -euo pipefail
cd "$(dirname "$0")/.."
python="$PWD/.venv/bin/python"
place="$(mktemp -d)"
trap 'chmod -R u+w "$place"; rm -rf "$place"' EXIT

mkdir "$place/checkout" "$place/tmp"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory "$place/checkout"
chmod -R a-w,a+rX "$place/checkout"
chmod 755 "$place"
chmod 777 "$place/tmp"

cd "$place/checkout"
# The capability lets the user read a Python that lies in root's home; nothing more can be written.
env --unset=HOME --unset=XDG_CACHE_HOME PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$PWD/src" TMPDIR="$place/tmp" \
    HYPOTHESIS_STORAGE_DIRECTORY="$place/tmp/hypothesis" \
    setpriv --reuid=54321 --regid=54321 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search \
    "$python" -m pytest -p no:cacheprovider "$@"
