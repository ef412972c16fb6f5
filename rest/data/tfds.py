"""Corpora of TensorFlow Datasets (tfds): any translation dataset by its name, and WMT of named sub-corpora."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rest.data.corpus import Cleaning, Corpus, Pair, Rows, load
from rest.data.lines import decode_line, one_line
from rest.errors import UserError


@dataclass(frozen=True)
class TensorflowDataset:
    """A translation dataset of tfds, prepared on first use; needs no TensorFlow.

    Ids are positions in the prepared split, which tfds shuffles in the same way every time.
    """

    name: str  # the builder and its configuration: wmt19_translate/zh-en
    source_language: str  # the feature to translate from: zh
    reference_language: str | None  # the feature with the translations: en; None: source text without them
    data_dir: Path | None = None  # where prepared datasets lie; None: tfds' own default
    train_split: str = "train"  # as tfds writes splits: train, train[:10%], train+validation
    dev_split: str = "validation"  # split to use as dev
    test_split: str = "test"  # split to use as test

    def load(self, cleaning: Cleaning) -> Corpus:
        """Prepare where needed, read and clean. An unknown name, split or language is a UserError."""
        return load(self.rows, cleaning)

    def rows(self, split: str) -> Rows:
        """A split as it is before cleaning."""
        import tensorflow_datasets as tfds
        import tensorflow_datasets.translate  # registers the translation builders

        try:
            builder = tfds.builder(self.name, data_dir=self.data_dir)
        except (ValueError, AssertionError) as error:  # unknown builder, configuration or version
            raise UserError(f"tfds has no dataset named {self.name!r}: {one_line(error)}") from error
        names = {"train": self.train_split, "dev": self.dev_split, "test": self.test_split}
        return _rows(split, builder, self.name, names[split], self.source_language, self.reference_language)


@dataclass(frozen=True)
class WMT:
    """Sub-corpora of WMT by the names that tfds has for them, prepared on first use as `wmt_translate`.

    tfds.translate.wmt.DATASET_MAP lists the names: newscommentary_v13, commoncrawl, uncorpus_v1, newstest2018, ... tfds
    knows each pair in one direction, mostly into English; either side can be the source here. It leaves out pairs with
    an empty side, and its splits are shuffled in the same way every time.
    """

    source_language: str  # the language to translate from: zh
    reference_language: str  # the language of the translations: en
    train: tuple[str, ...]  # sub-corpora that are joined: newscommentary_v13 uncorpus_v1
    dev: tuple[str, ...] = ()  # sub-corpora to use as dev: newsdev2017; none where Combined takes another dev set
    test: tuple[str, ...] = ()  # sub-corpora to use as test: newstest2018
    data_dir: Path | None = None  # where prepared datasets lie; None: tfds' own default

    def load(self, cleaning: Cleaning) -> Corpus:
        """Prepare where needed, read and clean. An unknown sub-corpus, or one of other languages, is a UserError."""
        return load(self.rows, cleaning)

    def rows(self, split: str) -> Rows:
        """A split as it is before cleaning."""
        from tensorflow_datasets.translate import wmt

        if not getattr(self, split):
            raise UserError(f"{split}: name at least one sub-corpus of WMT")
        named = {"train": self.train, "validation": self.dev, "test": self.test}
        names = {tfds_split: subsets for tfds_split, subsets in named.items() if subsets}
        pair = self._pair(wmt.DATASET_MAP)
        chosen = hashlib.sha256(repr(names).encode()).hexdigest()[:12]  # another choice is prepared in another folder
        config = wmt.WmtConfig(name=chosen, version="1.0.0", language_pair=pair, subsets=names)
        builder = wmt.WmtTranslate(config=config, data_dir=self.data_dir)
        tfds_split = {"train": "train", "dev": "validation", "test": "test"}[split]
        label = f"wmt_translate ({', '.join(names[tfds_split])})"
        return _rows(split, builder, label, tfds_split, self.source_language, self.reference_language)

    def _pair(self, known: dict[str, Any]) -> tuple[str, str]:
        """The languages in the order in which every sub-corpus has them."""
        either = (self.source_language, self.reference_language), (self.reference_language, self.source_language)
        named = [(split, name) for split in ("train", "dev", "test") for name in getattr(self, split)]
        for split, name in named:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f", it has {', '.join(sorted(known))}"
                raise UserError(f"{split}: tfds has no sub-corpus {name!r} of WMT{hint}")
        for source, target in either:
            others = [(s, n) for s, n in named if known[n].target != target or source not in known[n].sources]
            if not others:
                return source, target
            if len(others) < len(named):
                break
        split, name = others[0]
        languages = f"{'/'.join(sorted(known[name].sources))}-{known[name].target}"
        raise UserError(f"{split}: the sub-corpus {name!r} is {languages}, not {'-'.join(either[0])}")


def _rows(
    split: str, builder: Any, name: str, tfds_split: str, source_language: str, reference_language: str | None
) -> Rows:
    """A split of a tfds.core.DatasetBuilder, prepared where it is not."""
    _prepare(builder, name, [code for code in (source_language, reference_language) if code is not None])
    try:
        data = builder.as_data_source(split=tfds_split)
    except ValueError as error:
        raise UserError(f"{name} has no split {tfds_split!r}: {one_line(error)}") from error
    place = f"{name}, split {tfds_split}, feature "
    source, reference = place + source_language, None if reference_language is None else place + reference_language
    return Rows(split, _pairs(data, place, source_language, reference_language), source, reference)


def _prepare(builder: Any, name: str, languages: list[str]) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.extractor import ExtractError
    from tensorflow_datasets.core.download.util import DownloadError

    texts = [feature for feature, kind in builder.info.features.items() if isinstance(kind, tfds.features.Text)]
    for language in languages:
        if language not in texts:
            raise UserError(f"the dataset {name!r} has no text feature {language!r}, it has {texts}")
    try:
        with _unpacking():
            builder.download_and_prepare(file_format="array_record")  # read back as parquet, rows go missing
    except (OSError, AssertionError, DownloadError, ExtractError) as error:  # no network, space or manual download
        raise UserError(f"the dataset {name!r} cannot be prepared: {one_line(error)}") from error
    form = builder.info.file_format.value
    if form != "array_record":
        raise UserError(f"{builder.data_dir} is already prepared as {form}, where array_record is needed")


@contextmanager
def _unpacking() -> Iterator[None]:
    """tfds unpacks archives, which all of WMT comes in, with the files of TensorFlow; without it, with Python's."""
    from tensorflow_datasets.core.download import extractor

    if find_spec("tensorflow") is not None:
        yield
        return
    files = SimpleNamespace(gfile=SimpleNamespace(GFile=open))
    kept, extractor.tf = extractor.tf, SimpleNamespace(io=files, compat=SimpleNamespace(as_text=str))
    try:
        yield
    finally:
        extractor.tf = kept


def _pairs(data: Any, place: str, source_language: str, reference_language: str | None) -> Iterator[Pair]:
    chunk = 1000  # rows read at once: several times as fast as one by one
    rows = (range(start, min(start + chunk, len(data))) for start in range(0, len(data), chunk))
    examples = (example for some in rows for example in data.__getitems__(some))
    for number, example in enumerate(examples, start=1):
        source = decode_line(example[source_language], place + source_language, number)
        if reference_language is None:
            yield Pair(source)
        else:
            yield Pair(source, decode_line(example[reference_language], place + reference_language, number))
