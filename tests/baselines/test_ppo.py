"""PPO: that it climbs, what it reports and keeps, and that it can be killed."""

import itertools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from rest.__main__ import main
from rest.baselines.bc import human_pairs
from rest.baselines.ppo import ppo
from rest.baselines.rollout import RolloutSettings
from rest.baselines.settings import GRPO, METRICS, RLOO, CriticSettings, FromReward, PPOSettings
from rest.data.store import ScoredDataset
from rest.learning.divergence import AdaptiveCoefficient, InReward
from rest.learning.mesh import MachineSettings
from rest.learning.optimizers import Schedule
from rest.reward.learned.network import LearnedReward
from rest.reward.reward import Reward

SETTINGS = PPOSettings(
    rollouts=4,
    evaluate_every=2,
    rollout=RolloutSettings(6, 3, temperature=0.8, keep_every=3),
    divergence=InReward(coefficient=AdaptiveCoefficient(0.01)),
    schedule=Schedule(3e-3),
    critic=CriticSettings(schedule=Schedule(3e-3), warmup_rollouts=1),
)
AVERAGED = replace(SETTINGS, ema=0.5, average=2)


def brevity(sources, hypotheses, references):
    return np.asarray([1 / (1 + len(y)) for y in hypotheses], np.float32)


BREVITY = Reward(brevity)


def growing(at=None, seen=None):
    """An evaluation that finds each policy better than the last; the `at`th time the process dies."""
    calls = itertools.count(1)

    def evaluate(policy):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(policy.network.parameters))
        if seen is not None:
            seen.append([np.asarray(leaf) for leaf in jax.tree.leaves(policy.network.parameters)])
        if (call := next(calls)) == at:
            raise RuntimeError("killed")
        return {"score": float(call)}

    return evaluate


