#!/usr/bin/env bash
# From an empty machine to a trained policy and its report, on a synthetic task. Arguments go to `rest run`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_environment.sh"
set_up

"$environment/bin/rest" run experiments/synthetic.py --out runs/demo "$@"
