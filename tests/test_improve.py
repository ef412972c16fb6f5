"""An Improve step: what passes the threshold is learned from as it is stored, and the best on dev is kept."""

from dataclasses import replace
from itertools import count

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest.baselines.bc import human_pairs
from rest.columns import Scorers, examples_of
from rest.data.batches import Examples, training_batches
from rest.data.ragged import Ragged
from rest.errors import UserError
from rest.evaluation.chooser import Dev, RewardOfSamples
from rest.folder import seed_for
from rest.improve import ImproveSettings, improve, select, with_share
from rest.learning.losses import GOLD, VMPO, AdvantageWeighted, Anchored
from rest.learning.mesh import MachineSettings
from rest.learning.optimizers import Schedule
from rest.learning.preferences import DPO, RRHF
from rest.learning.train import TrainSettings, train
from rest.policy.beam import BeamSettings
from rest.policy.policy import PolicyObjective
from rest.policy.sampler import SamplingSettings
from rest.policy.value import Value
from rest.reward.reward import Reward
from rest.thresholds import Fixed, GlobalPercentile

SAMPLING = SamplingSettings(temperature=0.8, max_target_tokens=12)
TRAINING = TrainSettings(max_steps=4, evaluate_every=2, patience=2, schedule=Schedule(4e-3, 0))
SETTINGS = ImproveSettings(rule=GlobalPercentile((25.0, 50.0, 75.0)), learning_rate_factor=0.5, train=TRAINING)


def words(sources, hypotheses, references):
    return np.array([min(12, len(y.split())) for y in hypotheses], np.float32)


REWARD = Reward(words, (0.0, 12.0))


@pytest.fixture(scope="module")
def dataset(scored):
    """30 rows: 10 sources with a human pair and two samples each."""
    return scored


@pytest.fixture(scope="module")
def stored(dataset):
    names = ["source", "hypothesis", "tokens", "finish", "reward", "origin"]
    return [row for table in dataset.batches(names) for row in table.to_pylist()]


@pytest.fixture(scope="module")
def evaluate(lively, corpus, batch):
    short = [row for row, ids in enumerate(lively.encode_sources(corpus.dev.sources)) if len(ids) <= 16]
    dev = Dev(corpus.dev.take(short[:6]), SAMPLING, BeamSettings(), batch, "13a", 0, MachineSettings(rows=24))
    return RewardOfSamples(2).of(dev, REWARD)


def run(policy, dataset, batch, evaluate, folder, settings=SETTINGS, i=1, seed=0):
    return improve(policy, dataset, settings, batch, g=1, i=i, evaluate=evaluate, folder=folder, seed=seed)


def by_turns(change: float):
    """An evaluation that likes every policy more (or less) than the one before, so that the last (or first) wins."""
    scores = count(0.0, change)
    return lambda policy: {"score": next(scores)}


def test_only_rows_above_the_threshold_pass(dataset, stored):
    """tau is a reward that rows have: they do not pass, since the filter is strict."""
    rewards = np.array([row["reward"] for row in stored], np.float32)
    tau = float(np.unique(rewards)[1])
    selection = select(dataset, replace(SETTINGS, rule=Fixed((tau,))), 1)
    np.testing.assert_array_equal(selection.mask, rewards > np.float32(tau))
    assert (rewards == np.float32(tau)).any() and 0 < selection.rows < 30


@pytest.mark.parametrize(("human_pairs", "expected"), [("always", 10), ("never", 0)])
def test_human_pairs_can_always_or_never_pass(dataset, human_pairs, expected):
    settings = replace(SETTINGS, rule=Fixed((0.0, 1.0)), human_pairs=human_pairs)
    assert select(dataset, settings, 1).references == expected
    assert select(dataset, settings, 2).references == expected  # tau = 1 passes nothing else
    assert select(dataset, settings, 2).rows == expected


def test_all_pairs_of_the_text_are_learned_from_beside_the_samples_that_pass(dataset, lively, corpus, batch, tmp_path):
    pairs = human_pairs(lively, corpus.train.take(np.arange(25)))
    settings = replace(SETTINGS, rule=Fixed((0.0,)), human_pairs="all", train=replace(TRAINING, max_steps=2))
    _, found = improve(
        lively, dataset, settings, batch, g=1, i=1, evaluate=by_turns(1.0), folder=tmp_path, seed=0, pairs=pairs
    )
    own = select(dataset, settings, 1)
    assert own.references == 0 and own.mask.sum() == found["rows_kept"] > 0
    assert found["references_kept"] == 25


