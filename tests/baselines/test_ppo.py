"""PPO: that it climbs, what it reports and keeps, and that it can be killed."""

import itertools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from rest.__main__ import main
from rest.baselines.bc import human_pairs
from rest.baselines.ppo import METRICS, CriticSettings, PPOSettings, explained_variance, learn_from, ppo
from rest.baselines.rollout import Rollout, RolloutSettings
from rest.data.batches import Examples
from rest.data.store import ScoredDataset
from rest.errors import UserError
from rest.learning.divergence import AdaptiveCoefficient
from rest.learning.mesh import MachineSettings
from rest.learning.optimizers import Schedule
from rest.learning.returns import Group, LeaveOneOut
from rest.reward.reward import Reward

SETTINGS = PPOSettings(
    rollouts=4,
    evaluate_every=2,
    rollout=RolloutSettings(6, 3, temperature=0.8, coefficient=AdaptiveCoefficient(0.01), keep_every=3),
    schedule=Schedule(3e-3),
    critic=CriticSettings(schedule=Schedule(3e-3), warmup_rollouts=1),
)


def brevity(sources, hypotheses, references):
    return np.asarray([1 / (1 + len(y)) for y in hypotheses], np.float32)


def growing(at=None):
    """An evaluation that finds each policy better than the last; the `at`th time the process dies."""
    calls = itertools.count(1)

    def evaluate(policy):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(policy.network.parameters))
        if (call := next(calls)) == at:
            raise RuntimeError("killed")
        return {"score": float(call)}

    return evaluate


@pytest.fixture(scope="module")
def train(lively, corpus, batch):
    """PPO on sources that share one width, so that samplers are compiled once."""
    short = [row for row, ids in enumerate(lively.encode_sources(corpus.train.sources)) if len(ids) <= 16]
    text = corpus.train.take(short)

    def run(folder, settings=SETTINGS, evaluate=None, human=None):
        folder.mkdir(exist_ok=True)
        return ppo(
            lively,
            text,
            human,
            Reward(brevity),
            settings,
            batch,
            max_target_tokens=12,
            evaluate=evaluate or growing(),
            folder=folder,
            seed=2,
            machine=MachineSettings(rows=24),
        )

    return run


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ppo")
    return folder, *train(folder)


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in found]


def rollouts(folder):
    return [line for line in lines(folder) if "objective/reward" in line]


def test_it_reports_what_its_table_says(undisturbed):
    folder, _, result = undisturbed
    one = rollouts(folder)
    assert [line["step"] for line in one] == [1, 2, 3, 4]
    assert set(METRICS) - {"ppo/pretraining_nll"} == set.union(*map(set, lines(folder))) - {"step"}
    assert one[0]["ppo/updates"] == 0 and one[1]["objective/kl"] == 0  # only the critic learned
    assert one[3]["objective/kl"] != 0
    assert all(line["ppo/sampler_gap"] < 1e-4 for line in one)
    assert one[0]["objective/coefficient"] == 0.01 != one[1]["objective/coefficient"] != result["coefficient"]
    assert result["gradient_steps"] == sum(line["ppo/updates"] for line in one) < result["critic_steps"]
    assert result["samples"] == 4 * 18


def test_rollouts_are_kept_like_any_scored_dataset(undisturbed, capsys):
    folder = undisturbed[0]
    dataset = ScoredDataset.open(folder / "rollouts")
    dataset.verify()
    assert dataset.rows == 2 * 18  # of rollouts 1 and 4
    stored = dataset.columns(["reward"])["reward"]
    assert stored[:18].mean() == pytest.approx(rollouts(folder)[0]["objective/reward"])
    assert stored[18:].mean() == pytest.approx(rollouts(folder)[3]["objective/reward"])
    main(["inspect", str(folder / "rollouts")])
    assert "36" in capsys.readouterr().out


