"""IWSLT14 from an archive as it is distributed, and every mistake in it named."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from rest.data.corpus import Cleaning
from rest.data.iwslt import IWSLT14
from rest.errors import UserError

TALKS = {  # talk: (German, English), the first pair the title, the second the description
    "1": [("Ein Vortrag", "A talk"), ("Worum es geht", "What it is about"), ("Guten Tag .", "Good day .")],
    "2": [("Noch einer", "Another"), ("Worum ?", "About ?"), ("Hallo & tschüss", "Hello & bye"), ("3 < 4", "3 < 4")],
}
SETS = {"TED.dev2010": [("der Hund", "the dog’s")], "TED.tst2010": [("die Katze", "the cat"), ("ein Haus", "a house")]}


def train_tags(side: int, talks: dict[str, list[tuple[str, str]]] = TALKS) -> str:
    """A file of train.tags, as the archive has them."""
    lines = []
    for talk, pairs in talks.items():
        title, about, *said = (pair[side] for pair in pairs)
        lines += [f"<url>http://www.ted.com/talks/{talk}.html</url>", "<keywords>talks, things</keywords>"]
        lines += [f"<talkid>{talk}</talkid>", f"<title>{title}</title>", f"<description>{about}</description>"]
        lines += [*said] + ["<reviewer>N. N.</reviewer>"] * side  # one side has a line more that is no sentence
    return "".join(line + "\n" for line in lines)


def xml(side: int, pairs: list[tuple[str, str]]) -> str:
    """A dev or test set, as the archive has them."""
    frame = "refset" if side else "srcset"
    head = ['<?xml version="1.0" encoding="UTF-8"?>', "<mteval>", f'<{frame} setid="iwslt2014" srclang="german">']
    head += ['<doc docid="535" genre="lectures">', "<talkid>535</talkid>", "<title>A title</title>"]
    head += ["<description>It is", "about things.</description>"]
    segments = [f'<seg id="{k}"> {pair[side]} </seg>' for k, pair in enumerate(pairs, start=1)]
    return "".join(line + "\n" for line in (*head, *segments, "</doc>", f"</{frame}>", "</mteval>"))


def files(**changed: str) -> dict[str, str]:
    """Names and contents; `changed` by the name's stem and language: train_de, dev_en, ..."""
    found = {}
    for side, language in enumerate(("de", "en")):
        found[f"train.tags.de-en.{language}"] = changed.get(f"train_{language}", train_tags(side))
        for name, pairs in SETS.items():
            text = changed.get(f"{name[4:7]}_{language}", xml(side, pairs))
            found[f"IWSLT14.{name}.de-en.{language}.xml"] = text
    return found


