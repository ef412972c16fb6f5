"""Corpora: every format read back, every mistake named, and cleaning that keeps ids and counts straight."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from rest.data.corpus import Cleaning, Combined, Corpus, Hashes, SyntheticCorpus, cleaning_of
from rest.data.files import FairseqText, TabSeparated, TextFiles
from rest.data.synthetic import SyntheticLanguage
from rest.errors import UserError
from rest.experiment import CorpusSettings
from rest.identity import describe

PAIRS = {
    "train": [("ein Hund", "a dog"), ("zwei Hunde", "two dogs"), ("drei Katzen", "three cats")],
    "dev": [("vier Vögel", "four birds")],
    "test": [("fünf Fische", "five fish"), ("sechs Bären", "six bears")],
}


def write(path: Path, data: bytes) -> Path:
    """A file, compressed where its name says so."""
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def joined(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def text_files(folder: Path, suffix: str = "", **overrides: object) -> TextFiles:
    """PAIRS as text files; an override gives a setting, bytes standing for a file's content."""
    settings: dict = {}
    for split, pairs in PAIRS.items():
        for side, lines in zip(("source", "reference"), zip(*pairs, strict=True), strict=True):
            name = f"{split}_{side}"
            content = overrides.get(name)
            data = content if isinstance(content, bytes) else joined(list(lines))
            settings[name] = write(folder / f"{name}.txt{suffix}", data)
    settings |= {name: value for name, value in overrides.items() if not isinstance(value, bytes)}
    return TextFiles(**settings)


def tab_separated(folder: Path, header: bool = False, **contents: bytes) -> TabSeparated:
    """PAIRS with a column of numbers before them, the references before the sources."""
    paths = {}
    for split, pairs in PAIRS.items():
        lines = ["number\ten\tde"] * header + [f"{i}\t{en}\t{de}" for i, (de, en) in enumerate(pairs)]
        paths[split] = write(folder / f"{split}.tsv", contents.get(split, joined(lines)))
    return TabSeparated(**paths, source_column=2, reference_column=1, header=header)


def pairs_of(corpus: Corpus) -> dict[str, list[tuple[str, str]]]:
    splits = (corpus.train, corpus.dev, corpus.test)
    return {split.name: list(zip(split.sources, split.references or [], strict=True)) for split in splits}


def refused(settings: CorpusSettings, cleaning: Cleaning | None = None) -> str:
    """The one sentence that refuses the corpus."""
    with pytest.raises(UserError) as caught:
        settings.load(cleaning or Cleaning())
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Text files


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_text_files_are_read_plain_and_gzipped(tmp_path: Path, suffix: str) -> None:
    corpus = text_files(tmp_path, suffix).load(Cleaning())
    assert pairs_of(corpus) == PAIRS
    assert corpus.gold is None
    assert corpus.train.ids.dtype == np.int64
    assert corpus.train.ids.tolist() == [0, 1, 2]
    assert corpus.counts["test"] == {
        "read": 2, "kept": 2, "empty": 0, "too_long": 0, "ratio": 0, "duplicate": 0, "in_test": 0, "no_translation": 0
    }  # fmt: skip


def test_take_keeps_ids(tmp_path: Path) -> None:
    train = text_files(tmp_path).load(Cleaning()).train.take([2, 0])
    assert (train.ids.tolist(), train.sources) == ([2, 0], ["drei Katzen", "ein Hund"])
    assert train.references == ["three cats", "a dog"]


def test_splits_may_lack_references(tmp_path: Path) -> None:
    settings = text_files(tmp_path, train_reference=None, test_reference=None, max_train=2)
    corpus = settings.load(Cleaning(min_length_ratio=2.0))
    assert corpus.train.references is None
    assert corpus.train.sources == ["ein Hund", "zwei Hunde"]
    assert corpus.dev.references == ["four birds"]
    assert corpus.test.references is None


