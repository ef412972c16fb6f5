"""Text that Moses has tokenized, as people write it: what its tokenizer escaped and parted is joined again.

The rules are those of scripts/tokenizer/detokenizer.perl of mosesdecoder, without its cases for Czech.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from rest.statistics.words import UNSPACED

ESCAPES = {  # in this order: what an escaped & begins is no escape
    "&bar;": "|", "&#124;": "|", "&lt;": "<", "&gt;": ">", "&bra;": "[", "&ket;": "]", "&quot;": '"', "&apos;": "'",
    "&#91;": "[", "&#93;": "]", "&amp;": "&",
}  # fmt: skip

_OPENS = re.compile(r"[([{¿¡]+")
_CLOSES = re.compile(r"[,.?!:;\\%}\])]+")
_QUOTES = re.compile("['\"„“”`]+")
_CONTRACTION = re.compile(r"'[^\W\d_]")
_ELIDED = re.compile(r".*[^\W\d_]'")
_UNSPACED = re.compile(f"[{UNSPACED}]")


def unescape(text: str) -> str:
    """Undoes what Moses escapes, once."""
    text = text.replace(" @-@ ", "-")
    for escaped, plain in ESCAPES.items():
        text = text.replace(escaped, plain)
    return text


@dataclass(frozen=True)
class Detokenizer:
    """Joins what Moses' tokenizer has parted, by the rules of one language."""

    language: str = "en"  # en, fr and it have rules of their own; any other gets those for all

    def __call__(self, text: str) -> str:
        """One line, without escapes, punctuation beside its word."""
        words = unescape(text).split()
        parts: list[str] = []
        space, quotes = "", dict[str, int]()
        for k, word in enumerate(words):
            left, right = self._joins(words, k, quotes)
            parts += ["" if left else space, word]
            space = "" if right else " "
        return "".join(parts)

    def _joins(self, words: list[str], k: int, quotes: dict[str, int]) -> tuple[bool, bool]:
        """Whether a word is joined to the one before, and to the one after; `quotes` counts those that were seen."""
        word, before = words[k], words[k - 1] if k else ""
        if _UNSPACED.match(word):
            return bool(before and _UNSPACED.match(before[-1])), False
        if all(unicodedata.category(c) == "Sc" for c in word) or _OPENS.fullmatch(word):
            return False, True
        if _CLOSES.fullmatch(word):
            return not (self.language == "fr" and len(word) == 1 and word in "?!:;\\%"), False
        if self.language == "en" and before and _CONTRACTION.match(word) and before[-1].isalnum():
            return True, False
        after = words[k + 1] if k + 1 < len(words) else ""
        if self.language in ("fr", "it") and _ELIDED.fullmatch(word) and after[:1].isalpha():
            return False, True
        if not _QUOTES.fullmatch(word):
            return False, False
        kind = '"' if word in "„“”" else word
        if quotes.get(kind, 0) % 2 == 0 and self.language == "en" and word == "'" and before.endswith("s"):
            return True, False  # of the dogs ' bowl
        quotes[kind] = quotes.get(kind, 0) + 1
        return quotes[kind] % 2 == 0, quotes[kind] % 2 == 1
