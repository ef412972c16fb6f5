"""What a policy is worth: the means are those of what it says, and the KL divergence that of two plain networks."""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from scipy import stats

from rest.errors import UserError
from rest.evaluation.evaluate import EvaluationSettings, divergences, evaluate
from rest.evaluation.outputs import chooser_of, rewards_of
from rest.folder import seed_for
from rest.learning.mesh import MachineSettings
from rest.policy.beam import BeamSettings, translate
from rest.policy.sampler import SamplingSettings, sample
from rest.reward.reward import Reward
from rest.statistics.text_metrics import copy_rate, self_bleu

SAMPLING = SamplingSettings(temperature=0.8, max_target_tokens=12)
BEAM = BeamSettings(2, max_target_tokens=12)
MACHINE = MachineSettings(rows=24, beam_rows=24)
SETTINGS = EvaluationSettings(samples_per_source=2, shown=3)


def words(sources, hypotheses, references):
    """Words of a hypothesis, by hand."""
    return np.array([len(y.split()) for y in hypotheses], np.float32)


REWARD = Reward(words, (0.0, 24.0))


def gold(sources, hypotheses):
    return np.array([0.5 * (len(y) % 2) for y in hypotheses], np.float32)


@pytest.fixture(scope="module")
def dev(corpus, policy):
    """Sources that share one width, so that samplers and beam search are compiled once."""
    short = [row for row, ids in enumerate(policy.encode_sources(corpus.dev.sources)) if len(ids) <= 16]
    return corpus.dev.take(short[:12])


@pytest.fixture(scope="module")
def evaluated(lively, policy, batch):
    """The evaluation of `lively` beside `policy` as BC."""
    return partial(
        evaluate, lively, reward=REWARD, sampling=SAMPLING, beam=BEAM, bc=policy, batch=batch, seed=0, machine=MACHINE
    )


@pytest.fixture(scope="module")
def evaluation(evaluated, dev):
    return evaluated(split=dev, settings=SETTINGS, gold=gold)


def drawn_of(policy, split, n=2, settings=SAMPLING, purpose="sample dev"):
    """What an evaluation draws."""
    return sample(policy, split.sources, split.ids, n, settings, seed=seed_for(0, purpose), machine=MACHINE)


def test_a_reward_gets_the_source_and_reference_of_each_hypothesis(dev):
    seen = []

    def watch(sources, hypotheses, references):
        seen.append((sources, references))
        return np.zeros(len(hypotheses))

    rewards_of(Reward(watch), dev, [["a", "b"]] * len(dev))
    [(sources, references)] = seen
    assert sources == [x for x in dev.sources for _ in range(2)]
    assert references == [y for y in dev.references for _ in range(2)]


@dataclass(frozen=True)
class Shared:
    """The share of its source's samples, itself left out, that a hypothesis has its first letter in common with."""

    compares: ClassVar[bool] = True

    def __call__(self, sources, hypotheses, references, groups):
        ids, peers, first = groups.ids, groups.peers, np.array([y[:1] for y in hypotheses])
        others = (ids[:, None] == ids) & peers[None] & ~np.eye(len(ids), dtype=bool)
        return ((others & (first[:, None] == first)).sum(1) / others.sum(1)).astype(np.float32)


def test_a_reward_that_compares_sees_the_samples_of_a_source_and_no_other_output(dev):
    split, reward = dev.take([0, 1]), Reward(Shared())
    samples = [["a", "a", "b", "c"], ["d", "d", "d", "d"]]
    found = rewards_of(reward, split, samples)
    np.testing.assert_allclose(found, [[1 / 3, 1 / 3, 0, 0], [1, 1, 1, 1]], atol=1e-6)
    # outputs that are no samples are compared with all four, and are nobody's peers
    np.testing.assert_allclose(rewards_of(reward, split, [["a"], ["a"]], samples), [[0.5], [0]], atol=1e-6)
    few = [row[:3] for row in samples]
    assert rewards_of(reward, split, few) is None and rewards_of(reward, split, [["a"], ["a"]], few) is None
    chosen = chooser_of(reward, 2)(split.sources * 4, [y for row in samples for y in row], None)
    np.testing.assert_array_equal(chosen, found.ravel())


