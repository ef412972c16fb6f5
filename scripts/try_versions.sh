#!/usr/bin/env bash
# Builds the wheel and tries it in clean environments, outside the checkout: each of Python 3.11, 3.12 and 3.13, with the
# versions of constraints.txt and with the newest that there are. Prints a table in Markdown, which docs/install.md has.
#
#     bash scripts/try_versions.sh [PYTHON ...]     interpreters, by default python3.11 python3.12 python3.13
#     VERSIONS=newest bash scripts/try_versions.sh  one of the two alone
#
# Tried are `rest --help`, `rest doctor`, and tests/tiny.py run through, with its report and a translation. About four
# minutes and 1.5 GB of disk for each environment, which is removed again. Exit status 1 where anything failed.
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
pythons=("$@")
if [[ $# -eq 0 ]]; then pythons=(python3.11 python3.12 python3.13); fi
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
failed=0

wheel() { # builds it once, with whichever interpreter comes first
    "${pythons[0]}" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$scratch" "$repository"
    ls "$scratch"/reinforced_self_training-*-py3-none-any.whl
}

attempt() { # attempt NAME COMMAND...: sets `told` to ok or failed; what it printed is shown where it failed
    if "${@:2}" >"$scratch/printed" 2>&1; then
        told=ok
    else
        told="failed: $1"
        failed=1
        tail -n 20 "$scratch/printed" >&2
    fi
}

loop() { # the whole loop and a translation, by the command that was installed
    bin/rest run tiny.py --out run && test -s run/report.html && test -s run/grow-1/manifest.json &&
        echo "the cat sleeps" | bin/rest translate run | wc -l | grep -q "^ *1$"
}

try() { # try PYTHON LABEL [pip's arguments]: a row of the table
    local here="$scratch/environment" help doctor run
    "$1" -m venv --clear "$here"
    attempt install "$here/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check "${@:3}" "$built"
    if [[ "$told" != ok ]]; then
        echo "| $("$1" --version | cut -d' ' -f2) | $2 | | | | | $told | | | |"
        return
    fi
    cp "$repository/tests/tiny.py" "$here"
    cd "$here"
    attempt "rest --help" bin/rest --help && help=$told
    attempt "rest doctor" bin/rest doctor && doctor=$told
    attempt "rest run" loop && run=$told
    echo "| $(bin/python -c '
import platform
from importlib.metadata import version
names = ("jax", "flax", "numpy", "transformers")
print(" | ".join([platform.python_version(), "'"$2"'", *map(version, names)]))
') | $(du -sm lib | cut -f1) MB | $help | $doctor | $run |"
    cd "$scratch"
    rm -rf "$here"
}

export JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1 HF_HUB_OFFLINE=1 XDG_CACHE_HOME="$scratch/cache"
export PIP_CACHE_DIR="${PIP_CACHE_DIR:-$HOME/.cache/pip}"
cd "$scratch"
built="$(wheel)"
echo "| Python | versions | JAX | flax | numpy | transformers | installed | rest --help | rest doctor | the loop |"
echo "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
for interpreter in "${pythons[@]}"; do
    for versions in ${VERSIONS:-constraints.txt newest}; do
        if [[ $versions == newest ]]; then try "$interpreter" newest; continue; fi
        try "$interpreter" "$versions" --constraint "$repository/$versions"
    done
done
exit "$failed"
