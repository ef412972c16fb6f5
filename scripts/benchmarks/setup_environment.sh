#!/usr/bin/env bash
# Makes .venv-benchmark: PyTorch, transformers and CTranslate2, which `rest` is compared with and never imports. With
# `mbrs` as its argument it makes .venv-benchmark-mbrs instead, of that package, which needs older versions of others.
# Versions are those of constraints.txt where it names them. torch 2.13.0 is asked for by its exact version, since an
# open request may take several GB of GPU builds.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup_environment.sh"

make() { # name, then what pip is given
    local python="$repository/$1/bin/python" found
    if [[ ! -e "$python" ]]; then
        found="$(find_python)"
        echo "making $1 with $("$found" --version)"
        "$found" -m venv --clear "$repository/$1" || { rm -rf "${repository:?}/$1"; fail "$found could not make $1"; }
    fi
    echo "installing ${*:2} into $1"
    "$python" -m pip install --quiet --disable-pip-version-check "${@:2}" ||
        fail "the installation failed; pip says why above"
}

if [[ "${1:-}" == mbrs ]]; then
    make .venv-benchmark-mbrs torch==2.13.0 mbrs==0.1.8 "setuptools<81" # torchmetrics imports its pkg_resources
    exit
fi
make .venv-benchmark --constraint constraints.txt torch==2.13.0 ctranslate2==4.8.5 transformers sentencepiece numpy \
    safetensors sacrebleu setuptools
"$repository/.venv-benchmark/bin/python" -c 'import ctranslate2, torch, transformers
print("torch", torch.__version__, "transformers", transformers.__version__, "ctranslate2", ctranslate2.__version__)'