def test_a_test_set_may_have_further_references(tmp_path: Path) -> None:
    more = write(tmp_path / "more.txt", b"5  fish\n6 bears\n"), write(tmp_path / "short.txt", b"5 fish\n")
    settings = text_files(tmp_path, more_test_references=(more[0],))
    test = settings.load(Cleaning()).test
    assert test.references == ["five fish", "six bears"] and test.more_references == [["5 fish", "6 bears"]]
    assert test.take([1]).more_references == [["6 bears"]]
    assert replace(settings, max_test=1).load(Cleaning()).test.more_references == [["5 fish"]]
    expected = f"{settings.test_source} has 2 lines, but {more[1]} has 1"
    assert refused(replace(settings, more_test_references=more)) == expected
    with pytest.raises(UserError, match="come beside test_reference"):
        replace(settings, test_reference=None)


def test_limits_take_the_first_lines(tmp_path: Path) -> None:
    corpus = text_files(tmp_path, max_train=1, max_dev=5, max_test=1).load(Cleaning())
    assert pairs_of(corpus) == {split: pairs[:1] for split, pairs in PAIRS.items()}
    assert corpus.counts["train"]["read"] == 1


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    source = "\ufeffa\u2028b\x0bc\x85d\r\ne\rf".encode()
    corpus = text_files(tmp_path, test_source=source).load(Cleaning(collapse_white_space=False))
    assert corpus.test.sources == ["a\u2028b\x0bc\x85d", "e\rf"]


@pytest.mark.parametrize("limit", [None, 1])
def test_mismatched_line_counts_are_named(tmp_path: Path, limit: int | None) -> None:
    settings = text_files(tmp_path, train_reference=b"a dog\ntwo dogs\n", max_train=limit)
    expected = f"{settings.train_source} has 3 lines, but {settings.train_reference} has 2"
    assert refused(settings) == expected


def test_bad_utf8_is_named(tmp_path: Path) -> None:
    settings = text_files(tmp_path, test_reference="five fish\nsix b\xe9ars\n".encode("latin-1"))
    assert refused(settings) == f"{settings.test_reference}, line 2: byte 6 is 0xe9, no UTF-8"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refused(text_files(tmp_path, dev_source=tmp_path / "no.txt")) == f"{tmp_path / 'no.txt'} does not exist"
    assert f"{tmp_path} cannot be read" in refused(text_files(tmp_path, dev_source=tmp_path))


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    settings = text_files(tmp_path, ".gz")
    lines = joined([str(random.Random(0).random() + i) for i in range(10_000)])
    whole = gzip.compress(lines)
    inside = len(whole) // 2
    broken = whole[:inside] + bytes(64) + whole[inside + 64 :]
    for damaged in (whole[:inside], broken, lines, whole[:5]):
        settings.dev_source.write_bytes(damaged)
        assert f"{settings.dev_source} is damaged or no gzip file" in refused(settings)


def test_what_fairseq_leaves_is_read_with_and_without_marks(tmp_path: Path) -> None:
    for split, pairs in PAIRS.items():
        for side, end in enumerate(("de", "en")):
            lines = [pair[side].replace("Hunde", "Hun@@ de").replace("fish", "fi@@ sh") for pair in pairs]
            write(tmp_path / f"{'valid' if split == 'dev' else split}.{end}", joined(lines))
    assert pairs_of(FairseqText(tmp_path).load(Cleaning())) == PAIRS
    (tmp_path / "valid.en").write_text("four birds\nfive\n")
    expected = f"{tmp_path / 'valid.de'} has 1 lines, but {tmp_path / 'valid.en'} has 2"
    assert refused(FairseqText(tmp_path)) == expected


