"""Tokenizers: text to ids and back, their identity, and what they refuse."""

from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from rest.data.tokenizer import (
    HuggingFaceSettings,
    HuggingFaceTokenizer,
    Prompt,
    SentencePieceSettings,
    SentencePieceTokenizer,
    load_tokenizer,
)
from rest.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden"
TEXT = ["the dog sees the cat", "a cat sees a dog", "the dogs see a bird", "birds see the cats"] * 5


def word_level(vocabulary: dict[str, int] | None = None, **special: str | None) -> HuggingFaceTokenizer:
    """A Hugging Face tokenizer of whole words, built without a network."""
    vocabulary = vocabulary or {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "dog": 4, "sees": 5}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", **special}
    return HuggingFaceTokenizer(
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, **{name: token for name, token in names.items() if token}
        )
    )


def test_every_sentence_of_the_corpus_comes_back_as_it_was(corpus, tokenizer):
    texts = [*corpus.train.sources, *corpus.train.references]
    assert tokenizer.decode(tokenizer.encode(texts)) == texts


@given(st.lists(st.text("abcdehinorst", min_size=1), min_size=1).map(" ".join))
def test_any_text_of_known_characters_comes_back(text):
    tokenizer = trained(60)
    assert tokenizer.decode(tokenizer.encode([text])) == [text]


def trained(size: int, seed: int = 0, **settings: object) -> SentencePieceTokenizer:
    return SentencePieceSettings(size, **settings).train([TEXT, ["".join("abcdehinorst")]], seed)


def test_padding_eos_and_unknown_have_the_first_ids(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)
    (unknown,) = tokenizer.encode(["Ω"])
    assert unknown[-1] == 2
    assert all(0 < i < tokenizer.vocabulary_size for i in unknown)


def test_encoding_adds_no_eos_and_decoding_drops_eos_and_padding(tokenizer, corpus):
    (ids,) = tokenizer.encode(corpus.dev.sources[:1])
    assert 0 not in ids and 1 not in ids
    assert tokenizer.decode([[*ids, 1, 0, 0], []]) == [corpus.dev.sources[0], ""]
    assert tokenizer.encode([]) == [] and tokenizer.decode([]) == []


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_again_with_the_same_seed_gives_the_same_tokenizer(kind):
    first, second = trained(50, kind=kind), trained(50, kind=kind)
    assert first.identity == second.identity
    assert first.encode(TEXT) == second.encode(TEXT)
    assert first.identity != SentencePieceSettings(50, kind=kind).train([TEXT], 0).identity


def test_a_text_with_few_pieces_gives_a_smaller_vocabulary():
    tokenizer = trained(10_000)
    assert 20 < tokenizer.vocabulary_size < 10_000
    assert max(max(ids) for ids in tokenizer.encode(TEXT)) < tokenizer.vocabulary_size


def test_max_sentences_limits_what_is_learned_from():
    few = SentencePieceSettings(30, max_sentences=4).train([[*TEXT[:4], "zzz zzz"]], 0)
    assert few.identity == SentencePieceSettings(30).train([TEXT[:4]], 0).identity


def test_byte_fallback_spells_characters_that_were_never_seen():
    tokenizer = trained(300, byte_fallback=True)
    assert tokenizer.decode(tokenizer.encode(["a Ω dog 狗"])) == ["a Ω dog 狗"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"vocabulary_size": 5}, "could not learn 5 pieces"),
        ({"kind": "syllables"}, "syllables"),
        ({"normalization": "nfx"}, "nfx"),
    ],
)
def test_settings_that_sentencepiece_refuses_are_named_in_one_line(settings, named):
    with pytest.raises(UserError, match=named) as caught:
        SentencePieceSettings(**{"vocabulary_size": 50, **settings}).train([TEXT], 0)
    assert "\n" not in str(caught.value)


def test_no_text_at_all_is_refused():
    with pytest.raises(UserError, match="could not learn"):
        SentencePieceSettings(50).train([[], []], 0)


def test_what_the_decoder_starts_from_is_learned_with_the_pieces_and_kept(tmp_path):
    padding, eos = (SentencePieceSettings(40, start=start).train([TEXT], 0) for start in ("padding", "eos"))
    assert (padding.prompt, eos.prompt) == (Prompt(padding.pad_id), Prompt(eos.eos_id))
    assert padding.models == eos.models and padding.identity != eos.identity
    eos.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.prompt, again.identity) == (eos.prompt, eos.identity)


@pytest.mark.parametrize("make", [lambda: trained(50), word_level], ids=["SentencePiece", "Hugging Face"])
def test_saving_and_loading_keeps_ids_and_identity(make, tmp_path):
    tokenizer = make()
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert type(loaded) is type(tokenizer)
    assert loaded.identity == tokenizer.identity
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert (loaded.pad_id, loaded.eos_id) == (tokenizer.pad_id, tokenizer.eos_id)
    assert loaded.vocabulary_size == tokenizer.vocabulary_size


def test_a_hugging_face_tokenizer_adds_no_special_tokens_and_drops_them_when_decoding(tmp_path):
    word_level().save(tmp_path)
    tokenizer = HuggingFaceSettings(str(tmp_path)).train([TEXT], 0)
    assert tokenizer.encode(["a dog sees", "a bird"]) == [[3, 4, 5], [3, 2]]
    assert tokenizer.decode([[3, 4, 5, 1, 0]]) == ["a dog sees"]
    assert tokenizer.encode([]) == [] and tokenizer.decode([]) == []
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.vocabulary_size) == (0, 1, 6)


def test_a_vocabulary_with_gaps_has_room_for_its_highest_id():
    tokenizer = word_level({"<pad>": 0, "</s>": 1, "<unk>": 2, "dog": 9})
    assert tokenizer.encode(["dog"]) == [[9]]
    assert tokenizer.vocabulary_size == 10


def test_another_vocabulary_is_another_identity():
    other = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "dog": 5, "sees": 4}
    assert word_level().identity != word_level(other).identity


def test_stored_truncation_changes_neither_the_ids_nor_the_identity(tmp_path):
    plain = word_level()
    plain.save(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.save(str(tmp_path / "tokenizer.json"))
    cutting = load_tokenizer(tmp_path)
    assert cutting.identity == plain.identity
    assert cutting.encode(["a dog sees a dog"]) == [[3, 4, 5, 3, 4]]


@pytest.mark.parametrize("missing", ["eos_token", "pad_token"])
def test_a_tokenizer_without_eos_or_padding_is_refused(missing):
    with pytest.raises(UserError, match="lacks an EOS or a padding token"):
        word_level(**{missing: None})


def test_a_missing_folder_and_a_folder_without_a_tokenizer_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere: no tokenizer there"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty.* cannot be loaded"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no-such-tokenizer.* cannot be loaded"):
        HuggingFaceSettings(str(Path("no-such-tokenizer"))).train([], 0)


@pytest.mark.parametrize("folder", ["t5", "mt5", "mbart"])
def test_text_cannot_say_what_ends_or_pads_it(folder):
    tokenizer = HuggingFaceSettings(str(GOLDEN / "huggingface" / folder)).train([], 0)
    control = {tokenizer.eos_id, tokenizer.pad_id}
    for text in ("a </s> b <pad> c", "</s>", "<pad></s>a"):
        for encode in (tokenizer.encode, tokenizer.encode_targets):
            few = encode(["a b", text])
            assert control.isdisjoint(few[1]) and few[1] and few[0] == encode(["a b"])[0]
