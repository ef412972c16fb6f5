"""Makes tests/golden/torch_files: the same few tensors as PyTorch saves them, in both of its layouts, and safetensors.

    bash scripts/benchmarks/setup_environment.sh
    .venv-benchmark/bin/python scripts/make_golden_torch_files.py

Among them are what weights are of, what lies beside them, and what a reader can get wrong: a view that is transposed,
one that begins inside its storage, one with gaps, two names of one tensor, a scalar, one without numbers, a parameter.
"""

import json
import shutil
from collections import OrderedDict
from pathlib import Path

import safetensors.torch
import torch

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "torch_files"
TYPES = "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool".split()


def tensors() -> OrderedDict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 5, generator=random)
    made = OrderedDict({name: (9 * torch.randn(3, 4, generator=random)).to(getattr(torch, name)) for name in TYPES})
    made |= {
        "whole": whole,
        "again": whole,
        "transposed": whole.T,
        "inside": whole[2:4],
        "gaps": whole[1::2, ::3],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "half_transposed": torch.randn(4, 3, 2, generator=random).to(torch.bfloat16).permute(2, 0, 1),
        "parameter": torch.nn.Parameter(torch.randn(7, generator=random)),
    }
    return made


def main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir(parents=True)
    saved = tensors()
    saved._metadata = OrderedDict({"": {"version": 1}, "layer": {"version": 2}})  # as module.state_dict() has it
    torch.save(saved, GOLDEN / "zip.bin")
    torch.save(saved, GOLDEN / "legacy.bin", _use_new_zipfile_serialization=False)
    own = {name: tensor.detach().clone().contiguous() for name, tensor in saved.items()}
    safetensors.torch.save_file(own, GOLDEN / "model.safetensors")
    (GOLDEN / "model.safetensors").chmod(0o644)
    note = {"command": ".venv-benchmark/bin/python scripts/make_golden_torch_files.py", "torch": torch.__version__}
    (GOLDEN / "made_by.json").write_text(json.dumps(note, indent=1) + "\n")


if __name__ == "__main__":
    main()
