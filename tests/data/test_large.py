"""Large corpora: shards hold what cleaning in memory keeps, and are whole or absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rest.data.corpus import Cleaning
from rest.data.files import TextFiles
from rest.data.large import Shards, write_shards
from rest.errors import UserError


@pytest.fixture
def corpus(tmp_path: Path) -> TextFiles:
    train = [f"{k % 9} Hunde\t{k % 9} dogs" for k in range(30)] + ["\tnothing", "ein Test\ta test"]
    texts = {"train": train, "dev": ["ein Satz\ta sentence"], "test": ["ein Test\ta test"]}
    paths = {}
    for split, pairs in texts.items():
        for side, name in enumerate(("source", "reference")):
            path = paths[f"{split}_{name}"] = tmp_path / f"{split}.{name}"
            path.write_text("".join(pair.split("\t")[side] + "\n" for pair in pairs))
    return TextFiles(**paths, more_test_references=(paths["test_reference"],))


def test_shards_hold_what_cleaning_in_memory_keeps(corpus: TextFiles, tmp_path: Path) -> None:
    cleaning = Cleaning(drop_duplicates=True)
    kept = corpus.load(cleaning)
    counts = write_shards(corpus, cleaning, tmp_path / "shards", pairs_per_shard=4)
    assert counts == kept.counts
    assert [path.name for path in sorted((tmp_path / "shards" / "train").iterdir())] == [
        "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"
    ]  # fmt: skip
    read = Shards(tmp_path / "shards").load(cleaning)
    for ours, theirs in ((read.train, kept.train), (read.dev, kept.dev), (read.test, kept.test)):
        assert (ours.sources, ours.references) == (theirs.sources, theirs.references)
        assert ours.more_references == theirs.more_references
    assert read.counts["train"]["kept"] == read.counts["train"]["read"] == 9
    assert len(Shards(tmp_path / "shards", max_train=5).load(cleaning).train) == 5


def test_text_without_translations(corpus: TextFiles, tmp_path: Path) -> None:
    write_shards(replace(corpus, train_reference=None), Cleaning(), tmp_path / "shards")
    assert Shards(tmp_path / "shards").load(Cleaning()).train.references is None


def test_a_folder_is_whole_or_absent(corpus: TextFiles, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    corpus.train_reference.write_text("a dog\n")  # type: ignore[union-attr]
    with pytest.raises(UserError, match="has 32 lines, but"):
        write_shards(corpus, Cleaning(), folder)
    assert not folder.exists()
    with pytest.raises(UserError, match="is not a folder that write_shards has made"):
        Shards(folder).load(Cleaning())
    write_shards(replace(corpus, train_reference=None), Cleaning(), folder)
    with pytest.raises(UserError, match="is already there"):
        write_shards(corpus, Cleaning(), folder)
    [path] = (folder / "train").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"part-00000.parquet cannot be read, it may be damaged"):
        Shards(folder).load(Cleaning())
