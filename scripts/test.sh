#!/usr/bin/env bash
# From an empty machine to the verdict: format, lint, types, tests (a process a core). With --quick first, all tests but
# those marked slow. Other arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_environment.sh"
set_up test

"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
if [[ "${1:-}" == --quick ]]; then
    shift
    set -- -m "not slow" "$@"
fi
# Files in the order of tests/conftest.py: the longest first.
"$python" -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder "$@"
