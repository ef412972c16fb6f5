"""Converts a published CometKiwi checkpoint, a pickle, to the folder that rest.reward.published.cometkiwi reads.

    bash scripts/benchmarks/setup_environment.sh
    .venv-benchmark/bin/python scripts/convert_cometkiwi.py CHECKPOINT ENCODER FOLDER

CHECKPOINT is a snapshot of Unbabel/wmt22-cometkiwi-da, wmt23-cometkiwi-da-xl or -xxl: hparams.yaml and
checkpoints/model.ckpt. ENCODER holds config.json and the tokenizer's files of the `pretrained_model` that hparams.yaml
names, such as microsoft/infoxlm-large; its weights are not needed. Only tensors and plain values are unpickled.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

TOKENIZER = ("sentencepiece.bpe.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def convert(checkpoint: Path, encoder: Path, folder: Path) -> None:
    """Write `folder`: config.json, hparams.json, model.safetensors and the tokenizer's files."""
    hparams = yaml.safe_load((checkpoint / "hparams.yaml").read_text(encoding="utf-8"))
    saved = torch.load(checkpoint / "checkpoints" / "model.ckpt", map_location="cpu", weights_only=True, mmap=True)
    folder.mkdir(parents=True)
    tensors = {name: tensor.clone().contiguous() for name, tensor in saved["state_dict"].items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "hparams.json").write_text(json.dumps(hparams, indent=1) + "\n", encoding="utf-8")
    for name in ("config.json", *TOKENIZER):
        if (encoder / name).exists():
            shutil.copyfile(encoder / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "encoder", "folder"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    for path in (
        given.checkpoint / "hparams.yaml",
        given.checkpoint / "checkpoints" / "model.ckpt",
        given.encoder / "config.json",
    ):
        if not path.is_file():
            parser.error(f"{path}: no such file")
    if not any((given.encoder / name).is_file() for name in TOKENIZER[:2]):
        parser.error(f"{given.encoder}: has neither {TOKENIZER[0]} nor {TOKENIZER[1]}")
    if given.folder.exists():
        parser.error(f"{given.folder}: exists already")
    convert(given.checkpoint, given.encoder, given.folder)


if __name__ == "__main__":
    main()
