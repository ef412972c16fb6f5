"""Test sets from sacreBLEU's cache, in the layout that sacreBLEU writes."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from rest.data.corpus import Cleaning, Combined, SyntheticCorpus
from rest.data.synthetic import SyntheticLanguage
from rest.data.testsets import SacreBLEU
from rest.errors import UserError

SGM = {"src.de": ("srcset", ["ein Hund", "zwei  Hunde"]), "ref.en": ("refset", ["a dog", "two dogs"])}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Texts of wmt20/tworefs as sacreBLEU leaves them, the raw files of wmt20, and no network."""
    folder = tmp_path / "wmt20" / "tworefs"
    folder.mkdir(parents=True)
    texts = {
        "src": "ein Hund\nzwei Hunde\n", "ref-0": "a dog\ntwo dogs\n", "ref-1": "one dog\n2 dogs\n",
        "docid": "bbc.1\nbbc.2\n", "genre": "news\nnews\n", "origlang": "de\nde\n",
    }  # fmt: skip
    for field, text in texts.items():
        (folder / f"wmt20_tworefs.de-en.{field}").write_text(text)
    raw = tmp_path / "wmt20" / "raw" / "sgm"
    raw.mkdir(parents=True)
    (raw.parent / "wmt20.test.tgz").write_bytes(b"what was fetched before")
    for end, (frame, lines) in SGM.items():
        segments = "".join(f'<seg id="{k}">{line}</seg>\n' for k, line in enumerate(lines, start=1))
        document = f'<doc sysid="ref" docid="cnn.7" genre="news" origlang="de">\n<p>\n{segments}</p>\n</doc>\n'
        (raw / f"newstest2020-deen-{end}.sgm").write_text(f'<{frame} setid="newstest2020">\n{document}</{frame}>\n')

    def no_network(*_: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return tmp_path


def test_all_references_are_read_with_documents(cache: Path) -> None:
    split = SacreBLEU("wmt20/tworefs", "de-en", cache).split(Cleaning())
    assert split.sources == ["ein Hund", "zwei Hunde"] and split.references == ["a dog", "two dogs"]
    assert split.more_references == [["one dog", "2 dogs"]] and split.documents == ["bbc.1", "bbc.2"]


def test_texts_are_made_of_what_was_fetched(cache: Path) -> None:
    split = SacreBLEU("wmt20", "de-en", cache).split(Cleaning(), "dev")
    assert (split.name, split.sources, split.references) == ("dev", ["ein Hund", "zwei Hunde"], ["a dog", "two dogs"])
    assert split.documents == ["cnn.7", "cnn.7"] and (cache / "wmt20" / "wmt20.de-en.ref").exists()


def test_a_corpus_takes_them_as_dev_and_test(cache: Path) -> None:
    made = SyntheticCorpus(SyntheticLanguage(train=40, dev=8, test=10))
    both = Combined(made, SacreBLEU("wmt20", "de-en", cache), SacreBLEU("wmt20/tworefs", "de-en", cache))
    corpus = both.load(Cleaning())
    assert len(corpus.train) == 40 and corpus.dev.name == "dev" and len(corpus.test.more_references) == 1


def refused(of: SacreBLEU) -> str:
    with pytest.raises(UserError) as caught:
        of.split(Cleaning())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_named(cache: Path) -> None:
    assert refused(SacreBLEU("wmt02", "de-en", cache)).startswith("sacreBLEU has no test set 'wmt02'")
    assert "has no pair 'de-xx', it has cs-en, de-en," in refused(SacreBLEU("wmt20", "de-xx", cache))
    assert refused(SacreBLEU("wmt19", "de-en", cache)) == (
        f"the test set 'wmt19', de-en, is not in sacreBLEU's cache {cache / 'wmt19'}, and could not be fetched: "
        "<urlopen error no route to host>"
    )
    file = cache / "wmt20" / "tworefs" / "wmt20_tworefs.de-en.ref-1"
    file.write_text("one dog\n\n")
    assert refused(SacreBLEU("wmt20/tworefs", "de-en", cache)) == f"{file}, line 2: the line is empty"
    file.write_text("one dog\n")
    source = file.with_suffix(".src")
    assert refused(SacreBLEU("wmt20/tworefs", "de-en", cache)) == f"{source} has 2 lines, but {file} has 1"
    file.write_text("one dog\n2 dogs\n")
    documents = file.with_suffix(".docid")
    documents.write_text("bbc.1\n")
    found = refused(SacreBLEU("wmt20/tworefs", "de-en", cache))
    assert found == f"{source} has more lines than {documents}, which ends at line 1"
    documents.write_text("bbc.1\nbbc.2\nbbc.3\n")
    assert refused(SacreBLEU("wmt20/tworefs", "de-en", cache)) == f"{source} has 2 lines, but {documents} has more"