def test_splits_of_several_corpora(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, other = text_files(tmp_path), text_files(tmp_path / "other", dev_source="vier Hühner\n".encode())
    corpus = Combined(one, other, one).load(Cleaning())
    assert pairs_of(corpus) == {**PAIRS, "dev": [("vier Hühner", "four birds")]}


# Tab-separated text


@pytest.mark.parametrize("header", [False, True])
def test_tab_separated_columns_are_read(tmp_path: Path, header: bool) -> None:
    assert pairs_of(tab_separated(tmp_path, header).load(Cleaning())) == PAIRS


def test_tab_separated_text_may_lack_references(tmp_path: Path) -> None:
    path = write(tmp_path / "sources.tsv.gz", b'"one\tleft\r\ntwo"\tright\r\n')
    corpus = TabSeparated(path, path, path, reference_column=None).load(Cleaning(drop_train_in_test=False))
    assert (corpus.test.sources, corpus.test.references) == (['"one', 'two"'], None)


@pytest.mark.parametrize("header", [False, True])
def test_a_missing_column_is_named(tmp_path: Path, header: bool) -> None:
    settings = tab_separated(tmp_path, header, test=b"0\ten\tde\n1\tsix bears\n")
    assert refused(settings) == f"{settings.test}, line 2: 3 columns are needed, but it has 2"


def test_lines_are_counted_with_the_header(tmp_path: Path) -> None:
    settings = tab_separated(tmp_path, header=True, test=b"number\ten\tde\n0\t\tfisch\n")
    assert refused(settings) == f"{settings.test}, column 1, line 2: the line is empty"


def test_tab_separated_mistakes_are_named(tmp_path: Path) -> None:
    settings = tab_separated(tmp_path, train=b"0\tdog\tHund\n1\tdog\t\xff\n")
    assert refused(settings) == f"{settings.train}, line 2: byte 7 is 0xff, no UTF-8"
    assert refused(TabSeparated(tmp_path / "no.tsv", settings.dev, settings.test, 2)) == (
        f"{tmp_path / 'no.tsv'} does not exist"
    )


# The synthetic language


def test_synthetic_corpus_knows_its_quality() -> None:
    language = SyntheticLanguage(seed=3, train=40, dev=8, test=10)
    corpus = SyntheticCorpus(language).load(Cleaning())
    assert [len(split) for split in (corpus.train, corpus.dev, corpus.test)] == [40, 8, 10]
    assert (corpus.train.sources, corpus.train.references) == language.sentences("train")
    assert corpus.gold is not None
    gold = corpus.gold(corpus.test.sources, corpus.test.references or [])
    assert gold.dtype == np.float32
    assert gold.tolist() == [1.0] * 10


def test_synthetic_text_is_cleaned_like_any_other() -> None:
    language = SyntheticLanguage(train=40, dev=8, test=10)
    assert "synthetic dev sources, line 1: the line has" in refused(SyntheticCorpus(language), Cleaning(max_words=1))


# Cleaning


def test_dropped_training_pairs_are_counted(tmp_path: Path) -> None:
    train = [
        ("ein  Hund", "a dog"),  # kept: 0
        ("", "nothing"),
        ("nichts", " \u3000"),
        ("eins zwei drei vier fünf", "one"),
        ("eins", "one two three four five"),
        ("eins", "one two three"),  # ratio 1/3
        ("eins zwei drei", "one"),  # ratio 3
        ("\tein Hund ", "a dog"),  # duplicate
        ("ein Hund", "one dog"),  # kept: 8
        ("vier Vo\u0308gel", "some birds"),  # a dev source, written in NFD
        ("sechs Bären", "six bears"),  # a test source
    ]
    sources, references = (joined(list(side)) for side in zip(*train, strict=True))
    settings = text_files(tmp_path, train_source=sources, train_reference=references)
    cleaning = Cleaning(max_words=4, min_length_ratio=0.5, max_length_ratio=2.0, drop_duplicates=True)
    corpus = settings.load(cleaning)
    assert corpus.counts["train"] == {
        "read": 11, "kept": 2, "empty": 2, "too_long": 2, "ratio": 2, "duplicate": 1, "in_test": 2, "no_translation": 0
    }  # fmt: skip
    assert corpus.train.ids.tolist() == [0, 8]
    assert pairs_of(corpus)["train"] == [("ein Hund", "a dog"), ("ein Hund", "one dog")]
    lenient = settings.load(Cleaning(max_words=None, drop_train_in_test=False))
    assert lenient.counts["train"]["kept"] == 9
    assert pairs_of(lenient)["train"][-2] == ("vier Vögel", "some birds")


def one_has_words_that_the_other_has_not(sources: Sequence[str], references: Sequence[str]) -> np.ndarray:
    return np.array([len(x.split()) != len(y.split()) for x, y in zip(sources, references, strict=True)])


def test_pairs_that_are_no_translations_are_dropped_and_counted(tmp_path: Path) -> None:
    sides = [joined(["eins", "eins zwei", "eins zwei", "drei", ""]), joined(["one", "one", "one", "three", "four"])]
    settings = text_files(tmp_path, train_source=sides[0], train_reference=sides[1])
    corpus = settings.load(Cleaning(drop_duplicates=True, non_translations=one_has_words_that_the_other_has_not))
    counts = {name: count for name, count in corpus.counts["train"].items() if count}
    assert counts == {"read": 5, "kept": 2, "empty": 1, "duplicate": 1, "no_translation": 1}
    assert corpus.train.ids.tolist() == [0, 3]
    assert not corpus.counts["dev"]["no_translation"]
    alone = replace(settings, train_reference=None).load(Cleaning(non_translations=lambda x, y: np.ones(len(x), bool)))
    assert len(alone.train) == 4  # text without translations is not asked about


@given(st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=8))
def test_hashes_are_a_set(blocks: list[list[int]]) -> None:
    hashes, known = Hashes(), set[int]()
    for block in blocks:
        new = hashes.add(np.array(block, np.uint64))
        for value, is_new in zip(block, new.tolist(), strict=True):
            assert is_new == (value not in known)
            known.add(value)
    assert len(hashes) == len(known)


