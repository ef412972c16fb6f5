"""MBR against sacreBLEU pair by pair, by hand where it is aggregated, and the ways of decoding on a small policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from rest.errors import UserError
from rest.evaluation.best_of_n import BestOfN
from rest.evaluation.decoding import Beam, DecodingSettings, Sampled, evaluate_decoding
from rest.evaluation.mbr import MBR, ChrF, Pairwise, choose
from rest.evaluation.outputs import draw
from rest.learning.mesh import MachineSettings
from rest.policy.beam import BeamSettings, translate
from rest.policy.sampler import SamplingSettings
from rest.reward.reference_based import SentenceBLEU, SentenceChrF
from rest.reward.reward import Reward

SAMPLING = SamplingSettings(temperature=0.8, max_target_tokens=12)
MACHINE = MachineSettings(rows=24, beam_rows=24)
texts = st.lists(st.text("ab c", max_size=9), min_size=1, max_size=5)


@given(texts, texts)
def test_expected_chrf_is_the_mean_of_sacrebleus(candidates: list[str], references: list[str]) -> None:
    weights = np.arange(1.0, len(references) + 1)
    found = ChrF()("x", candidates, references, weights)
    metric = CHRF()
    exact = [[metric.sentence_score(y, [r]).score for r in references] for y in candidates]
    np.testing.assert_allclose(found, np.array(exact) @ weights / weights.sum(), atol=1e-9)
    np.testing.assert_allclose(found, Pairwise(SentenceChrF())("x", candidates, references, weights), atol=1e-4)


@given(texts, st.text("ab c", max_size=9))
def test_one_reference_is_its_own_aggregate(candidates: list[str], reference: str) -> None:
    one = np.ones(1)
    np.testing.assert_allclose(
        ChrF(aggregate=True)("x", candidates, [reference], one), ChrF()("x", candidates, [reference], one)
    )


def test_the_aggregate_by_hand() -> None:
    """References "a" (three times) and "ab": 1-grams a 1, b 1/4; 2-grams ab 1/4. The candidate "ab" has a, b; ab."""
    [found] = ChrF(aggregate=True)("x", ["ab"], ["a", "ab"], np.array([3.0, 1.0]))
    p, r = (1.25 / 2 + 0.25 / 1) / 2, (1.25 / 1.25 + 0.25 / 0.25) / 2
    assert found == pytest.approx(100 * 5 * p * r / (4 * p + r))


def test_the_aggregate_chooses_much_as_all_pairs_do() -> None:
    rng = np.random.default_rng(0)
    words = "the a cat dog sat ran on in mat house".split()
    same = 0
    for _ in range(30):
        base = rng.choice(words, size=8)
        samples = [" ".join(w if rng.random() > 0.3 else rng.choice(words) for w in base) for _ in range(24)]
        exact = dict(zip(samples, ChrF()("x", samples, samples, np.ones(24)), strict=True))
        chosen = choose(ChrF(aggregate=True), "x", samples)
        same += chosen == choose(ChrF(), "x", samples)
        assert exact[chosen] >= np.quantile(list(exact.values()), 0.8)
    assert same >= 15


def test_what_is_drawn_often_weighs_more() -> None:
    assert choose(ChrF(), "x", ["abcd", "wxyz", "wxyz"]) == "wxyz"
    assert choose(ChrF(), "x", ["abcd", "wxyz"]) == "abcd"  # equal: the first
    assert choose(ChrF(), "x", ["abcd", "wxyz", "wxyz"], allowed=["abcd"]) == "abcd"
    assert choose(Pairwise(SentenceBLEU()), "x", ["p q r s", "p q r t", "z"]) == "p q r s"


def words(sources, hypotheses, references):
    """Words of a hypothesis."""
    return np.array([len(y.split()) for y in hypotheses], np.float32)


@pytest.fixture(scope="module")
def test_split(corpus, policy):
    short = [row for row, ids in enumerate(policy.encode_sources(corpus.dev.sources)) if len(ids) <= 16]
    return corpus.dev.take(short[:12])


def test_every_way_gives_what_it_says(lively, test_split):
    samples = draw(lively, test_split, 4, SAMPLING, 0, MACHINE)
    beam = BeamSettings(2, max_target_tokens=12)
    assert Beam(beam)(lively, test_split, None, 0, MACHINE) == translate(lively, test_split.sources, beam, MACHINE)
    assert Sampled(SAMPLING)(lively, test_split, None, 0, MACHINE) == [row[0] for row in samples]
    best = BestOfN(4, SAMPLING)(lively, test_split, words, 0, MACHINE)
    assert [len(y.split()) for y in best] == [max(len(y.split()) for y in row) for row in samples]
    mbr = MBR(4, sampling=SAMPLING)
    assert mbr(lively, test_split, None, 0, MACHINE) == [choose(ChrF(), "", row) for row in samples]
    pruned = replace(mbr, prune_to=1)(lively, test_split, words, 0, MACHINE)
    assert pruned == best
    metrics, outputs = evaluate_decoding(best, test_split, Reward(words, (0.0, 24.0)), None, 0)
    assert metrics["reward_mean"] == pytest.approx(np.mean([len(y.split()) / 24 for y in best]))
    assert {"bleu", "chrf", "ter", "length_ratio", "copy_rate"} <= set(metrics) and "gold_mean" not in metrics
    assert [row[0] for row in outputs.texts] == best


def test_settings_name_their_decoder() -> None:
    def made(**settings) -> object:
        return DecodingSettings(**settings).decoder(BeamSettings(), SAMPLING)

    assert made(decode="greedy") == Beam(BeamSettings(1))
    assert made(decode="best_of_n", n=3) == BestOfN(3, SAMPLING)
    assert made(decode="mbr", n=5, utility="chrf-aggregate", prune_to=2) == MBR(5, ChrF(True), 2, SAMPLING)
    names = [DecodingSettings(way, 5).name for way in ("greedy", "best_of_n", "mbr")]
    assert names == ["greedy", "best_of_n-5", "mbr-5-chrf-0"]


def test_what_cannot_be_chosen_is_refused(lively, test_split) -> None:
    with pytest.raises(UserError, match="there is none"):
        BestOfN(2, SAMPLING)(lively, test_split, None, 0, MACHINE)
    with pytest.raises(UserError, match="no reward"):
        MBR(2, prune_to=1, sampling=SAMPLING)(lively, test_split, None, 0, MACHINE)
    with pytest.raises(UserError, match="n 0"):
        MBR(0)
