# Sourced by the scripts here and in benchmarks/: finds Python, makes .venv, installs `rest` and what constraints.txt
# pins. Sets `repository` (its root, absolute), `environment` and `python` (the environment's), goes to the root.
# PYTHON=/path/to/python chooses another interpreter; where .venv has another version, .venv-3.13 (or so) is used.

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
environment="$repository/.venv"
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }
if [[ -n "${PYTHON:-}" && -x "$environment/bin/python" ]]; then
    asked="$(version_of "$PYTHON")" || { echo "error: PYTHON=$PYTHON cannot be run" >&2; exit 1; }
    if [[ "$asked" != "$(version_of "$environment/bin/python")" ]]; then environment="$environment-$asked"; fi
fi
python="$environment/bin/python"
cd "$repository"

fail() {
    echo "error: $*" >&2
    exit 1
}

find_python() { # prints the first interpreter that is Python 3.11 to 3.13 and can make an environment
    local candidate unable="" candidates=(python3.11 python3.12 python3.13 python3)
    if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        # Run it: a name on the path may be a launcher for a version that is not there.
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        unable="${unable:-$candidate}"
    done
    if [[ -n "$unable" ]]; then
        fail "$unable cannot make environments, it has no ensurepip: install its venv package (Debian, Ubuntu:" \
            "$("$unable" -c 'import sys; print("apt install python%d.%d-venv" % sys.version_info[:2])'))"
    fi
    fail "no Python 3.11, 3.12 or 3.13 found as ${candidates[*]}: install one, or name it with PYTHON=/path/to/python"
}

fingerprint() { # changes with what is asked for, and with the place, which an editable install remembers
    "$python" - <<'END'
import hashlib, pathlib, sys
asked = b"".join(pathlib.Path(name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
print(hashlib.sha256(asked + f"{pathlib.Path.cwd()} {sys.version}".encode()).hexdigest())
END
}

set_up() { # set_up [EXTRA]: makes .venv if absent, installs if what is asked for has changed since
    local extra="${1:-}" found wanted
    if [[ ! -e "$python" ]]; then
        found="$(find_python)"
        echo "making ${environment##*/} with $("$found" --version)"
        "$found" -m venv --clear "$environment" || { rm -rf "$environment"; fail "$found could not make $environment"; }
    fi
    "$python" -m pip --version >/dev/null 2>&1 || fail "${environment##*/} is broken or half made; remove it and run again: rm -r $environment"
    wanted="$(fingerprint)"
    # An installation with the extra serves those who need none.
    if [[ "$(cat "$environment/installed-$extra" 2>/dev/null)" == "$wanted" ]]; then return; fi
    if [[ -z "$extra" && "$(cat "$environment/installed-test" 2>/dev/null)" == "$wanted" ]]; then return; fi
    echo "installing rest${extra:+[$extra]} into ${environment##*/}"
    # pip would compile every module by itself, one after another
    "$python" -m pip install --quiet --disable-pip-version-check --no-compile \
        --constraint constraints.txt --editable ".${extra:+[$extra]}" || fail "the installation failed; pip says why above"
    # Some files are not for this Python, and of the largest packages few are ever imported.
    "$python" -m compileall -q -j 0 -x '/tests?/|/transformers/models/|/tensorflow_datasets/' "$environment/lib" >/dev/null || true
    echo "$wanted" >"$environment/installed-$extra"
}