def test_unicode_forms(tmp_path: Path) -> None:
    settings = text_files(tmp_path, test_source="\ufb01nden\nBa\u0308r\n".encode())
    assert settings.load(Cleaning()).test.sources == ["\ufb01nden", "Bär"]
    assert settings.load(Cleaning(unicode_form="NFKC")).test.sources == ["finden", "Bär"]
    assert settings.load(Cleaning(unicode_form="none")).test.sources == ["\ufb01nden", "Ba\u0308r"]


@pytest.mark.parametrize("split", ["dev", "test", "train"])
@pytest.mark.parametrize("side", ["source", "reference"])
def test_empty_and_over_long_lines_are_refused(tmp_path: Path, split: str, side: str) -> None:
    cleaning = Cleaning(max_words=4, bad_train_lines="refuse" if split == "train" else "drop")
    good = [pair[side == "reference"] for pair in PAIRS[split]]
    path = tmp_path / f"{split}_{side}.txt"
    for line, fault in (("\u2003 ", "is empty"), ("a b c d e", "has 5 words, more than max_words = 4")):
        settings = text_files(tmp_path, **{f"{split}_{side}": joined([*good[:-1], line])})
        assert refused(settings, cleaning) == f"{path}, line {len(good)}: the line {fault}"


def test_a_split_without_sentences_is_refused(tmp_path: Path) -> None:
    settings = text_files(tmp_path, dev_source=b"", dev_reference=b"")
    assert f"{settings.dev_source}: no dev sentence is left (read 0," in refused(settings)
    settings = text_files(tmp_path, train_source=b"\n\n\n")
    assert "no train sentence is left (read 3, kept 0, empty 3," in refused(settings)


def test_settings_are_checked(tmp_path: Path) -> None:
    good: dict = {"train": tmp_path, "dev": tmp_path, "test": tmp_path}
    for make, message in (
        (lambda: Cleaning(max_words=0), "max_words must be at least 1, not 0"),
        (lambda: Cleaning(min_length_ratio=2.0, max_length_ratio=1.0), "min_length_ratio 2.0 is above"),
        (lambda: text_files(tmp_path, max_dev=0), "max_dev must be at least 1, not 0"),
        (lambda: TabSeparated(**good, source_column=-1), "source_column counts from 0, so it cannot be -1"),
    ):
        with pytest.raises(UserError, match=message):
            make()
    # In tests types are checked before __post_init__ runs, so an unknown word has to be put in afterwards.
    for name, message in (
        ("unicode_form", "unicode_form must be NFC, NFKC or none, not 'other'"),
        ("bad_train_lines", "bad_train_lines must be drop or refuse, not 'other'"),
    ):
        cleaning = Cleaning()
        object.__setattr__(cleaning, name, "other")
        with pytest.raises(UserError, match=message):
            cleaning.__post_init__()


def test_settings_are_flags() -> None:
    cleaning = tyro.cli(Cleaning, args=["--max-words", "None", "--unicode-form", "NFKC", "--drop-duplicates"])
    assert cleaning == Cleaning(max_words=None, unicode_form="NFKC", drop_duplicates=True)
    args = ["--train-source=a", "--train-reference=None", "--dev-source=b", "--dev-reference=c"]
    files = tyro.cli(TextFiles, args=[*args, "--test-source=d", "--test-reference=e", "--max-train=7"])
    assert files == TextFiles(Path("a"), None, Path("b"), Path("c"), Path("d"), Path("e"), max_train=7)


