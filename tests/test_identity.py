"""What settings are known by: what they were made from, and not what they remember."""

import functools
import json
import re
import threading
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from rest.errors import UserError
from rest.identity import describe, remember
from rest.reward.reward import Reward


class Remembers:
    """A reward that keeps what it has scored."""

    def __init__(self, longest: int = 100) -> None:
        self._longest, self.known, self.lock = longest, {}, threading.Lock()

    def __call__(self, sources, hypotheses):
        for y in hypotheses:
            self.known.setdefault(y, min(1.0, len(y) / self._longest))
        return np.array([self.known[y] for y in hypotheses])

    def score(self, sources, hypotheses):
        return self(sources, hypotheses)


@dataclass
class Counts:
    """The same as a dataclass."""

    known: dict = field(default_factory=dict)

    def __call__(self, sources, hypotheses):
        self.known |= dict.fromkeys(hypotheses, 0.5)
        return np.array([self.known[y] for y in hypotheses])


class Words:
    """A reward whose constructor's arguments are not kept under their names."""

    def __init__(self, words):
        self.wanted = {*words}

    def __call__(self, sources, hypotheses):
        return np.array([len(self.wanted & {*y.split()}) / len(self.wanted) for y in hypotheses])


def closure(kept):
    def reward(sources, hypotheses):
        return np.full(len(hypotheses), 0.5 if kept else 0.0)

    return reward


def memory():
    known = {}

    def reward(sources, hypotheses):
        known.update(dict.fromkeys(hypotheses, 0.5))
        return np.array([known[y] for y in hypotheses])

    return reward


@pytest.mark.parametrize("make", [Remembers, Counts, memory, lambda: Remembers().score])
def test_a_reward_that_remembers_stays_the_same(make):
    reward = Reward(make())
    remember(reward.function)  # as an experiment does
    before = reward.identity, json.dumps(describe(reward))
    reward(["a"], ["b"], None)
    assert (reward.identity, json.dumps(describe(reward))) == before
    assert replace(reward, scale=(0.0, 1.0)).settings["function"] == reward.settings["function"]
    assert Reward(make()).identity == before[0]


def test_what_a_reward_was_made_with_tells_it_from_others():
    made = (Remembers(100), Remembers(50), Remembers(50).score, Words(["a"]), Words(["b"]), closure({1}), closure({2}))
    assert len({json.dumps(describe(each)) for each in made}) == len(made)
    assert describe(Remembers(50))["_longest"] == 50 and "known" not in describe(Remembers(50))


def test_what_json_does_not_know_is_told_by_its_content():
    described = describe(
        [{3, 1}, b"x", re.compile("a+"), np.arange(3), np.float32(2), threading.Lock(), {1: (2, None)}]
    )
    assert described[0] == [1, 3] and described[2] == {"pattern": "a+", "flags": 32}
    assert described[6] == {"1": [2, None]}
    assert json.loads(json.dumps(described)) == described
    assert describe(np.arange(3)) != describe(np.arange(4)) and describe(np.zeros(2)) != describe(np.zeros((2, 1)))
    long = "|".join(f"word{k}" for k in range(90))
    assert describe(re.compile(long)) != describe(re.compile(long + "0")) != describe(re.compile(long, re.I))
    texts = [np.array(["".join(letters), "b"], object) for letters in (["x", "y"], ["x", "y"], ["x", "z"])]
    assert describe(texts[0]) == describe(texts[1]) != describe(texts[2])
    kept = [functools.lru_cache(closure({k})) for k in (1, 1, 2)]
    assert describe(kept[0]) == describe(kept[1]) != describe(kept[2])


def test_what_cannot_be_told_from_another_is_asked_for_an_identity():
    reward = Reward(closure(iter([1])))
    with pytest.raises(UserError, match=r"reward: keeps 'kept', a list_iterator, by which .* give it an `identity`"):
        _ = reward.identity
    reward.function.identity = "the first"
    assert Reward(reward.function).settings["function"] == "the first"
    assert describe(reward.function) == {"function": f"{__name__}:closure.<locals>.reward", "identity": "the first"}


def test_what_is_remembered_once_is_kept():
    some = Remembers(7)
    remember(some)
    some._longest = 8
    assert describe(some)["_longest"] == 7


def test_functions_that_differ_in_a_default_alone_are_told_apart():
    def weighing(w):
        def f(sources, hypotheses, w=w, *, k=2 * w):
            return np.full(len(hypotheses), w)

        return f

    assert describe(weighing(0.1)) != describe(weighing(0.9))
    assert describe(weighing(0.1)) == describe(weighing(0.1))
    assert describe(weighing(0.1))["w"] == 0.1 and describe(weighing(0.1))["k"] == 0.2
