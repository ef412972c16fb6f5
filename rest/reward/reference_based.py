"""Sentence metrics against a reference, by sacreBLEU: chrF (Popović 2015) and BLEU (Papineni et al. 2002).

They serve as rewards where references exist, and as the ratings of simulated raters on real text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from rest.errors import UserError


def _scores(
    metric: BLEU | CHRF, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
) -> np.ndarray:
    """Sentence scores, float32 [n], 0..100; equal (hypothesis, reference) pairs are scored once."""
    if references is None:
        raise UserError("chrF and BLEU compare with references, but this text has none: choose another reward.")
    if not len(sources) == len(hypotheses) == len(references):
        raise UserError(
            "sources, hypotheses and references must be as many, but there are "
            f"{len(sources)}, {len(hypotheses)} and {len(references)}."
        )
    pairs = list(zip(hypotheses, references, strict=True))
    scored = {pair: metric.sentence_score(pair[0], [pair[1]]).score for pair in dict.fromkeys(pairs)}
    return np.array([scored[pair] for pair in pairs], np.float32)


@dataclass(frozen=True)
class SentenceChrF:
    """Character n-gram F-score of each hypothesis, 0..100."""

    word_order: int = 0  # longest word n-gram that counts too: 0 is chrF, 2 is chrF++

    needs_references: ClassVar[bool] = True
    scale: ClassVar[tuple[float, float]] = (0.0, 100.0)

    def __post_init__(self) -> None:
        if self.word_order < 0:
            raise UserError(f"word_order must not be below 0, but is {self.word_order}.")

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        """Raw scores, float32 [n]; UserError without references. The sources are not looked at."""
        return _scores(CHRF(word_order=self.word_order), sources, hypotheses, references)


@dataclass(frozen=True)
class SentenceBLEU:
    """BLEU of each hypothesis by itself, 0..100, over the n-gram orders that it is long enough for."""

    tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a"  # sacreBLEU's tokenizer of the target text
    lowercase: bool = False  # whether case is ignored
    smooth: Literal["exp", "floor", "add-k", "none"] = "exp"  # how an order without a match counts

    needs_references: ClassVar[bool] = True
    scale: ClassVar[tuple[float, float]] = (0.0, 100.0)

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None
    ) -> np.ndarray:
        """Raw scores, float32 [n]; UserError without references. The sources are not looked at."""
        return _scores(self._metric(), sources, hypotheses, references)

    def words(self, texts: Sequence[str]) -> list[list[str]]:
        """What the n-grams of each text are made of."""
        metric = self._metric()
        return [metric._preprocess_segment(text).split() for text in texts]

    def _metric(self) -> BLEU:
        return BLEU(lowercase=self.lowercase, tokenize=self.tokenize, smooth_method=self.smooth, effective_order=True)
