"""What MBR chooses, by which weights and with which candidates, and the ways of decoding on a small policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.errors import UserError
from rest.evaluation.best_of_n import BestOfN
from rest.evaluation.decoding import Beam, DecodingSettings, Sampled, evaluate_decoding
from rest.evaluation.mbr import MBR, ConfidencePruning, ModelBased, MonteCarlo, choose, diverse
from rest.evaluation.outputs import LastDrawn, draw, draw_hypotheses
from rest.learning.mesh import MachineSettings
from rest.policy.beam import BeamSettings, translate
from rest.policy.sampler import SamplingSettings
from rest.reward.reference_based import SentenceBLEU
from rest.reward.reward import Reward
from rest.reward.utility import BLEU, ChrF, Pairwise

SAMPLING = SamplingSettings(temperature=0.8, max_target_tokens=12)
MACHINE = MachineSettings(rows=24, beam_rows=24)


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


def test_distinct_samples_weigh_what_the_policy_gives_them() -> None:
    """Drawn twice, "a b" is one text; of "c d" the likelier of its two sequences of tokens counts."""
    samples, log_probs = ["a b", "a b", "c d", "c d"], np.log([0.1, 0.1, 0.4, 0.05])
    assert ModelBased()(samples, log_probs) == pytest.approx({"a b": 0.25, "c d": 1.0})
    assert MonteCarlo()(samples, log_probs) == {"a b": 2, "c d": 2}
    weights = ModelBased()(samples, log_probs - 1e4)  # of long texts, whose probabilities are no float
    assert weights == pytest.approx({"a b": 0.25, "c d": 1.0})
    assert choose(ChrF(), "x", samples) == "a b"
    assert choose(ChrF(), "x", samples, weights=weights) == "c d"


drawn = st.lists(st.sampled_from(["a b c", "a b", "a c", "b d", "q", "a b d", "a d d"]), min_size=1, max_size=40)


@given(drawn, st.integers(1, 9), st.sampled_from([ChrF(), BLEU()]))
def test_with_full_confidence_no_choice_changes(samples: list[str], first: int, utility) -> None:
    candidates = list(dict.fromkeys(samples))
    pruned = ConfidencePruning(1.0, first=first, resamples=20)(utility, "x", samples, candidates)
    assert pruned == choose(utility, "x", samples)


def test_pruning_leaves_out_pairs_and_seldom_the_choice() -> None:
    asked: list[str] = []

    def watch(sources, hypotheses, references):
        asked.extend(hypotheses)
        pairs = zip(hypotheses, references, strict=True)
        return np.array([len(set(y) & set(r)) / len(set(y) | set(r)) for y, r in pairs])

    rng = np.random.default_rng(0)
    same = 0
    for _ in range(20):
        samples = ["".join(c for c in "abcdefgh" if rng.random() < 0.7) + "z" for _ in range(64)]
        candidates = list(dict.fromkeys(samples))
        full = choose(Pairwise(watch), "x", samples)
        before, asked[:] = len(asked), []
        same += ConfidencePruning(0.9)(Pairwise(watch), "x", samples, candidates) == full
        assert len(asked) < 0.7 * before
        asked.clear()
    assert same >= 18


@pytest.mark.parametrize(("utility", "k"), [(ChrF(), 3), (BLEU(), 2)])
def test_diverse_texts_are_unlike_each_other(utility, k: int) -> None:
    samples = ["a b c d", "a b c d", "a b c d", "a b c e", "a b c e", "x y z", "x y"]
    assert diverse(utility, "x", samples, 1) == [choose(utility, "x", samples)]
    best = diverse(utility, "x", samples, k, penalty=0.0)
    assert best[:2] == ["a b c d", "a b c e"] and len(best) == k
    assert set(diverse(utility, "x", samples, 2, penalty=2.0)) & {"x y z", "x y"}
    assert len(set(diverse(utility, "x", samples, 9))) == 4


def test_diverse_texts_are_the_best_next_ones() -> None:
    """Of each step, the objective of which greedy search takes the highest: mean expected less penalty times mean."""
    samples = ["a b c d", "a b c d", "a b c e", "x y z", "x y", "a c"]
    different = list(dict.fromkeys(samples))
    found = ChrF().pairs("x", different, samples).mean(1)
    pairs = ChrF().pairs("x", different, different)
    np.fill_diagonal(pairs, 0)

    def objective(rows: list[int]) -> float:
        size = len(rows)
        return found[rows].mean() - 0.5 * pairs[np.ix_(rows, rows)].sum() / max(1, size * (size - 1))

    chosen = [different.index(text) for text in diverse(ChrF(), "x", samples, 4)]
    for size in range(1, 4):
        others = [row for row in range(len(different)) if row not in chosen[:size]]
        best = max(objective([*chosen[:size], row]) for row in others)
        assert objective(chosen[: size + 1]) == pytest.approx(best)


def words(sources, hypotheses, references):
    """Words of a hypothesis."""
    return np.array([len(y.split()) for y in hypotheses], np.float32)


@pytest.fixture(scope="module")
def test_split(corpus, policy):
    short = [row for row, ids in enumerate(policy.encode_sources(corpus.dev.sources)) if len(ids) <= 16]
    return corpus.dev.take(short[:12])


def test_the_last_samples_are_drawn_once_for_all_that_choose_from_them(lively, test_split):
    drawn = LastDrawn(test_split, 0, MACHINE)
    first = drawn(lively, 4, SAMPLING)
    assert first.texts == draw(lively, test_split, 4, SAMPLING, 0, MACHINE)
    assert drawn(lively, 4, SAMPLING) is first
    assert drawn(lively, 2, SAMPLING).texts == [row[:2] for row in first.texts]
    assert drawn(lively, 4, SAMPLING) is not first


def test_every_way_gives_what_it_says(lively, test_split):
    samples = draw(lively, test_split, 4, SAMPLING, 0, MACHINE)
    beam = BeamSettings(2, max_target_tokens=12)
    assert Beam(beam)(lively, test_split, None, 0, MACHINE) == translate(lively, test_split.sources, beam, MACHINE)
    assert Sampled(SAMPLING)(lively, test_split, None, 0, MACHINE) == [row[0] for row in samples]
    best = BestOfN(4, SAMPLING)(lively, test_split, words, 0, MACHINE)
    assert [len(y.split()) for y in best] == [max(len(y.split()) for y in row) for row in samples]
    mbr = MBR(4, sampling=SAMPLING)
    assert mbr(lively, test_split, None, 0, MACHINE) == [choose(ChrF(), "", row) for row in samples]
    drawn = draw_hypotheses(lively, test_split, 4, SAMPLING, 0, MACHINE)  # what it draws itself
    assert mbr.chosen(drawn, test_split, None) == mbr(lively, test_split, None, 0, MACHINE)
    assert BestOfN(4, SAMPLING).chosen(drawn, test_split, words) == best
    assert replace(mbr, prune_to=1).chosen(drawn, test_split, words) == best
    assert replace(mbr, weights=ModelBased()).chosen(drawn, test_split, None) == [
        choose(ChrF(), "", row, weights=ModelBased()(row, np.array([part.sum() for part in parts])))
        for row, parts in zip(samples, drawn.log_probs, strict=True)
    ]
    sure = replace(mbr, pruning=ConfidencePruning(1.0, first=2, resamples=10))
    assert sure.chosen(drawn, test_split, None) == mbr.chosen(drawn, test_split, None)
    metrics, outputs = evaluate_decoding(best, test_split, Reward(words, (0.0, 24.0)), None, 0)
    assert metrics["reward_mean"] == pytest.approx(np.mean([len(y.split()) / 24 for y in best]))
    assert {"bleu", "chrf", "ter", "length_ratio", "copy_rate"} <= set(metrics) and "gold_mean" not in metrics
    assert [row[0] for row in outputs.texts] == best


def test_settings_name_their_decoder() -> None:
    def made(**settings) -> object:
        return DecodingSettings(**settings).decoder(BeamSettings(), SAMPLING)

    assert made(decode="greedy") == Beam(BeamSettings(1))
    assert made(decode="best_of_n", n=3) == BestOfN(3, SAMPLING)
    assert made(decode="mbr", n=5, utility="chrf-aggregate", prune_to=2) == MBR(5, ChrF(aggregate=True), 2, SAMPLING)
    assert made(decode="mbr", model_based=True) == MBR(16, ChrF(), 0, SAMPLING, ModelBased())
    assert made(decode="mbr", utility="bleu", confidence=0.9) == MBR(
        16, BLEU(), 0, SAMPLING, pruning=ConfidencePruning(0.9)
    )
    further = [DecodingSettings("mbr", model_based=True).name, DecodingSettings("mbr", confidence=0.99).name]
    assert further == ["mbr-16-chrf-0-model", "mbr-16-chrf-0-0.99"]
    names = [DecodingSettings(way, 5).name for way in ("greedy", "best_of_n", "mbr")]
    assert names == ["greedy", "best_of_n-5", "mbr-5-chrf-0"]


def test_what_cannot_be_chosen_is_refused(lively, test_split) -> None:
    with pytest.raises(UserError, match="there is none"):
        BestOfN(2, SAMPLING)(lively, test_split, None, 0, MACHINE)
    with pytest.raises(UserError, match="no reward"):
        MBR(2, prune_to=1, sampling=SAMPLING)(lively, test_split, None, 0, MACHINE)
    with pytest.raises(UserError, match="n 0"):
        MBR(0)
    with pytest.raises(UserError, match="not with ModelBased"):
        MBR(weights=ModelBased(), pruning=ConfidencePruning())
    with pytest.raises(UserError, match=r"confidence 1\.5"):
        ConfidencePruning(1.5)
