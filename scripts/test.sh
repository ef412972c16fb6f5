#!/usr/bin/env bash
# From an empty machine to the verdict: format, lint, types, tests (a process a core). Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_environment.sh"
set_up test

"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
"$python" -m pytest --numprocesses logical --dist loadfile "$@"