@given(st.tuples(st.booleans(), st.booleans()), st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_pairs_that_follow_pairs_keep_their_sources(shared, places):
    rows, places = Ragged.of([[k] * (k + 1) for k in range(6)]), np.array(places)
    targets = rows.take(places)
    plain, sharing = Examples(targets, targets), Examples(rows, targets, source_of=places)
    first, second = (sharing if is_shared else plain for is_shared in shared)
    joined = first.followed_by(second)
    assert len(joined) == 2 * len(places)
    for pair, place in enumerate([*places, *places]):
        assert joined.source(pair).tolist() == joined.targets[pair].tolist() == [place] * (place + 1)


def test_all_pairs_of_the_text_are_no_part_of_a_loss_that_reads_scores():
    for loss in (DPO(), AdvantageWeighted()):
        with pytest.raises(UserError, match=rf"improve.human_pairs 'all': .* {type(loss).__name__} reads scores"):
            replace(SETTINGS, human_pairs="all", loss=loss)


def test_step_zero_learns_from_all_of_the_dataset(dataset):
    assert select(dataset, SETTINGS, 0).rows == 30


def test_training_reads_the_stored_tokens_and_never_adds_eos(dataset, stored, lively, batch, tmp_path):
    mask = np.arange(30) % 4 != 1
    examples = examples_of(dataset.keep(mask, ["source", "tokens"], tmp_path), lively, batch)
    kept = [row for row, keep in zip(stored, mask, strict=True) if keep]
    assert [list(map(int, ids)) for ids in examples.targets] == [row["tokens"] for row in kept]
    sources = lively.encode_sources([row["source"] for row in kept])
    assert [list(ids) for ids in examples.sources] == [list(ids) for ids in sources]
    # what the tokens would be if the text were tokenised again is something else
    again = lively.encode_references([row["hypothesis"] for row in kept])
    assert any(list(new) != row["tokens"] for new, row in zip(again, kept, strict=True))
    cut = [ids for ids, row in zip(examples.targets, kept, strict=True) if row["finish"] == "length"]
    assert cut and all(len(ids) == 12 and ids[-1] != lively.tokenizer.eos_id for ids in cut)


def test_a_hypothesis_longer_than_a_row_is_refused_by_the_setting_to_change(dataset, lively, batch, tmp_path):
    table = dataset.keep(np.ones(30, bool), ["source", "tokens"], tmp_path)
    with pytest.raises(UserError, match=r"batch.target_tokens 8 is less than a stored hypothesis' \d+ tokens"):
        examples_of(table, lively, replace(batch, target_tokens=8))


def test_when_no_row_passes_the_rule_is_named(dataset, lively, batch, evaluate, tmp_path):
    settings = replace(SETTINGS, rule=Fixed((0.5, 1.0)))
    with pytest.raises(
        UserError, match=r"no row passes rule Fixed, threshold 1.0 with human pairs 'compete'; the highest reward is"
    ):
        run(lively, dataset, batch, evaluate, tmp_path, settings, i=2)


def test_an_improve_step_reports_what_passed_and_what_came_of_it(dataset, lively, batch, evaluate, tmp_path):
    improved, result = run(lively, dataset, batch, evaluate, tmp_path, i=2)
    selection = select(dataset, SETTINGS, 2)
    assert result["rows_kept"] == selection.rows < result["rows"] == 30
    assert (result["grow"], result["improve"]) == (1, 2)
    assert result["threshold"] == selection.threshold
    assert result["mean_reward_kept"] == selection.mean_reward > result["threshold"]
    assert result["sources_kept"] == selection.sources and result["references_kept"] == selection.references
    assert result["learning_rate"] == 2e-3  # half of the first step's
    assert result["gradient_steps"] == 4
    assert 0 <= result["padding"] < 1
    steps, scores = zip(*result["dev_reward"], strict=True)
    assert steps == (0, 2, 4)
    assert scores[0] == evaluate(lively)["score"]
    assert max(scores) == evaluate(improved)["score"]
    assert result["best_step"] == steps[len(scores) - 1 - int(np.argmax(scores[::-1]))]
    assert result["started_policy_won"] == (result["best_step"] == 0)
    assert not (tmp_path / "kept").exists()


def test_the_starting_policy_is_candidate_zero(dataset, lively, batch, tmp_path):
    kept, result = run(lively, dataset, batch, by_turns(-1.0), tmp_path)
    assert result["started_policy_won"] and result["best_step"] == 0
    assert result["gradient_steps"] == 4 and result["stopped"] == "converged"
    assert kept.identity == lively.identity


def test_an_improve_step_makes_what_passed_likelier(dataset, lively, batch, tmp_path, stored, teacher_forced):
    selection = select(dataset, SETTINGS, 3)
    settings = replace(SETTINGS, learning_rate_factor=1.0)
    improved, _ = run(lively, dataset, batch, by_turns(1.0), tmp_path, settings, i=3)

    def nll(policy):
        rows = [row for row, keep in zip(stored, selection.mask, strict=True) if keep]
        total = 0.0
        for row in rows:
            logits = teacher_forced(policy, row["source"], row["tokens"])
            log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            total -= log_probs[np.arange(len(row["tokens"])), row["tokens"]].sum()
        return total / sum(len(row["tokens"]) for row in rows)

    assert nll(improved) < nll(lively) - 0.1


def test_equal_runs_give_equal_policies_and_another_seed_does_not(dataset, lively, batch, tmp_path):
    short = replace(SETTINGS, train=replace(TRAINING, max_steps=2))

    def last(folder, seed):
        return run(lively, dataset, batch, by_turns(1.0), tmp_path / folder, short, seed=seed)[0].identity

    first = last("a", 0)
    assert last("b", 0) == first
    assert last("c", 1) != first


def test_interpolation_goes_part_of_the_way(dataset, lively, batch, tmp_path):
    def last(share):
        settings = replace(SETTINGS, interpolation=share, train=replace(TRAINING, max_steps=2))
        reached, _ = run(lively, dataset, batch, by_turns(1.0), tmp_path / str(share), settings)
        return jax.tree.leaves(reached.network.parameters)

    for start, end, between in zip(jax.tree.leaves(lively.network.parameters), last(1.0), last(0.25), strict=True):
        np.testing.assert_allclose(between, 0.75 * start + 0.25 * end, atol=1e-6)
    with pytest.raises(UserError, match=r"improve.interpolation must be above 0 and at most 1, not 0.0"):
        replace(SETTINGS, interpolation=0.0)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.02, 0.98), st.integers(0, 9))
