#!/usr/bin/env bash
# Makes .venv-benchmark: PyTorch, transformers and CTranslate2, which `rest` is compared with and never imports.
# Versions are those of constraints.txt where it names them. torch 2.13.0 is asked for by its exact version, since an
# open request may take several GB of GPU builds.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup_environment.sh"
environment="$repository/.venv-benchmark"
python="$environment/bin/python"

packages=(torch==2.13.0 ctranslate2==4.8.5 transformers sentencepiece numpy safetensors sacrebleu setuptools)
if [[ ! -e "$python" ]]; then
    found="$(find_python)"
    echo "making .venv-benchmark with $("$found" --version)"
    "$found" -m venv --clear "$environment" || { rm -rf "$environment"; fail "$found could not make .venv-benchmark"; }
fi
echo "installing ${packages[*]} into .venv-benchmark"
"$python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "${packages[@]}" ||
    fail "the installation failed; pip says why above"
"$python" -c 'import ctranslate2, torch, transformers
print("torch", torch.__version__, "transformers", transformers.__version__, "ctranslate2", ctranslate2.__version__)'
