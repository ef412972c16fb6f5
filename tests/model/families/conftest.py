"""The golden models of every family, each with a made-up tokenizer."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import models

from rest.data.tokenizer import HuggingFaceTokenizer, MarianTokenizer, SentencePieceSettings, SentencePieceTokenizer
from rest.model.families.huggingface import HuggingFaceModel
from rest.policy.policy import Policy

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "huggingface"
VOCABULARY = 70
T5_SPECIAL, MADLAD_SPECIAL = ["<pad>", "</s>", "<unk>"], ["<unk>", "<pad>", "</s>"]
BART_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
LANGUAGES = {  # the names of ids 60 and on
    "madlad": ["de", "fr", "zh_Hant"],
    "m2m100": ["deu_Latn", "fra_Latn", "eng_Latn"],
    "mbart": ["de_DE", "fr_XX", "en_XX"],
}


def spm(seed: int) -> SentencePieceTokenizer:
    """Pieces of a made-up language, another one for each seed."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("abcdefgh"), random.integers(2, 6))) for _ in range(40)]
    return SentencePieceSettings(40).train([[" ".join(random.choice(words, 6)) for _ in range(200)]], 0)


def pieces_of(*sides: SentencePieceTokenizer, size: int = VOCABULARY) -> list[str]:
    """EOS first and padding last, as OPUS-MT has them."""
    known = ["</s>", "<unk>", ">>xyz<<", ">>ab<<", *(piece for side in sides for piece in side.pieces[3:])]
    shared = list(dict.fromkeys(known))
    return [*shared[: size - 1], *(f"piece{i}" for i in range(size - 1 - len(shared))), "<pad>"]


def marian_tokenizer() -> MarianTokenizer:
    """Source and target pieces of two languages in 70 ids."""
    source, target = spm(1), spm(2)
    return MarianTokenizer((source.models[0], target.models[0]), pieces_of(source, target))


def two_vocabularies() -> MarianTokenizer:
    """75 ids of the source, 70 of the target."""
    source, target = spm(1), spm(2)
    models = source.models[0], target.models[0]
    return MarianTokenizer(models, pieces_of(target), pieces_of(source, size=VOCABULARY + 5))


def word_tokenizer(special: list[str], languages: list[str]) -> HuggingFaceTokenizer:
    """An id a word: w7 is 7."""
    words = [*special, *(f"w{i}" for i in range(len(special), VOCABULARY))]
    words[60 : 60 + len(languages)] = languages
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    names |= {"bos_token": "<s>"} if "<s>" in special else {}
    return HuggingFaceTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names))


def with_tokenizers(root: Path) -> dict[str, Path]:
    """Copies of the golden models, each with a tokenizer, by their names."""
    t5 = word_tokenizer(T5_SPECIAL, [])
    made = {
        **dict.fromkeys(("marian", "marian_gelu"), marian_tokenizer()),
        "marian_two": two_vocabularies(),
        **dict.fromkeys(("t5", "t5_1_1", "mt5", "umt5"), t5),
        "madlad": word_tokenizer(MADLAD_SPECIAL, [f"<2{name}>" for name in LANGUAGES["madlad"]]),
        "m2m100": word_tokenizer(BART_SPECIAL, LANGUAGES["m2m100"]),
        "mbart": word_tokenizer(BART_SPECIAL, LANGUAGES["mbart"]),
    }
    for name, tokenizer in made.items():
        shutil.copytree(GOLDEN / name, root / name)
        tokenizer.save(root / name)
    return {name: root / name for name in made}


@pytest.fixture(scope="session")
def pieces():
    """A function: a SentencePiece tokenizer of a made-up language, by its number."""
    return spm


@pytest.fixture(scope="session")
def marian():
    """The tokenizer of the Marian models."""
    return marian_tokenizer()


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The golden models, each with a tokenizer. Not to be written to."""
    return with_tokenizers(tmp_path_factory.mktemp("huggingface"))


@pytest.fixture(scope="session")
def published(folders):
    """A function: the model of a family, told to translate into one of its languages."""

    def model(name: str, language: int = 0) -> HuggingFaceModel:
        known = LANGUAGES.get(name)
        if known is None:
            return HuggingFaceModel(folders[name])
        source = None if name == "madlad" else known[-1]
        return HuggingFaceModel(folders[name], source_language=source, target_language=known[language])

    return model


@pytest.fixture(scope="session")
def started(published):
    """A function: the policy of such a model, which is read once."""
    return functools.cache(lambda name, language=0: Policy.start(published(name, language)))


@pytest.fixture(scope="session")
def golden():
    """A function: what PyTorch makes of a model, by the names of its arrays."""

    def arrays(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / name / "golden.npz") as stored:
            return {key: a.astype(np.int32) if a.dtype.kind == "i" else a for key, a in stored.items()}

    return arrays