def test_without_enough_samples_to_compare_there_is_no_reward(evaluated, dev):
    found = evaluated(split=dev, settings=SETTINGS, gold=gold, reward=Reward(Shared()))
    assert found.metrics["reward_samples"] == 2 and "reward_gold_spearman" not in found.metrics
    for name in ("reward", "reward_greedy", "reward_beam"):
        assert found.metrics[f"{name}_mean"] is None and found.metrics[f"{name}_ci95"] is None
    assert found.metrics["gold_mean"] is not None and {"reward", "gold"} & set(found.samples.scores) == {"gold"}
    assert all(row["reward"] is None for row in found.shown)
    four = evaluated(split=dev, settings=replace(SETTINGS, samples_per_source=4), gold=gold, reward=Reward(Shared()))
    assert four.metrics["reward_samples"] == 4
    by_hand = [np.mean([y[:1] == z[:1] for z in row]) for row, [y] in
               zip(four.samples.texts, four.greedy.texts, strict=True)]  # fmt: skip
    assert four.metrics["reward_greedy_mean"] == pytest.approx(np.mean(by_hand), abs=1e-6)


def test_the_metrics_are_those_of_the_outputs(evaluation, lively, dev):
    metrics = evaluation.metrics
    greedy = translate(lively, dev.sources, replace(BEAM, beams=1), MACHINE)
    beam = translate(lively, dev.sources, BEAM, MACHINE)
    assert metrics["reward_greedy_mean"] == pytest.approx(np.mean([len(y.split()) / 24 for y in greedy]))
    assert metrics["reward_beam_mean"] == pytest.approx(np.mean([len(y.split()) / 24 for y in beam]))
    assert metrics["gold_greedy_mean"] == pytest.approx(np.mean([0.5 * (len(y) % 2) for y in greedy]))
    reference_words = sum(len(y.split()) for y in dev.references)
    assert metrics["length_ratio"] == pytest.approx(sum(len(y.split()) for y in greedy) / reference_words)
    assert 1 <= metrics["distinct_per_source"] <= 2
    assert metrics["gold_beam_mean"] == pytest.approx(np.mean([0.5 * (len(y) % 2) for y in beam]))
    assert metrics["reward_samples"] == 2 and evaluation.beam.texts == [[y] for y in beam]
    for name in ("reward", "reward_greedy", "reward_beam", "gold", "gold_greedy"):
        low, high = metrics[f"{name}_ci95"]
        assert low <= metrics[f"{name}_mean"] <= high and low < high
    assert {"bleu", "bleu_signature", "bleu_beam", "chrf", "chrf_signature", "chrf_beam", "bleu_beam_ci95"} < set(
        metrics
    )


def test_further_references_and_the_tokenizer_of_bleu_are_used(evaluation, evaluated, lively, dev):
    greedy = translate(lively, dev.sources, replace(BEAM, beams=1), MACHINE)
    two = replace(dev, more_references=[greedy])
    settings = replace(SETTINGS, bleu_tokenizer="char")
    found = evaluated(split=two, settings=settings, gold=gold).metrics
    assert evaluation.metrics["bleu"] < 50 and found["bleu"] == pytest.approx(100) and found["ter"] == 0
    assert "nrefs:2|" in found["bleu_signature"] and "tok:char|" in found["bleu_signature"]
    assert found["reward_mean"] == evaluation.metrics["reward_mean"]


def test_tokenized_text_is_scored_as_people_write_it_too(evaluation, evaluated, lively, dev):
    greedy = translate(lively, dev.sources, replace(BEAM, beams=1), MACHINE)
    references = [f"{y} ." for y in greedy]
    settings = replace(SETTINGS, bleu_tokenizer="none", detokenizer=lambda text: text.removesuffix(" ."))
    found = evaluated(split=replace(dev, references=references), settings=settings, gold=gold).metrics
    assert found["bleu"] < 100 and "tok:none" in found["bleu_signature"]
    assert found["bleu_detokenized"] == pytest.approx(100) == found["chrf_detokenized"]
    assert "tok:13a" in found["bleu_detokenized_signature"] and found["bleu_beam_detokenized"] <= 100 + 1e-6
    assert not any(name.endswith("_detokenized") for name in evaluation.metrics)


