"""Where a published model lies: a folder, or a name on the Hugging Face hub whose files are fetched once and kept.

Only what is read is fetched: settings, tokenizer and weights. Code that a model comes with is neither fetched nor run.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from rest.errors import UserError

SETTINGS = ["config.json", "generation_config.json"]
TOKENIZER = [
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("source.spm", "target.spm", "vocab.json", "target_vocab.json"),
    *("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model"),
]
SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
TORCH = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"]
NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"


def model_folder(name: str | Path, revision: str = "main") -> Path:
    """The folder of a model's files: `name` itself, or where the files of that name on the hub are kept.

    `revision` is a branch, a tag or a commit of the hub; in a process, a branch stays at the commit where it was first
    seen. UserError where there is neither a folder nor a model of this name, or the hub cannot be reached and its cache
    has not what is needed.
    """
    return _local(name) or _fetched(str(name), revision)


def tokenizer_folder(name: str | Path) -> Path:
    """The same for a model of which only the tokenizer is needed; its weights are not fetched."""
    return _local(name) or _snapshot(str(name), "main", SETTINGS + TOKENIZER)


def commit(folder: Path) -> str | None:
    """The commit of the hub that a folder's files are of; None where it is no folder of the hub's cache."""
    in_cache = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if in_cache else None


def _local(name: str | Path) -> Path | None:
    """The folder of this name; None for what may be a name on the hub."""
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(NAME, str(name)):
        raise UserError(f"{name}: no such folder, and no name on the Hugging Face hub, such as google-t5/t5-small")
    return None


@functools.cache
def _fetched(name: str, revision: str) -> Path:
    folder = _snapshot(name, revision, SETTINGS + TOKENIZER + SAFETENSORS)
    if not any((folder / file).is_file() for file in SAFETENSORS):  # which are preferred, being no pickles
        folder = _snapshot(name, folder.name, TORCH)
    if not any((folder / file).is_file() for file in SAFETENSORS + TORCH):
        raise UserError(
            f"{name}: {folder} has neither model.safetensors nor pytorch_model.bin, nor an index of one in several "
            f"files; if the hub has them, {_fetch_it(name, revision)}"
        )
    return folder


def _fetch_it(name: str, revision: str) -> str:
    return f"where there is a network, `hf download {name} --revision {revision}` fetches them"


def _snapshot(name: str, revision: str, files: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except GatedRepoError as error:
        raise UserError(
            f"{name}: is given only to whom its owner allows; ask for it there, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: no such folder, and the hub at {constants.ENDPOINT} has no model of this name"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name}: the hub has no revision {revision!r} of it") from error
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise UserError(
            f"{name}: no such folder, and not all files of its revision {revision!r} are in {constants.HF_HUB_CACHE}, "
            f"while {why}; {_fetch_it(name, revision)}"
        ) from error
    except Exception as error:  # its HTTP client has its own, which differ between versions
        raise UserError(f"{name}: cannot be fetched: {(str(error).strip() or repr(error)).splitlines()[0]}") from error
