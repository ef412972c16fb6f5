"""Words: what white space parts, except in scripts written without spaces, where each character is one.

So a length in words means about the same for Chinese and Japanese as for English, as in sacreBLEU's zh tokenizer. In
Thai, Lao, Burmese and Khmer, which spell their words, a length counts four characters as a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

# Hiragana and katakana, then the ideographs of Chinese, Japanese and Korean (CJK) with their extensions.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
SPELLED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_SPELLED = re.compile(rf"[{SPELLED}]")


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return text.split() if text.isascii() else _WORD.findall(text)  # the same on ASCII, and faster


def count_words(text: str) -> int:
    """How many words a text has, as lengths count them."""
    if text.isascii():
        return len(text.split())
    others, spelled = _SPELLED.subn(" ", text)
    return len(words(others)) + -(-spelled // 4)


def log_length_ratios(sources: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """log((words of the hypothesis + 1) / (words of the source + 1)), float64 [n]."""
    counts = [[count_words(text) + 1 for text in texts] for texts in (sources, hypotheses)]
    return np.log(np.array(counts[1], float)) - np.log(np.array(counts[0], float))