def test_a_separate_judge_scores_all_outputs(evaluation, evaluated, lively, dev):
    def letters(sources, hypotheses, references):
        return np.array([min(1.0, len(y) / 60) for y in hypotheses], np.float32)

    settings = replace(SETTINGS, judge=Reward(letters), judge_limit=0.4)
    result = evaluated(split=dev, settings=settings, gold=gold)
    found = result.metrics
    lengths = [len(text) for texts in drawn_of(lively, dev).texts for text in texts]
    assert found["judge_mean"] == pytest.approx(np.mean([min(1, length / 60) for length in lengths]))
    assert 0 < found["judge_above_mean"] < 1
    assert found["judge_above_mean"] == pytest.approx(np.mean([length > 24 for length in lengths]))
    low, high = found["judge_above_ci95"]
    assert low < found["judge_above_mean"] < high
    for way, outputs in {"greedy": result.greedy, "beam": result.beam}.items():
        lengths = [len(y) for (y,) in outputs.texts]
        judged = [min(1, length / 60) for length in lengths]
        assert found[f"judge_{way}_mean"] == pytest.approx(np.mean(judged))
        np.testing.assert_allclose(outputs.scores["judge"][:, 0], judged, rtol=1e-6)  # kept, to be compared in pairs
    assert found.items() >= evaluation.metrics.items()


def test_the_reward_is_compared_with_gold_and_with_what_it_was_at_first(evaluation, evaluated, lively, dev):
    texts = [text for of_source in drawn_of(lively, dev).texts for text in of_source]
    ranks = stats.spearmanr(words(None, texts, None), gold(None, texts)).statistic
    assert evaluation.metrics["reward_gold_spearman"] == pytest.approx(ranks)
    first = Reward(words, (0.0, 48.0))
    found = evaluated(split=dev, settings=SETTINGS, gold=gold, first=first).metrics
    assert found["first_reward_mean"] == pytest.approx(found["reward_mean"] / 2)
    assert found["first_reward_ci95"] == pytest.approx([end / 2 for end in found["reward_ci95"]])
    assert found["first_reward_gold_spearman"] == pytest.approx(found["reward_gold_spearman"])
    assert found.items() >= evaluation.metrics.items()


def test_evaluating_again_gives_the_same_numbers(evaluation, evaluated, dev):
    again = evaluated(split=dev, settings=SETTINGS, gold=gold)
    assert again.metrics == evaluation.metrics and again.shown == evaluation.shown
    assert again.samples.texts == evaluation.samples.texts


def test_gold_and_references_are_reported_only_where_there_are_any(evaluation, evaluated, dev):
    bare = replace(dev, references=None)
    found = evaluated(split=bare, settings=SETTINGS, gold=None)
    expected = {
        "reward_mean",
        "reward_ci95",
        "reward_greedy_mean",
        "reward_greedy_ci95",
        "reward_beam_mean",
        "reward_beam_ci95",
        "reward_samples",
        "distinct_per_source",
        "distinct_1",
        "distinct_2",
        "self_bleu",
        "copy_rate",
        "empty_rate",
        "repeated_trigrams",
        "entropy",
        "entropy_ci95",
        "kl_to_bc",
        "kl_to_bc_ci95",
    }
    assert set(found.metrics) == expected
    assert found.metrics == {name: evaluation.metrics[name] for name in expected}
    assert all(row["gold"] is None and row["reference"] is None for row in found.shown)


def test_the_first_sources_are_shown_with_their_greedy_output(evaluation, lively, dev):
    greedy = translate(lively, dev.sources, replace(BEAM, beams=1), MACHINE)
    assert [row["source"] for row in evaluation.shown] == dev.sources[:3]
    for row, reference, hypothesis in zip(evaluation.shown, dev.references, greedy, strict=False):
        assert row["reference"] == reference and row["hypothesis"] == hypothesis
        assert row["reward"] == pytest.approx(len(hypothesis.split()) / 24)
        assert row["gold"] == gold([row["source"]], [hypothesis])[0]