def test_human_pairs_are_repeated_or_left_out_until_they_have_their_share(human, samples, share, seed):
    rows = human + samples
    examples = Examples([[k] for k in range(rows)], [[k] for k in range(rows)], {"x": np.arange(rows)})
    is_human = np.random.default_rng(seed).permutation(rows) < human
    taken = with_share(examples, is_human, share, seed)
    ids = np.array([target[0] for target in taken.targets])
    np.testing.assert_array_equal(taken.columns["x"], ids)
    counts = np.bincount(ids, minlength=rows)
    assert (counts[~is_human] == 1).all() and np.ptp(counts[is_human]) <= 1  # every sample once, pairs evenly
    assert counts[is_human].sum() == max(1, round(share / (1 - share) * samples))


def test_a_share_of_human_pairs_that_cannot_be_had_is_refused():
    for share in (0.0, 1.0):
        with pytest.raises(UserError, match=rf"improve.human_share must be above 0 and below 1, not {share}"):
            replace(SETTINGS, human_share=share)
    for changed in ({"human_pairs": "never"}, {"loss": DPO()}):
        with pytest.raises(UserError, match=r"improve.human_share 0\.5: there are no human pairs to repeat"):
            replace(SETTINGS, human_share=0.5, **changed)


def test_the_learning_rate_falls_by_the_factor_at_every_step():
    settings = replace(SETTINGS, learning_rate_factor=0.5)
    rates = [settings.training(1, i).highest_rate for i in (0, 1, 2, 3)]
    assert rates == [4e-3, 4e-3, 2e-3, 1e-3]
    assert replace(settings.training(1, 3), rate_factor=1.0) == TRAINING  # and nothing else changes


def test_the_learning_rate_falls_from_one_grow_step_to_the_next():
    settings = replace(SETTINGS, learning_rate_factor=0.5, grow_rate_factor=0.25)
    rates = [settings.training(g, i).highest_rate for g, i in ((1, 1), (2, 1), (2, 2), (3, 0))]
    assert rates == [4e-3, 1e-3, 5e-4, 2.5e-4]


