"""Corpora of tfds: any by its name, WMT of named sub-corpora, and every mistake named."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.translate import wmt

from rest.data.corpus import Cleaning, Corpus
from rest.data.tfds import WMT, TensorflowDataset
from rest.errors import UserError

PAIRS = {
    "train": [("ein Hund", "a dog"), ("zwei Hunde", "two dogs"), ("drei Katzen", "three cats")],
    "dev": [("vier Vögel", "four birds")],
    "test": [("fünf Fische", "five fish"), ("sechs Bären", "six bears")],
}


class MadeUpPairs(tfds.core.GeneratorBasedBuilder):
    """A dataset as tfds has them; defining it registers the name made_up_pairs."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"de": tfds.features.Text(), "en": tfds.features.Text(), "number": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        names = {"train": "train", "dev": "validation", "test": "test"}
        return {names[split]: self._generate_examples(split) for split in PAIRS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for i, (source, reference) in enumerate(PAIRS[split]):
            yield i, {"de": source, "en": reference, "number": i}


class NeedsManualDownload(tfds.core.GeneratorBasedBuilder):
    """A dataset whose text the user has to fetch."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask its makers."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.Translation(languages=("de", "en")))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {"train": self._generate_examples(dl_manager.manual_dir)}

    def _generate_examples(self, folder: Path) -> Iterator[tuple[int, dict]]:
        yield from ()


def pairs_of(corpus: Corpus) -> dict[str, list[tuple[str, str]]]:
    splits = (corpus.train, corpus.dev, corpus.test)
    return {split.name: list(zip(split.sources, split.references or [], strict=True)) for split in splits}


def refused(settings: TensorflowDataset | WMT) -> str:
    """The one sentence that refuses the corpus."""
    with pytest.raises(UserError) as caught:
        settings.load(Cleaning())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the made-up dataset is prepared, once, by the first load."""
    return tmp_path_factory.mktemp("tfds")


def test_tensorflow_dataset_is_prepared_and_read(prepared: Path) -> None:
    corpus = TensorflowDataset("made_up_pairs", "de", "en", prepared).load(Cleaning())
    assert {split: sorted(pairs) for split, pairs in pairs_of(corpus).items()} == {
        split: sorted(pairs) for split, pairs in PAIRS.items()
    }
    again = TensorflowDataset("made_up_pairs", "de", "en", prepared).load(Cleaning())
    assert pairs_of(again) == pairs_of(corpus)


def test_tensorflow_splits_are_sliced_and_turned(prepared: Path) -> None:
    settings = TensorflowDataset("made_up_pairs", "en", None, prepared, "train[:2]", "train[2:]", "validation+test")
    corpus = settings.load(Cleaning())
    assert sorted(corpus.train.sources + corpus.dev.sources) == ["a dog", "three cats", "two dogs"]
    assert corpus.train.ids.tolist() == [0, 1]
    assert corpus.train.references is None
    assert len(corpus.test) == 3


@pytest.mark.parametrize("name", ["no_such_pairs/de-en", "made_up_pairs/zz", "made_up_pairs:7.7.7", "", "a b"])
def test_an_unknown_tensorflow_dataset_is_named(prepared: Path, name: str) -> None:
    assert f"tfds has no dataset named {name!r}" in refused(TensorflowDataset(name, "de", "en", prepared))


def test_tensorflow_mistakes_are_named(prepared: Path) -> None:
    assert refused(TensorflowDataset("made_up_pairs", "de", "fr", prepared)) == (
        "the dataset 'made_up_pairs' has no text feature 'fr', it has ['de', 'en']"
    )
    assert "no text feature 'number'" in refused(TensorflowDataset("made_up_pairs", "number", "en", prepared))
    settings = TensorflowDataset("made_up_pairs", "de", "en", prepared, dev_split="dev")
    assert "made_up_pairs has no split 'dev'" in refused(settings)
    settings = TensorflowDataset("needs_manual_download", "de", "en", prepared)
    assert "the dataset 'needs_manual_download' cannot be prepared: Manual directory" in refused(settings)


def test_a_dataset_prepared_in_another_format_is_named(tmp_path: Path) -> None:
    tfds.builder("made_up_pairs", data_dir=tmp_path).download_and_prepare(file_format="parquet")
    assert "is already prepared as parquet" in refused(TensorflowDataset("made_up_pairs", "de", "en", tmp_path))


# WMT


@pytest.fixture(scope="module")
def wmt_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sub-corpora as tfds has them, which its user fetches by hand: text in an archive, and test sets as SGML."""
    folder = tmp_path_factory.mktemp("wmt")
    manual = folder / "downloads" / "manual"
    manual.mkdir(parents=True)
    added = []
    for name, end, pairs in (
        ("news_made", "", PAIRS["train"]), ("web_made", "", [("noch ein Satz", "one more"), ("", "nothing")]),
        ("dev_made", ".sgm", PAIRS["dev"]), ("test_made", ".sgm", PAIRS["test"]),
    ):  # fmt: skip
        with tarfile.open(manual / f"{name}.tgz", "w:gz") as tar:
            for side, language in enumerate(("de", "en")):
                lines = [pair[side] for pair in pairs]
                if end:
                    lines = [f'<seg id="{k}">{line}</seg>' for k, line in enumerate(lines, start=1)]
                data = "\n".join(lines).encode()
                member = tarfile.TarInfo(f"{name}.{language}{end}")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))
        paths = tuple(f"{name}.{language}{end}" for language in ("{src}", "en"))
        added.append(wmt.SubDataset(name, "en", {"de"}, ("", ""), paths, [f"{name}.tgz"]))
    wmt.DATASET_MAP.update({each.name: each for each in added})
    yield folder
    for each in added:
        del wmt.DATASET_MAP[each.name]


def test_wmt_is_joined_of_its_sub_corpora(wmt_dir: Path) -> None:
    both = WMT("de", "en", ("news_made", "web_made"), ("dev_made",), ("test_made",), wmt_dir)
    corpus = both.load(Cleaning())
    expected = {**PAIRS, "train": [*PAIRS["train"], ("noch ein Satz", "one more")]}  # tfds leaves the empty one out
    assert {split: sorted(pairs) for split, pairs in pairs_of(corpus).items()} == {
        split: sorted(pairs) for split, pairs in expected.items()
    }
    turned = WMT("en", "de", ("web_made",), ("dev_made",), ("test_made",), wmt_dir).load(Cleaning())
    assert pairs_of(turned)["train"] == [("one more", "noch ein Satz")]


def test_mistakes_in_the_choice_of_sub_corpora_are_named(wmt_dir: Path) -> None:
    good = ("dev_made",), ("test_made",), wmt_dir
    name = "train: tfds has no sub-corpus {!r} of WMT".format
    assert refused(WMT("de", "en", ("news_mode",), *good)) == f"{name('news_mode')}; did you mean 'news_made'?"
    assert refused(WMT("de", "en", ("x",), *good)).startswith(f"{name('x')}, it has casia2015, casict2011,")
    found = refused(WMT("de", "en", ("news_made", "newsdev2017"), *good))
    assert found == "train: the sub-corpus 'newsdev2017' is lv/zh-en, not de-en"
    assert refused(WMT("fr", "de", ("news_made",), *good)) == "train: the sub-corpus 'news_made' is de-en, not fr-de"
    assert refused(WMT("de", "en", ("news_made",))) == "dev: name at least one sub-corpus of WMT"


def test_sub_corpora_that_are_not_there_or_cut_short_are_named(wmt_dir: Path, tmp_path: Path) -> None:
    settings = WMT("de", "en", ("news_made",), ("dev_made",), ("test_made",), tmp_path)
    name = "the dataset 'wmt_translate (dev_made)' cannot be prepared: "
    assert name + "Manual directory" in refused(settings)
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    for file in (wmt_dir / "downloads" / "manual").iterdir():
        data = file.read_bytes()
        (manual / file.name).write_bytes(data[: len(data) // 2] if file.name == "news_made.tgz" else data)
    assert f"{name}Error while extracting {manual}/news_made.tgz" in refused(settings)