def archive(path: Path, contents: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in contents.items():
            member = tarfile.TarInfo(f"de-en/{name}")
            member.size = len(text.encode())
            tar.addfile(member, BytesIO(text.encode()))
    return path


@pytest.fixture
def tgz(tmp_path: Path) -> Path:
    return archive(tmp_path / "de-en.tgz", files())


def settings(path: Path, **overrides: object) -> IWSLT14:
    return IWSLT14(path, **{"dev": ("TED.dev2010",), "test": ("TED.tst2010",), **overrides})  # type: ignore[arg-type]


def refused(of: IWSLT14) -> str:
    with pytest.raises(UserError) as caught:
        of.load(Cleaning())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_archive_is_read_as_fairseq_reads_it(tgz: Path, tmp_path: Path) -> None:
    corpus = settings(tgz).load(Cleaning())
    said = [pair for pairs in TALKS.values() for pair in pairs]
    assert list(zip(corpus.train.sources, corpus.train.references or [], strict=True)) == said
    assert corpus.train.documents == ["1"] * 3 + ["2"] * 4
    assert (corpus.dev.sources, corpus.dev.references) == (["der Hund"], ["the dog's"])  # its sed on dev and test
    assert corpus.test.sources == ["die Katze", "ein Haus"] and corpus.test.documents == ["535", "535"]
    assert corpus.test.take([1]).documents == ["535"]
    turned = settings(tgz, source_language="en", test=("TED.tst2010", "TED.dev2010"), dev=())
    assert [pair.source for pair in turned.rows("test").pairs] == ["the cat", "a house", "the dog's"]
    with tarfile.open(tgz) as tar:
        tar.extractall(tmp_path, filter="data")
    for folder in (tmp_path, tmp_path / "de-en"):
        assert settings(folder).load(Cleaning()).train.sources == corpus.train.sources


def test_every_23rd_pair_that_is_left_is_dev(tmp_path: Path) -> None:
    pairs = [(f"Satz {k}", f"sentence {k}") for k in range(48)]
    pairs[3] = ("", "nothing")
    pairs[30] = pairs[23]  # of the first dev pair: not for train
    sides = {f"train_{language}": train_tags(side, {"7": pairs}) for side, language in enumerate(("de", "en"))}
    corpus = settings(archive(tmp_path / "x.tgz", files(**sides)), dev=()).load(Cleaning(lowercase=True))
    assert corpus.dev.ids.tolist() == [23, 46] and corpus.dev.sources == ["satz 23", "satz 46"]
    assert corpus.dev.name == "dev" and not {3, 23, 30, 46} & set(corpus.train.ids.tolist())
    assert corpus.counts["train"] | {"read": 46} == corpus.counts["train"]
    assert [corpus.counts["train"][name] for name in ("kept", "empty", "in_test")] == [44, 1, 1]
    assert corpus.counts["dev"]["kept"] == len(corpus.dev) == 2
    assert "too few to take every 23rd as dev" in refused(settings(archive(tmp_path / "y.tgz", files()), dev=()))


def test_an_archive_that_is_cut_short_is_named(tgz: Path, tmp_path: Path) -> None:
    whole = tgz.read_bytes()
    for size in range(6, len(whole) - 8, 97):  # what follows is gzip's own checksum
        tgz.write_bytes(whole[:size])
        assert "cut short" in refused(settings(tgz)), size
    for data in (b"", b"no archive", whole[:5]):
        tgz.write_bytes(data)
        assert refused(settings(tgz)).startswith(f"{tgz} is damaged or cut short, or no archive")
    assert refused(settings(tmp_path / "no.tgz")) == f"{tmp_path / 'no.tgz'} does not exist"
    found = refused(settings(archive(tgz, files()), test=("TED.tst1999",)))
    assert found == f"{tgz} has no de-en/IWSLT14.TED.tst1999.de-en.de.xml; it may be cut short"


NOT_ONE = 'the line is not one <seg id="...">, its text and </seg>'
GOOD = xml(0, SETS["TED.tst2010"])


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (GOOD.replace("</seg>\n</doc>", "\n</doc>"), f"line 10: {NOT_ONE}"),
        (GOOD.replace("die Katze", "die <seg> Katze"), f"line 9: {NOT_ONE}"),
        (GOOD.replace("</doc>", "<b>\n</doc>"), "line 11: the tag <b> is none"),
        (GOOD.replace("</doc>", ""), "ends inside the document 535"),
        (GOOD.replace('<doc docid="535" genre="lectures">', ""), "line 9: the segment is in no <doc>"),
        (GOOD.replace("</doc>", '<doc docid="6">'), 'line 11: <doc docid="6"> does not follow what was opened before'),
        (GOOD.replace(" ein Haus ", " "), "line 10: the line is empty"),
        (GOOD.replace('docid="535"', 'docid="536"'), "line 9: the sentence is segment 1 of talk 536, but at "),
        (xml(0, SETS["TED.tst2010"][:1]), ".de.xml has 1 sentences, but "),
    ],
)  # fmt: skip
def test_mistakes_in_a_set_are_named(tmp_path: Path, wrong: str, fault: str) -> None:
    path = archive(tmp_path / "de-en.tgz", files(tst_de=wrong))
    found = refused(settings(path))
    assert found.startswith(f"{path}, de-en/IWSLT14.TED.tst2010.de-en.de.xml") and fault in found


def test_sides_of_training_text_that_differ_are_named(tmp_path: Path) -> None:
    shorter = {talk: pairs[:-1] if talk == "1" else pairs for talk, pairs in TALKS.items()}
    path = archive(tmp_path / "a.tgz", files(train_en=train_tags(1, shorter)))
    place = f"{path}, de-en/train.tags.de-en"
    assert refused(settings(path)) == (
        f"{place}.de, line 6: the sentence is of talk 1, but at {place}.en, line 10 it is of talk 2"
    )
    shorter = {talk: pairs[:-1] if talk == "2" else pairs for talk, pairs in TALKS.items()}
    path = archive(tmp_path / "b.tgz", files(train_en=train_tags(1, shorter)))
    place = f"{path}, de-en/train.tags.de-en"
    assert refused(settings(path)) == (
        f"{place}.de has 7 sentences, but {place}.en has 6: from line 13 of {place}.de on there is nothing beside them"
    )


def test_an_empty_reference_of_a_test_set_is_named(tmp_path: Path) -> None:
    path = archive(tmp_path / "de-en.tgz", files(tst_en=xml(1, SETS["TED.tst2010"]).replace(" a house ", " ")))
    place = "de-en/IWSLT14.TED.tst2010.de-en.en.xml, line 10"
    assert refused(settings(path)) == f"{path}, {place}: the line is empty"


def test_settings_are_checked(tgz: Path) -> None:
    with pytest.raises(UserError, match="source_language 'fr' is not in the pair 'de-en'"):
        settings(tgz, source_language="fr")
    with pytest.raises(UserError, match="pair must be two languages such as de-en, not 'deen'"):
        settings(tgz, pair="deen")
    with pytest.raises(UserError, match="test: name at least one set"):
        settings(tgz, test=())
    with pytest.raises(UserError, match="dev: name dev sets"):
        settings(tgz, dev=()).rows("dev")


def test_a_set_that_chooses_is_not_tested_on() -> None:
    with pytest.raises(UserError, match=r"dev and test both name TED.dev2010.*; for test say \['TEDX.dev2012'"):
        IWSLT14(Path("de-en.tgz"), dev=("TED.dev2010",))
    assert IWSLT14(Path("de-en.tgz"), dev=("TED.dev2010",), test=("TED.tst2010",)).dev
