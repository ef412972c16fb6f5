"""A published encoder, read by us and by `transformers`: the same hidden states? And which pairs of texts it finds.

    bash scripts/benchmarks/setup_environment.sh
    .venv/bin/python scripts/benchmarks/encoders.py FOLDER SOURCES.gz REFERENCES.gz [PREFIX]

The first 1,000 lines of both files, a sentence a line, behind the prefix ("query: " for E5). The states of every layer
are compared over all tokens; retrieval is by the cosine of mean states: the share of sources whose nearest reference is
their own, and of references. The last lines say how well pairs that were shuffled are found.
"""

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS, AT_ONCE = 1000, 50


def by_torch(folder: str, out: str) -> None:
    """The states of the rows of ids in `out`, which has -1 as padding: files of [L + 1, rows, S, D]."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    ids = torch.tensor(np.load(Path(out) / "ids.npy").astype(np.int64))
    for start in range(0, len(ids), AT_ONCE):
        part = ids[start : start + AT_ONCE]
        part = part[:, : int((part >= 0).sum(1).max())]
        with torch.no_grad():
            given = {"input_ids": part.clamp(min=0), "attention_mask": (part >= 0).long()}
            states = model(**given, output_hidden_states=True).hidden_states
        np.save(Path(out) / f"{start}.npy", torch.stack(states).numpy())


def compare(folder: str, rows: list[list[int]]) -> None:
    """Print how far ours and PyTorch's states are apart."""
    from rest.data.batches import pad
    from rest.learning.apply import apply
    from rest.model.families.bert import read_encoder
    from rest.model.families.xlmr import XLMR

    network, _ = read_encoder(Path(folder))
    ids = pad(rows, max(map(len, rows)), -1)
    with tempfile.TemporaryDirectory() as out:
        np.save(Path(out) / "ids.npy", ids)
        python = REPOSITORY / ".venv-benchmark" / "bin" / "python"
        subprocess.run([python, __file__, "--torch", folder, out], check=True)
        least, largest, tokens = 1.0, 0.0, 0
        for start in range(0, len(ids), AT_ONCE):
            theirs = np.load(Path(out) / f"{start}.npy")
            part = ids[start : start + AT_ONCE, : theirs.shape[2]]
            ours = np.stack(apply(XLMR.__call__, network, np.maximum(part, 0), part >= 0))
            a, b = ours[:, part >= 0], theirs[:, part >= 0]
            cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
            least, largest = min(least, float(cosine.min())), max(largest, float(np.abs(a - b).max()))
            tokens += a.shape[1]
    print(f"{len(rows)} sentences, {tokens} tokens, {len(theirs)} states each: cosine >= {least:.7f}, ", end="")
    print(f"largest difference {largest:.1e}")


def retrieval(folder: str, sides: list[list[str]], prefix: str) -> None:
    """Print which share of sentences finds its partner, and how well shuffled ones are told."""
    from rest.reward.learned.sentences import NonTranslations, SentenceEmbeddings

    embed, number = SentenceEmbeddings(folder, prefix=prefix), len(sides[0])
    x, y = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in map(embed, sides))
    found = [(np.argmax(x @ y.T, axis) == np.arange(number)).mean() for axis in (1, 0)]
    print(f"retrieval of 1 of {number}: {found[0]:.3f} from the sources, {found[1]:.3f} from the references")
    half = number // 2
    shuffled = sides[1][:half] + sides[1][half + 1 :] + sides[1][half : half + 1]
    _, margins = NonTranslations(embed).scores(sides[0], shuffled)
    for least in (0.96, 0.98, 1.0):
        print(f"margin below {least}: {(margins[half:] < least).mean():.3f} of shuffled pairs, ", end="")
        print(f"{(margins[:half] < least).mean():.3f} of true ones")


def main(folder: str, sources: str, references: str, prefix: str = "") -> None:
    from rest.model.families.bert import read_encoder

    sides = []
    for path in (sources, references):
        with gzip.open(path, "rt", encoding="utf8") as file:
            sides.append([line.strip() for line in file][:ROWS])
    network, tokenizer = read_encoder(Path(folder))
    texts = [prefix + text for text in sides[0]]
    compare(folder, [network.settings.single(ids, tokenizer.eos_id) for ids in tokenizer.encode(texts)])
    retrieval(folder, sides, prefix)


if __name__ == "__main__":
    if sys.argv[1] == "--torch":
        by_torch(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
