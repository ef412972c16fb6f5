"""The token ids of a run's texts: made once, right, and nobody's but those of the texts."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rest import load_experiment
from rest.data import known
from rest.data.corpus import Split
from rest.data.known import KnownTexts, Remembering, hashes_of
from rest.data.tokenizer import Prompt, Tokenizer, source_ids, target_ids
from rest.runs import Run

TINY = str(Path(__file__).parent.parent / "tiny.py")


class Letters:
    """A tokenizer of letters, whose targets are other ids, and which counts what it is asked."""

    vocabulary_size, pad_id, eos_id, identity, prompt = 300, 0, 1, "letters", Prompt(0)

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts):
        self.asked += texts
        return [[ord(letter) for letter in text] for text in texts]

    def encode_targets(self, texts):
        return [[i + 1 for i in ids] for ids in self.encode(texts)]

    def decode(self, ids):
        return ["".join(map(chr, row)) for row in ids]

    def save(self, folder):
        raise NotImplementedError


SPLITS = [
    Split("dev", np.arange(3), ["a b", "", "dog"], ["x", "", "y z"], [["dog", "u", "v"]]),
    Split("train", np.arange(4), ["dog", "cat", "cat", "\ud800"], ["x", "x", "w", "dog"]),
    Split("text", np.arange(1), ["cow"], None),
]


def test_known_texts_have_the_ids_that_the_tokenizer_gives_and_are_asked_for_once(tmp_path):
    letters, plain = Letters(), Letters()
    tokenizer = Remembering(letters, tmp_path, SPLITS)
    sources, targets = {"a b", "", "dog", "cat", "\ud800", "cow"}, {"x", "", "y z", "dog", "u", "v", "w"}
    assert sorted(letters.asked) == sorted([*sources, *targets])
    letters.asked.clear()
    assert tokenizer.encode(sorted(sources)) == plain.encode(sorted(sources))
    assert tokenizer.encode_targets(sorted(targets)) == plain.encode_targets(sorted(targets))
    again = Remembering(letters, tmp_path, SPLITS)
    assert again.encode(["dog", "dog"]) == plain.encode(["dog", "dog"]) and letters.asked == []
    mixed = ["new", "cat", "x", "new", "dog"]
    assert again.encode(mixed) == plain.encode(mixed) and letters.asked == ["new", "x", "new"]
    assert again.encode([]) == [] and again.identity == "letters"


def test_another_tokenizer_or_text_has_files_of_its_own(tmp_path):
    Remembering(Letters(), tmp_path, SPLITS[2:])
    other = Letters()
    other.identity = "others"
    Remembering(other, tmp_path, SPLITS[2:])
    Remembering(Letters(), tmp_path, [Split("text", np.arange(1), ["cows"], None)])
    assert len(list(tmp_path.glob("text-source-*.arrow"))) == 3


def test_texts_of_one_half_hash_are_told_apart_by_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(
        known, "hashes_of", lambda texts: np.array([[7, len(x)] for x in texts], np.uint64).reshape(-1, 2)
    )
    found = KnownTexts.kept(tmp_path / "x.arrow", ["aa", "bbb"], Letters().encode)
    assert found.find(known.hashes_of(["aa", "bbb", "c"])).tolist() == [0, -1, -1]
    assert KnownTexts.kept(tmp_path / "none.arrow", [], Letters().encode).find(known.hashes_of(["a"])).tolist() == [-1]


def test_of_several_that_want_a_file_one_makes_it_and_what_a_crash_left_is_removed(tmp_path):
    left = tmp_path / ".x.arrow.0.writing"
    left.write_bytes(b"half")
    letters = Letters()
    with ThreadPoolExecutor(4) as threads:
        every = list(threads.map(lambda _: KnownTexts.kept(tmp_path / "x.arrow", ["b", "a"], letters.encode), range(4)))
    assert sorted(letters.asked) == ["a", "b"] and not left.exists()
    assert all(sorted(one.find(hashes_of(["a", "b"])).tolist()) == [0, 1] for one in every)


def test_every_text_of_a_run_is_tokenised_once(finished, tokenised):
    corpus = Run(load_experiment(TINY), finished).inputs.corpus
    for split in (corpus.train, corpus.dev, corpus.test):
        for side, texts in (("encode", split.sources), ("encode_targets", split.references)):
            assert {tokenised[side].get(text) for text in texts} == {1}


def test_what_is_kept_is_what_a_policy_reads(corpus, policy, tmp_path):
    tokenizer: Tokenizer = Remembering(policy.tokenizer, tmp_path, [corpus.dev])
    for of, texts in ((source_ids, corpus.dev.sources), (target_ids, corpus.dev.references)):
        for one, other in zip(of(tokenizer, texts), of(policy.tokenizer, texts), strict=True):
            np.testing.assert_array_equal(one, other)
