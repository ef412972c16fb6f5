"""Behavioural cloning: its dev loss is the plain network's, training lowers it, and nothing is cut in silence."""

from dataclasses import replace

import numpy as np
import pytest

from rest.baselines.bc import clone, dev_loss, drop_long, human_pairs
from rest.data.batches import fitting
from rest.data.corpus import Split
from rest.errors import UserError
from rest.learning.optimizers import Schedule
from rest.learning.train import TrainSettings

TRAINING = TrainSettings(max_steps=12, evaluate_every=6, patience=3, schedule=Schedule(5e-3, 2))


@pytest.fixture(scope="module")
def dev(corpus, policy, batch):
    return drop_long(policy.tokenizer, corpus.dev, batch)[0]


@pytest.fixture(scope="module")
def train(corpus, policy, batch):
    return drop_long(policy.tokenizer, corpus.train, batch)[0]


def long_split(name: str) -> Split:
    """The second sentence, the eighth of its file, is too long on the target side."""
    references = ["thabremas", "thabremas " * 60, "thabremas"]
    return Split(name, np.array([3, 7, 9]), ["du goke", "me mipi", "du sebe"], references)


def test_the_dev_loss_is_the_mean_over_all_reference_tokens(lively, dev, batch, teacher_forced):
    total = tokens = 0
    for source, ids in zip(dev.sources, lively.encode_references(dev.references), strict=True):
        logits = teacher_forced(lively, source, ids)
        log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        total -= log_probs[np.arange(len(ids)), ids].sum()
        tokens += len(ids)
    score = dev_loss(lively, dev, batch)(lively)["score"]
    assert score == pytest.approx(-total / tokens, rel=1e-5)


def test_the_dev_loss_does_not_depend_on_packing(lively, dev, batch):
    once = dev_loss(lively, dev, batch)(lively)["score"]
    other = dev_loss(lively, dev.take(slice(None, None, -1)), replace(batch, batch_tokens=192))
    assert other(lively)["score"] == pytest.approx(once, rel=1e-5)


def test_cloning_lowers_the_dev_loss_and_keeps_the_best(policy, train, dev, batch, tmp_path):
    evaluate = dev_loss(policy, dev, batch)

    def run(folder: str, seed: int):
        return clone(
            policy,
            train,
            0.1,
            TRAINING,
            batch,
            evaluate=evaluate,
            folder=tmp_path / folder,
            seed=seed,
            description="bc",
        )

    trained = run("a", 0)
    cloned = trained.best
    before = evaluate(policy)["score"]
    after = evaluate(cloned)["score"]
    assert after > before + 0.3
    assert [step for step, _ in trained.history] == [0, 6, 12]
    assert trained.history[0][1] == pytest.approx(before) and trained.score == pytest.approx(after)
    assert trained.score == max(score for _, score in trained.history)
    assert cloned.tokenizer is policy.tokenizer and cloned.identity != policy.identity
    assert run("b", 0).best.identity == cloned.identity
    assert run("c", 1).best.identity != cloned.identity


def test_pairs_keep_their_order_and_end_in_eos(policy, dev, batch):
    examples = human_pairs(policy, dev)
    assert policy.tokenizer.decode(examples.sources) == dev.sources
    assert policy.tokenizer.decode(examples.targets) == dev.references
    assert all(ids[-1] == policy.tokenizer.eos_id for ids in [*examples.sources, *examples.targets])


def test_a_dev_pair_longer_than_a_row_counts_as_in_longer_rows(policy, batch):
    long = long_split("dev")
    found = dev_loss(policy, long, batch)(policy)["score"]
    assert not fitting(human_pairs(policy, long), batch).all()
    room = replace(batch, target_tokens=256)
    assert found == pytest.approx(dev_loss(policy, long, room)(policy)["score"], rel=1e-5)


def test_text_without_references_cannot_be_cloned(policy, dev, batch):
    with pytest.raises(UserError, match="dev: behavioural cloning needs references"):
        human_pairs(policy, replace(dev, references=None))


def test_training_pairs_that_are_too_long_are_dropped_and_counted(policy, batch):
    split = long_split("train")
    kept, dropped = drop_long(policy.tokenizer, split, batch)
    assert dropped == 1 and kept.ids.tolist() == [3, 9]
    assert kept.references == ["thabremas", "thabremas"]
    # without references only the sources count
    for room in (batch, replace(batch, target_tokens=1)):
        assert drop_long(policy.tokenizer, replace(split, references=None), room)[1] == 0
    assert drop_long(policy.tokenizer, split, replace(batch, target_tokens=1000)) == (split, 0)
    kept, dropped = drop_long(policy.tokenizer, split, replace(batch, source_tokens=1))
    assert len(kept) == 0 and dropped == 3
