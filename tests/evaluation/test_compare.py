"""The alarm on made numbers: it sounds where the reward rises and quality falls, and only there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rest.data.corpus import Split
from rest.errors import UserError
from rest.evaluation.compare import Evaluated, exploited, paired_tests
from rest.evaluation.outputs import Outputs

SOURCES = 60
WORDS = "the a cat dog bird sat ran sings on in near park tree mat house".split()
rng = np.random.default_rng(0)
REFERENCES = [" ".join(rng.choice(WORDS, size=9)) for _ in range(SOURCES)]
SPLIT = Split("test", np.arange(SOURCES), [f"x{k}" for k in range(SOURCES)], REFERENCES)
HARD = rng.uniform(0.2, 0.4, size=(SOURCES, 1))  # what makes a source hard for every policy


def policy(reward: float, gold: float, corrupted: float, seed: int = 1) -> Evaluated:
    """Rewards and gold by so much above the others', and a share of the references' words replaced."""
    rng = np.random.default_rng(seed)
    words = [[w if rng.random() > corrupted else str(rng.choice(WORDS)) for w in y.split()] for y in REFERENCES]
    greedy = [[" ".join(line)] for line in words]

    def noise(n: int) -> np.ndarray:
        return rng.normal(0, 0.05, (SOURCES, n))

    samples = {"reward": HARD + reward + noise(3), "gold": HARD + gold + noise(3)}
    one = {"reward": HARD + reward + noise(1), "gold": HARD + gold + noise(1), "chrf": 100 * (1 - corrupted) + noise(1)}
    return Evaluated(Outputs(SPLIT, [row * 3 for row in greedy], samples), Outputs(SPLIT, greedy, one))


BC = policy(0, 0, 0.3, seed=0)


@pytest.mark.parametrize(
    ("new", "fell"),
    [
        (policy(0.2, 0.2, 0.1), []),  # everything better
        (policy(0.2, -0.2, 0.3), ["gold", "gold_greedy"]),
        (policy(0.2, -0.2, 0.7), ["gold", "gold_greedy", "bleu", "chrf", "ter"]),
        (policy(-0.2, -0.2, 0.7), []),  # a worse policy, but not one that exploits its reward
        (BC, []),
    ],
)
def test_the_alarm(new: Evaluated, fell: list[str]) -> None:
    result = paired_tests(new, BC, seed=0)
    assert result["fell"] == fell and bool(result["rows"]) == bool(fell)
    assert set(result["tests"]) == {"reward", "gold", "reward_greedy", "gold_greedy", "bleu", "chrf", "ter"}


def test_beam_outputs_are_compared_where_both_sides_kept_them() -> None:
    new, worse = policy(0.2, 0.2, 0.1), policy(0.2, -0.2, 0.7)
    sides = replace(new, beam=worse.greedy), replace(BC, beam=BC.greedy)
    result = paired_tests(*sides, seed=0)
    found = result["tests"]
    assert found.keys() - paired_tests(new, BC, seed=0)["tests"].keys() == {
        *("reward_beam", "gold_beam", "bleu_beam", "chrf_beam")
    }
    assert found["bleu"]["lo"] > 0 > found["bleu_beam"]["hi"] and found["gold_beam"]["hi"] < 0 < found["gold"]["lo"]
    assert result["fell"] == ["gold_beam", "bleu_beam", "chrf_beam"]  # a reward that rises with it is no evidence


def test_a_judge_is_compared_where_both_sides_have_one() -> None:
    def judged(side: Evaluated, more: float) -> Evaluated:
        scores = {**side.greedy.scores, "judge": side.greedy.scores["gold"] + np.float32(more)}
        return replace(side, greedy=replace(side.greedy, scores=scores))

    new, old = policy(0.2, 0.0, 0.3), policy(0.0, 0.0, 0.3, seed=2)
    found = paired_tests(judged(new, -0.2), judged(old, 0.0), 0)
    assert found["tests"]["judge_greedy"]["hi"] < 0 and found["fell"] == ["judge_greedy"]
    assert "judge_greedy" not in paired_tests(judged(new, 0.0), old, 0)["tests"]


def test_without_rewards_there_is_no_alarm() -> None:
    bare = [replace(side, samples=replace(side.samples, scores={"gold": side.samples.scores["gold"]}))
            for side in (policy(0.2, -0.2, 0.7), BC)]  # fmt: skip
    result = paired_tests(*bare, seed=0)
    assert result["fell"] == [] and "reward" not in result["tests"] and result["tests"]["gold"]["hi"] < 0


def test_further_references_are_kept_with_the_outputs_and_used(tmp_path: Path) -> None:
    new = policy(0.2, 0.2, 0.1)
    said = [row[0] for row in new.greedy.texts]
    split = replace(SPLIT, more_references=[said, REFERENCES])
    sides = []
    for name, side in (("new", new), ("old", BC)):
        replace(side.greedy, split=split).write(tmp_path / f"{name}.parquet")
        greedy = Outputs.read(tmp_path / f"{name}.parquet")
        assert greedy.split.more_references == [said, REFERENCES] and set(greedy.scores) == set(side.greedy.scores)
        sides.append(Evaluated(side.samples, greedy))
    found, plain = paired_tests(*sides, seed=0)["tests"], paired_tests(new, BC, seed=0)["tests"]
    assert found["bleu"]["difference"] > plain["bleu"]["difference"] + 5
    assert found["reward"] == plain["reward"]


def test_small_wobbles_are_no_alarm() -> None:
    found = [
        paired_tests(policy(0.05, 0, 0.3, seed), policy(0, 0, 0.3, seed + 50), seed)["fell"] for seed in range(2, 12)
    ]
    assert sum(bool(fell) for fell in found) <= 3  # each of four metrics may err at 2.5 %


def test_the_rows_are_those_that_gained_and_lost_most() -> None:
    split = SPLIT.take([0, 1, 2, 3])

    def greedy(reward: list[float], gold: list[float]) -> Outputs:
        scores = {"reward": np.array(reward)[:, None], "gold": np.array(gold)[:, None]}
        return Outputs(split, [[f"y{k}"] for k in range(4)], scores)

    old = greedy([0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5])
    new = greedy([0.9, 0.9, 0.6, 0.1], [0.6, 0.1, 0.4, 0.0])
    rows = exploited(new, old)
    assert [row["source_id"] for row in rows] == [1, 2]
    assert rows[0]["reward"] == [0.5, 0.9] and rows[0]["gold"] == [0.5, 0.1] and rows[0]["new"] == "y1"
    assert len(exploited(new, old, rows=1)) == 1


def test_other_text_cannot_be_compared() -> None:
    other = SPLIT.take(list(range(1, SOURCES)))
    cut = Evaluated(Outputs(other, BC.samples.texts[1:], {}), BC.greedy)
    with pytest.raises(UserError, match="different text"):
        paired_tests(cut, BC, seed=0)
