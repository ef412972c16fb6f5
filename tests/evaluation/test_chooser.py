"""What chooses on dev: every yardstick is what one computes by hand, and refuses what it cannot judge."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import sacrebleu

from rest.baselines.bc import human_pairs
from rest.errors import UserError
from rest.evaluation.chooser import (
    CorpusBLEU,
    CorpusChrF,
    CorpusMean,
    Dev,
    DevChooser,
    DevLoss,
    MetricOfGreedy,
    RewardOfGreedy,
    RewardOfSamples,
)
from rest.folder import seed_for
from rest.identity import describe
from rest.learning.mesh import MachineSettings
from rest.policy.beam import BeamSettings, translate
from rest.policy.policy import token_log_probs
from rest.policy.sampler import SamplingSettings, sample
from rest.reward.reward import Reward

SAMPLING = SamplingSettings(temperature=0.8, max_target_tokens=12)
BEAM = BeamSettings(2, max_target_tokens=12)
MACHINE = MachineSettings(rows=24, beam_rows=24)


def words(sources, hypotheses, references):
    """Words of a hypothesis, by hand."""
    return np.array([len(y.split()) for y in hypotheses], np.float32)


@dataclass(frozen=True)
class Alike:
    """The share of the other samples of its source that a hypothesis equals."""

    compares: ClassVar[bool] = True

    def __call__(self, sources, hypotheses, references, groups):
        rows = [(i, y) for i, y, peer in zip(groups.ids, hypotheses, groups.peers, strict=True) if peer]
        own = [(i, y, int(peer)) for i, y, peer in zip(groups.ids, hypotheses, groups.peers, strict=True)]
        among = [sum(i == k for k, _ in rows) - me for i, _, me in own]
        equal = [sum((i, y) == row for row in rows) - me for i, y, me in own]
        return np.array([e / a for e, a in zip(equal, among, strict=True)], np.float32)


REWARD, ALIKE = Reward(words, (0.0, 24.0)), Reward(Alike())


@pytest.fixture(scope="module")
def dev(corpus, policy, batch):
    """Dev sources that share one width, so that samplers and beam search are compiled once."""
    short = [row for row, ids in enumerate(policy.encode_sources(corpus.dev.sources)) if len(ids) <= 16]
    return Dev(corpus.dev.take(short[:12]), SAMPLING, BEAM, batch, "13a", 0, MACHINE)


def drawn(policy, split, n, seed=0):
    return sample(
        policy, split.sources, split.ids, n, SAMPLING, seed=seed_for(seed, "sample dev"), machine=MACHINE
    ).texts


def test_the_reward_of_samples_is_their_mean_and_the_same_at_every_call(lively, policy, dev):
    score = RewardOfSamples(2).of(dev, REWARD)
    by_hand = np.mean([len(text.split()) / 24 for texts in drawn(lively, dev.split, 2) for text in texts])
    assert score(lively) == {"score": pytest.approx(by_hand, rel=1e-6)} and score(lively) == score(lively)
    assert score(policy) != score(lively)
    assert RewardOfSamples(2).of(replace(dev, seed=1), REWARD)(lively) != score(lively)


def test_a_reward_that_compares_is_asked_for_groups_of_samples(lively, dev):
    texts = drawn(lively, dev.split, 4)
    by_hand = np.mean([(row.count(y) - 1) / 3 for row in texts for y in row])
    assert RewardOfSamples(4).of(dev, ALIKE)(lively) == {"score": pytest.approx(by_hand, abs=1e-6)}
    with pytest.raises(UserError, match=r"choose.samples_per_source 3: the reward Alike compares .* at least 4"):
        RewardOfSamples(3).of(dev, ALIKE)
    with pytest.raises(UserError, match=r"the reward Alike compares samples and cannot score greedy outputs alone"):
        RewardOfGreedy().of(dev, ALIKE)


def test_greedy_outputs_are_scored_by_reward_or_metric(lively, dev):
    greedy = translate(lively, dev.split.sources, replace(BEAM, beams=1), MACHINE)
    by_reward = RewardOfGreedy().of(dev, REWARD)(lively)
    assert by_reward == {"score": pytest.approx(np.mean([len(y.split()) / 24 for y in greedy]))}
    references = [dev.split.references]
    for metric, by_hand in (
        (CorpusChrF(), sacrebleu.corpus_chrf(greedy, references)),
        (CorpusBLEU(), sacrebleu.corpus_bleu(greedy, references, tokenize="char")),
    ):
        score = MetricOfGreedy(metric).of(replace(dev, bleu_tokenizer="char"), ALIKE)
        assert score(lively) == {"score": pytest.approx(by_hand.score)}

    scores = [MetricOfGreedy(metric).of(dev, ALIKE)(lively)["score"] for metric in (CorpusBLEU(), CorpusChrF())]
    mean = MetricOfGreedy(CorpusMean())
    assert mean.of(dev, ALIKE)(lively)["score"] == pytest.approx((scores[0] * scores[1]) ** 0.5)
    assert mean.name == "mean of BLEU and chrF of greedy outputs"

    def longest(outputs, split, bleu_tokenizer):
        return max(map(len, outputs))

    assert MetricOfGreedy(longest).of(dev, REWARD)(lively) == {"score": max(map(len, greedy))}
    with pytest.raises(UserError, match="needs the references of dev"):
        MetricOfGreedy().of(replace(dev, split=replace(dev.split, references=None)), REWARD)


def test_the_loss_is_minus_that_of_the_references(lively, dev, batch):
    log_probs = np.concatenate(token_log_probs(lively, human_pairs(lively, dev.split), batch))
    assert DevLoss().of(dev, REWARD)(lively) == {"score": pytest.approx(log_probs.mean(), rel=1e-4)}


@pytest.mark.parametrize("chooser", [RewardOfSamples(2), RewardOfGreedy(), MetricOfGreedy()])
def test_the_first_sources_alone_can_choose(chooser, lively, dev):
    first = replace(dev, split=dev.split.take(slice(0, 5)))
    assert replace(chooser, sources=5).of(dev, REWARD)(lively) == chooser.of(first, REWARD)(lively)


def test_what_chose_is_named_and_known_by_what_decides_it(dev):
    choosers = [RewardOfSamples(), RewardOfGreedy(), MetricOfGreedy(), MetricOfGreedy(CorpusBLEU()), DevLoss()]
    assert all(isinstance(chooser, DevChooser) for chooser in choosers)
    assert [chooser.name for chooser in choosers] == [
        "mean reward of 4 samples a source",
        "mean reward of greedy outputs",
        "chrF of greedy outputs",
        "BLEU of greedy outputs",
        "loss of the references",
    ]
    known = [str(describe([chooser, chooser.settings(dev)])) for chooser in choosers]
    assert len(set(known)) == len(known)
    wider, cooler = replace(dev, beam=replace(BEAM, beams=8)), replace(dev, sampling=replace(SAMPLING, temperature=0.1))
    for chooser in choosers:  # the width of evaluation's beam decides nothing on dev
        assert chooser.settings(wider) == chooser.settings(dev)
        assert (chooser.settings(cooler) == chooser.settings(dev)) == (chooser != RewardOfSamples())
    with pytest.raises(UserError, match="samples_per_source must be at least 1, not 0"):
        RewardOfSamples(0)