def test_a_policy_does_not_diverge_from_itself(lively, dev, batch):
    assert kl(lively, lively, dev, batch) == pytest.approx(0, abs=1e-4)


def kl(policy, anchor, split, batch, sampling=SAMPLING):
    return divergences(policy, {"it": anchor}, split, sampling, batch, 0, MACHINE)["kl_to_it"]


def test_the_divergence_is_that_of_draws_at_temperature_one(evaluated, lively, policy, dev, batch, teacher_forced):
    def log_prob(who, source, tokens):
        logits = teacher_forced(who, source, tokens)
        return (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(len(tokens)), tokens].sum()

    # whatever Grow samples from
    sampling = replace(SAMPLING, temperature=0.3, top_k=7, top_p=0.9)
    drawn = drawn_of(lively, dev, 1, replace(SAMPLING, temperature=1.0), "kl")
    by_hand = np.mean(
        [
            log_prob(lively, source, tokens) - log_prob(policy, source, tokens)
            for source, [tokens] in zip(dev.sources, drawn.tokens, strict=True)
        ]
    )
    assert kl(lively, policy, dev, batch, sampling) == pytest.approx(by_hand, abs=1e-3)
    assert by_hand > 1
    few = evaluated(split=dev, settings=replace(SETTINGS, kl_sources=4), gold=None).metrics
    assert few["kl_to_bc"] == pytest.approx(kl(lively, policy, dev.take(slice(0, 4)), batch, sampling))


def test_draws_longer_than_a_row_are_refused_by_the_settings_to_change(policy, dev, batch):
    short = replace(batch, target_tokens=8)
    with pytest.raises(UserError, match=r"batch.target_tokens 8 is less than max_target_tokens 12"):
        kl(policy, policy, dev, short)


def test_entropy_and_divergences_come_from_the_same_draws(lively, policy, dev, batch):
    anchors = {"bc": policy, "previous": lively, "none": None}
    found = divergences(lively, anchors, dev, SAMPLING, batch, 0, MACHINE)
    names = {"entropy", "kl_to_bc", "kl_to_previous"}
    assert set(found) == names | {f"{name}_ci95" for name in names}
    for name in names:
        low, high = found[f"{name}_ci95"]
        assert low <= found[name] <= high
    assert found["kl_to_previous"] == pytest.approx(0, abs=1e-4)
    assert found["kl_to_bc"] == kl(lively, policy, dev, batch)
    drawn = drawn_of(lively, dev, 1, replace(SAMPLING, temperature=1.0), "kl")
    assert found["entropy"] == pytest.approx(-np.mean([row[0].sum() for row in drawn.log_probs]), rel=1e-5)


def test_the_outputs_behind_the_numbers_are_kept(evaluation, dev):
    metrics, samples, greedy = evaluation.metrics, evaluation.samples, evaluation.greedy
    assert samples.scores["reward"].shape == (12, 2) and greedy.scores["reward"].shape == (12, 1)
    assert metrics["reward_mean"] == pytest.approx(samples.scores["reward"].mean())
    assert metrics["gold_greedy_mean"] == pytest.approx(greedy.scores["gold"].mean())
    assert metrics["self_bleu"] == self_bleu(samples.texts)
    assert metrics["copy_rate"] == copy_rate(dev.sources, [row[0] for row in greedy.texts])
    assert {"ter", "ter_signature", "entropy", "empty_rate", "distinct_2"} <= set(metrics)


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match=r"evaluation.ceiling_samples must be at least 0, not -1"):
        EvaluationSettings(ceiling_samples=-1)
    with pytest.raises(UserError, match=r"evaluation.bc_temperatures must be from 0.0001 to 10000, not 0.0"):
        EvaluationSettings(bc_temperatures=(0.5, 0.0))
    controls = EvaluationSettings(bc_temperatures=(0.1,), ceiling_samples=2)
    assert controls.of_every_policy == EvaluationSettings().of_every_policy != EvaluationSettings(2).of_every_policy


def test_a_source_longer_than_a_row_is_read_whole(lively, dev, batch):
    assert kl(lively, lively, dev, replace(batch, source_tokens=4)) == pytest.approx(0, abs=1e-4)