def test_what_decides_a_step_is_the_same_whatever_steps_follow():
    longer = replace(SETTINGS, rule=GlobalPercentile((25.0, 50.0, 75.0, 90.0)), unfiltered=False)
    assert [longer.at(1, i) for i in range(4)] == [SETTINGS.at(1, i) for i in range(4)]
    other_first = replace(SETTINGS, rule=GlobalPercentile((30.0, 50.0, 75.0)))
    assert other_first.at(1, 1) != SETTINGS.at(1, 1) and other_first.at(1, 2) == SETTINGS.at(1, 2)
    slower = replace(SETTINGS, learning_rate_factor=0.25)
    assert slower.at(1, 1) == SETTINGS.at(1, 1) and slower.at(1, 2) != SETTINGS.at(1, 2)
    later = replace(SETTINGS, grow_rate_factor=0.25)
    assert later.at(1, 1) == SETTINGS.at(1, 1) and later.at(2, 1) != SETTINGS.at(2, 1)
    for changed in ({"human_pairs": "never"}, {"start": "bc"}, {"train": replace(TRAINING, max_steps=5)}):
        assert replace(SETTINGS, **changed).at(1, 1) != SETTINGS.at(1, 1)


LOSSES = [  # by what they need: a number a sequence, numbers a token, pairs, groups; parameters of their own below
    AdvantageWeighted(),
    GOLD(),
    DPO(),
    RRHF(ranked=3),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_every_loss_is_one_setting_apart(dataset, lively, batch, tmp_path, loss, capsys):
    settings = replace(SETTINGS, loss=loss, train=replace(TRAINING, max_steps=1, evaluate_every=1))
    scorers = Scorers(lively, Value.start(lively))
    improved, result = improve(
        lively, dataset, settings, batch, g=1, i=1, evaluate=by_turns(1.0), folder=tmp_path, seed=0, scorers=scorers
    )
    assert result["best_step"] == 1 and improved.identity != lively.identity
    assert ("rows are compared" in capsys.readouterr().err) == (loss.candidates > 1)
    # nothing of the loss stays in the policy
    assert improved.network.parameters.keys() == lively.network.parameters.keys()
    rewards = dataset.columns(["reward"])["reward"]
    mask = select(dataset, settings, 1).mask
    if loss.candidates == 2:
        assert result["rows_kept"] == 2 * result["sources_kept"]
        assert rewards[mask].min() < result["threshold"]  # what is learned to avoid need not pass


def test_a_loss_resumes_with_its_dual_variables_and_its_place_in_training(dataset, lively, batch, tmp_path):
    settings = replace(SETTINGS, loss=Anchored(VMPO()), train=replace(TRAINING, max_steps=2, evaluate_every=1))
    scorers = Scorers(lively, Value.start(lively))

    def run(folder, evaluate):
        return improve(
            lively, dataset, settings, batch, g=1, i=1, evaluate=evaluate, folder=folder, seed=0, scorers=scorers
        )[0]

    def dies(policy):
        if scores["left"] == 0:
            raise RuntimeError("killed")
        scores["left"] -= 1
        return {"score": -1.0 - scores["left"]}  # rising: -2, -1, and 0 after the kill

    whole = run(tmp_path / "whole", by_turns(1.0))
    scores = {"left": 2}
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "killed", dies)
    assert run(tmp_path / "killed", by_turns(9.0)).identity == whole.identity != lively.identity
    assert whole.network.parameters.keys() == lively.network.parameters.keys()  # without the dual variables


def test_at_minus_infinity_an_improve_step_is_behavioural_cloning_on_all_of_the_dataset(
    dataset, stored, lively, batch, tmp_path
):
    """The same rows through BC's own way into training give the same policy, to the last bit."""
    improved, _ = run(lively, dataset, batch, by_turns(1.0), tmp_path / "improve", i=0)
    examples = Examples(
        [lively.encode_sources([row["source"]])[0] for row in stored],
        [np.asarray(row["tokens"], np.int32) for row in stored],
    )
    seeds = (seed_for(0, purpose, 1, 0) for purpose in ("improve batches", "improve"))
    batches, _ = training_batches(examples, batch, pad_id=lively.tokenizer.pad_id, seed=next(seeds))
    cloned = train(
        lively,
        PolicyObjective(SETTINGS.loss),
        batches,
        SETTINGS.training(1, 0),
        evaluate=by_turns(1.0),
        folder=tmp_path / "clone",
        seed=next(seeds),
        description="clone",
    )
    assert improved.identity == cloned.best.identity