LINES = st.text(
    st.one_of(st.sampled_from("aäb 我\u3000\u2028\u0308\u1100\u1161\ufb01\r\t"), st.characters(codec="utf-8"))
).map(lambda text: text.replace("\n", " ").removesuffix("\r").removeprefix("\ufeff"))
CLEANINGS = st.builds(
    Cleaning,
    unicode_form=st.sampled_from(["NFC", "NFKC", "none"]),
    lowercase=st.booleans(),
    collapse_white_space=st.booleans(),
    max_words=st.none() | st.integers(1, 4),
    min_length_ratio=st.none() | st.floats(0.1, 0.9),
    max_length_ratio=st.none() | st.floats(1.1, 9.0),
    drop_train_in_test=st.booleans(),
    drop_duplicates=st.booleans(),
)


@given(LINES, CLEANINGS)
def test_cleaning_is_idempotent(line: str, cleaning: Cleaning) -> None:
    once = cleaning.line(line)
    assert cleaning.line(once) == once
    if cleaning.collapse_white_space:
        assert once == once.strip()
        assert len(once.split()) == (once.count(" ") + 1 if once else 0)


@given(st.lists(st.tuples(LINES, LINES), max_size=12), CLEANINGS)
def test_ids_are_positions_before_cleaning(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], cleaning: Cleaning
) -> None:
    folder = tmp_path_factory.getbasetemp() / "ids"
    folder.mkdir(exist_ok=True)
    pairs = [*pairs, ("eins", "one"), *pairs[:3]]
    sides = {name: joined([pair[i] for pair in pairs]) for i, name in enumerate(("train_source", "train_reference"))}
    held_out = {f"{split}_{side}": b"x\n" for split in ("dev", "test") for side in ("source", "reference")}
    corpus = text_files(folder, **sides, **held_out).load(cleaning)
    train, counts = corpus.train, corpus.counts["train"]
    assert np.all(np.diff(train.ids) > 0)
    expected = [tuple(cleaning.line(text) for text in pairs[i]) for i in train.ids]
    assert pairs_of(corpus)["train"] == expected
    assert counts["read"] == len(pairs)
    assert counts["kept"] == len(train)
    assert counts["read"] == sum(counts.values()) - counts["read"]
    if cleaning.drop_duplicates:
        assert len(set(expected)) == len(expected)
    if cleaning.drop_train_in_test:
        assert "x" not in train.sources


def test_multi30k(tmp_path: Path) -> None:
    if "REST_DATA" not in os.environ:
        pytest.skip("the environment variable REST_DATA does not name a folder with multi30k")
    data = Path(os.environ["REST_DATA"]) / "multi30k"
    names = ("train.de", "train.en", "val.de", "val.en", "test_2016_flickr.de", "test_2016_flickr.en")
    corpus = TextFiles(*(data / f"{name}.gz" for name in names)).load(Cleaning())
    assert {split: counts["read"] for split, counts in corpus.counts.items()} == {
        "train": 29_000, "dev": 1_014, "test": 1_000
    }  # fmt: skip
    assert corpus.counts["train"]["kept"] > 28_900
    assert not set(corpus.train.sources) & {*corpus.dev.sources, *corpus.test.sources}


def test_marks_of_byte_order_and_nul_are_no_text():
    cleaning = Cleaning()
    spellings = ("größe der", "gro\u0308ße der", "größe\u00a0der", "größe\t  der", "\ufeffgröße der", "größe\0der ")
    assert {cleaning.line(text) for text in spellings} == {"größe der"}
    assert cleaning.line("\ufeff \0") == ""


def test_a_run_and_its_stages_know_how_its_text_was_cleaned(tmp_path):
    assert cleaning_of(tmp_path / "bc") == Cleaning()
    (tmp_path / "bc").mkdir()
    settings = describe(Cleaning(lowercase=True, max_words=7))
    (tmp_path / "experiment.json").write_text(json.dumps({"cleaning": settings}))
    assert cleaning_of(tmp_path) == cleaning_of(tmp_path / "bc") == Cleaning(lowercase=True, max_words=7)
