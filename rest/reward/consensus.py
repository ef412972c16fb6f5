"""Consensus: a hypothesis is as good as the other samples of its source agree with it.

The reward is the expected utility that MBR decoding maximises, so that ReST by it distils MBR into the policy and needs
neither ratings nor references (Finkelstein and Freitag 2023, "MBR and QE Finetuning"; Eikema and Aziz 2022).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rest.errors import UserError
from rest.reward.reward import Groups, Reward, identify
from rest.reward.utility import ChrF, Utility


@dataclass(frozen=True)
class Consensus:
    """The mean utility of a hypothesis against the other samples of its source; `reward` maps it to [0, 1].

    Of N samples each is compared with N - 1, equal ones among them as often as they were drawn. What is no sample, such
    as a human translation, is compared with all N, and no sample with it.
    """

    utility: Utility = ChrF()
    """ChrF(), BLEU(), Mixture((ChrF(), BLEU())), EmbeddingCosine(...), Pairwise(a function of yours)."""

    compares: ClassVar[bool] = True

    @property
    def reward(self) -> Reward:
        """On the scale of the utility."""
        return Reward(self, self.utility.scale)

    @property
    def identity(self) -> Any:
        return {"consensus by": identify(self.utility)}

    def __call__(
        self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str] | None, groups: Groups
    ) -> np.ndarray:
        """Raw scores, float32 [n]; UserError for a source of which there are no other samples."""
        ids, peers = np.asarray(groups.ids), np.asarray(groups.peers, bool)
        if not len(sources) == len(hypotheses) == len(ids) == len(peers):
            raise UserError(
                f"{len(hypotheses)} hypotheses need as many sources, ids and peers, not {len(sources)}, {len(ids)} and "
                f"{len(peers)}"
            )
        out = np.zeros(len(hypotheses), np.float32)
        if not len(out):
            return out
        utility = self.utility.prepared(hypotheses)
        order = np.argsort(ids, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(ids[order])) + 1):
            out[rows] = _expected(utility, sources[rows[0]], [hypotheses[row] for row in rows], peers[rows])
        return out


def _expected(utility: Utility, source: str, texts: list[str], peers: np.ndarray) -> np.ndarray:
    """float64 [n]: of each text of one source against its other samples."""
    drawn = Counter(text for text, peer in zip(texts, peers, strict=True) if peer)
    if drawn.total() <= peers.any():
        raise UserError(
            f"consensus: source {source[:60]!r} has too few samples ({drawn.total()}) for a hypothesis to be compared "
            "with others; draw at least 2 for each source"
        )
    # Sorted, so that the order of the rows changes nothing, not even the last bit.
    references = sorted(drawn)
    rows = sorted(set(zip(texts, peers.tolist(), strict=True)))
    weights = np.array([drawn[text] for text in references], np.float64)
    left_out = np.array([float(peer) for _, peer in rows])
    expected = utility(source, [text for text, _ in rows], references, weights, left_out)
    found = dict(zip(rows, expected, strict=True))
    return np.array([found[row] for row in zip(texts, peers.tolist(), strict=True)])