@pytest.mark.parametrize("at", [1, 2, 3])
def test_killed_and_resumed_is_as_if_nothing_had_happened(at, train, undisturbed, tmp_path):
    folder, wanted, result = undisturbed
    scores = iter(score for _, score in result["dev_reward"])
    done = [next(scores) for _ in range(at - 1)]
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, evaluate=growing(at))
    resumed, again = train(tmp_path, evaluate=lambda policy: {"score": next(scores)})
    assert len(done) == at - 1 and json.dumps(again) == json.dumps(result)
    assert lines(tmp_path) == lines(folder)
    parameters = (jax.tree.leaves(policy.network.parameters) for policy in (resumed, wanted))
    for ours, theirs in zip(*parameters, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_policy_climbs_and_the_best_on_dev_is_kept(train, lively, tmp_path):
    settings = replace(SETTINGS, rollouts=8, evaluate_every=8, schedule=Schedule(1e-2))
    best, result = train(tmp_path, settings)
    rewards = [line["objective/reward"] for line in rollouts(tmp_path)]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.1
    assert result["best_step"] == 8 and best.identity != lively.identity
    start, result = train(tmp_path / "worse", replace(settings, rollouts=2), evaluate=scripted(0.5, 0.4))
    assert result["started_policy_won"] and start.identity == lively.identity


def scripted(*scores):
    left = iter(scores)
    return lambda policy: {"score": next(left)}


@pytest.mark.parametrize("advantage", [LeaveOneOut(), Group()])
def test_without_a_critic_the_samples_of_a_source_are_compared(advantage, train, tmp_path):
    train(tmp_path, replace(SETTINGS, advantage=advantage, rollouts=1, epochs=1, whiten_advantages="no"))
    (line,) = rollouts(tmp_path)
    assert "ppo/value_loss" not in line and "ppo/explained_variance" not in line
    assert line["ppo/updates"] == 1
    # one update of a rollout by the policy that drew it: nothing has moved yet
    assert line["ppo/ratio"] == pytest.approx(1, abs=1e-4) and line["ppo/clip_fraction"] == 0
    assert line["ppo/approx_kl"] == pytest.approx(0, abs=1e-6)


def test_a_rollout_s_updates_end_when_the_policy_has_moved_too_far(train, tmp_path):
    settings = replace(SETTINGS, rollouts=2, epochs=6, target_kl=1e-3, schedule=Schedule(1e-2))
    train(tmp_path, settings)
    assert rollouts(tmp_path)[1]["ppo/updates"] == 2  # the first does not know yet how far it goes


def test_human_pairs_are_learned_beside_the_reward(train, lively, corpus, batch, tmp_path):
    human = human_pairs(lively, corpus.train, batch)
    settings = replace(SETTINGS, rollouts=3, pretraining=1.0, pretraining_pairs=20, schedule=Schedule(1e-2))
    train(tmp_path, settings, human=human)
    nll = [line.get("ppo/pretraining_nll") for line in rollouts(tmp_path)]
    assert nll[0] is None and nll[2] < nll[1] - 0.1


def hand(finish=("eos", "eos", "eos", "length")):
    """Two sources with two hypotheses each, of 1 to 3 tokens, rewards .1 .2 .3 .4."""
    lengths = np.asarray([1, 2, 3, 3])
    mask = np.arange(3) < lengths[:, None]
    log_probs = np.where(mask, np.float32(-1.0), np.float32(0.0))
    columns = {"reward": np.asarray([0.1, 0.2, 0.3, 0.4], np.float32), "finish": list(finish)}
    examples = Examples([[5]] * 4, [[6] * n for n in lengths])
    return Rollout(columns, examples, lengths, mask, log_probs, 2 * log_probs, -log_probs, 0.0)


def test_what_a_rollout_teaches_by_hand():
    two = replace(SETTINGS.rollout, samples_per_source=2)
    plain = replace(SETTINGS, rollout=two, advantage=LeaveOneOut(), whiten_advantages="no")
    learned, metrics = learn_from(hand(), None, plain, coefficient=0.1)
    # the divergence is 1 nat a token: paid .1 - .1, .2 - .2, .3 - .3 and .4 - .3
    assert metrics["objective/kl"] == pytest.approx((1 + 2 + 3 + 3) / 4)
    assert metrics["objective/reward"] == pytest.approx(0.25)
    assert metrics["objective/penalised_reward"] == pytest.approx(0.025)
    assert metrics["length/mean"] == 2.25 and metrics["length/cut"] == 0.25
    advantages = learned.token_columns["advantages"]
    assert [len(a) for a in advantages] == [1, 2, 3, 3]
    np.testing.assert_allclose(np.concatenate(advantages), [0] * 3 + [-0.1] * 3 + [0.1] * 3, atol=1e-6)
    white, _ = learn_from(hand(), None, replace(plain, whiten_advantages="population"), coefficient=0.1)
    flat = np.concatenate(white.token_columns["advantages"])
    assert flat.mean() == pytest.approx(0, abs=1e-5) and flat.std() == pytest.approx(1, abs=1e-5)


def test_explained_variance_by_hand():
    mask = np.asarray([[True, True, False]])
    returns = np.asarray([[0.0, 1.0, 9.0]], np.float32)
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(np.zeros_like(returns), returns, mask) == 0
    assert explained_variance(-returns, returns, mask) == -3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "ppo.epochs must be at least 1, not 0"),
        ({"advantage": Group(), "rollout": RolloutSettings(4, 1)}, "samples_per_source 1: Group compares"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        PPOSettings(**changes)