@pytest.fixture(scope="module")
def train(lively, corpus, batch):
    """PPO on sources that share one width, so that samplers are compiled once."""
    short = [row for row, ids in enumerate(lively.encode_sources(corpus.train.sources)) if len(ids) <= 16]
    text = corpus.train.take(short)

    def run(folder, settings=SETTINGS, evaluate=None, human=None, reward=BREVITY):
        folder.mkdir(exist_ok=True)
        return ppo(
            lively,
            text,
            human,
            reward,
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
    return folder, *train(folder, AVERAGED)


def lines(folder):
    """What it recorded, but when and how fast."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("pace/")} for line in found]


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


def test_it_says_how_fast_it_goes_and_what_takes_its_time(undisturbed):
    folder = undisturbed[0]
    last = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if "rollouts" in line][-1]
    assert last["pace/tokens_per_second_per_device"] > 0
    spent = [last[f"pace/lost_to_{what}"] for what in ("rollouts", "evaluation", "checkpoints")]
    assert 0 < sum(spent) < 1 and spent[0] > 0 and "pace/lost_to_data" not in last


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


@pytest.mark.parametrize("at", [1, 2, 3, 4])  # the last of them is the evaluation of the average
def test_killed_and_resumed_is_as_if_nothing_had_happened(at, train, undisturbed, tmp_path):
    folder, wanted, result = undisturbed
    scores = iter(score for _, score in result["dev_reward"])
    done = [next(scores) for _ in range(at - 1)]
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, AVERAGED, evaluate=growing(at))
    resumed, again = train(tmp_path, AVERAGED, evaluate=lambda policy: {"score": next(scores, 4.0)})
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


def test_the_moving_average_is_evaluated_and_kept_and_rollouts_are_drawn_by_the_policy_itself(train, tmp_path):
    """One update a rollout: of the same three updates, the average is what a line of arithmetic says."""
    one = replace(SETTINGS, rollouts=3, evaluate_every=1, epochs=1, critic=replace(SETTINGS.critic, warmup_rollouts=0))
    raw, moving = [], []
    train(tmp_path / "raw", one, growing(seen=raw))
    best, result = train(tmp_path / "moving", replace(one, ema=0.75), growing(seen=moving))
    rewards = [[line["objective/reward"] for line in rollouts(tmp_path / name)] for name in ("raw", "moving")]
    assert rewards[0] == rewards[1] and result["gradient_steps"] == 3
    assert len(raw) == len(moving) == 4
    kept = jax.tree.leaves(best.network.parameters)
    for start, first, second, third, *found in zip(*raw, *moving[1:], kept, strict=True):
        wanted = [0.75 * start + 0.25 * first]
        wanted.append(0.75 * wanted[0] + 0.25 * second)
        wanted.append(0.75 * wanted[1] + 0.25 * third)
        for ours, theirs in zip(found, [*wanted, wanted[-1]], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(raw[3], moving[3], strict=True))


def test_the_average_of_the_last_policies_is_kept_where_it_scores_better(train, tmp_path):
    seen, pair = [], replace(SETTINGS, rollouts=2, evaluate_every=1, average=2)
    best, result = train(tmp_path / "better", pair, growing(seen=seen))
    for found, first, second in zip(jax.tree.leaves(best.network.parameters), *seen[1:3], strict=True):
        np.testing.assert_allclose(found, (first + second) / 2, atol=1e-6)
    assert result["best_step"] == 2
    best, result = train(tmp_path / "worse", pair, scripted(0.1, 0.5, 0.4, 0.45))
    for found, first in zip(jax.tree.leaves(best.network.parameters), seen[1], strict=True):
        np.testing.assert_array_equal(found, first)
    assert result["best_step"] == 1


@pytest.mark.parametrize("published", [RLOO, GRPO])
def test_the_published_methods_climb_too(published, train, tmp_path):
    settings = replace(published, rollouts=10, evaluate_every=10, rollout=SETTINGS.rollout, schedule=Schedule(1e-2))
    train(tmp_path, settings)
    rewards = [line["objective/reward"] for line in rollouts(tmp_path)]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.1


@pytest.mark.parametrize("published", [RLOO, GRPO])
def test_without_a_critic_the_samples_of_a_source_are_compared(published, train, tmp_path):
    settings = replace(published, rollouts=1, rollout=SETTINGS.rollout, schedule=Schedule(3e-3))
    train(tmp_path, settings)
    (line,) = rollouts(tmp_path)
    assert "ppo/value_loss" not in line and "ppo/explained_variance" not in line
    assert line["ppo/updates"] == 1
    # one update of a rollout by the policy that drew it: nothing has moved yet
    assert line["ppo/ratio"] == pytest.approx(1, abs=1e-4) and line.get("ppo/clip_fraction", 0) == 0
    assert line["ppo/approx_kl"] == pytest.approx(0, abs=1e-6)


def test_a_critic_that_starts_from_the_reward_climbs_its_reward_too(train, lively, batch, tmp_path):
    learned = Reward(LearnedReward.new(lively, batch), scale=(-1.0, 1.0))
    settings = replace(SETTINGS, rollouts=1, evaluate_every=1, critic=replace(SETTINGS.critic, start=FromReward()))
    _, result = train(tmp_path, settings, reward=learned)
    assert result["critic_steps"] == 2
    assert rollouts(tmp_path)[0]["ppo/value_loss"] > 0


def test_a_rollout_s_updates_end_when_the_policy_has_moved_too_far(train, tmp_path):
    settings = replace(SETTINGS, rollouts=2, epochs=6, target_kl=1e-3, schedule=Schedule(1e-2))
    train(tmp_path, settings)
    assert rollouts(tmp_path)[1]["ppo/updates"] == 2  # the first does not know yet how far it goes


def test_human_pairs_are_learned_beside_the_reward(train, lively, corpus, tmp_path):
    human = human_pairs(lively, corpus.train)
    settings = replace(SETTINGS, rollouts=3, pretraining=1.0, pretraining_pairs=20, schedule=Schedule(1e-2))
    train(tmp_path, settings, human=human)
    nll = [line.get("ppo/pretraining_nll") for line in rollouts(tmp_path)]
    assert nll[0] is None and nll[2] < nll[1] - 0.1
