"""Several rewards as one, guards that make a reward zero, and scores kept on disk."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from rest.errors import UserError
from rest.reward.composition import Cached, Conservative, Minimum, RankMean, Shortlist, WeightedMean
from rest.reward.guards import Guards
from rest.reward.reward import Groups, Reward

SOURCES = ["a b c", "d e", "f g h i"]
HYPOTHESES = ["x y", "x y z", "x"]


@dataclasses.dataclass(frozen=True)
class Gives:
    values: tuple[float, ...]

    def __call__(self, sources, hypotheses, references):
        return np.asarray([self.values[int(source)] for source in sources], np.float32)


FIRST = Reward(Gives((0.0, 5.0, 10.0)), (0.0, 10.0))
SECOND = Reward(Gives((0.4, 0.2, 0.0)))
ROWS = ["0", "1", "2"], ["x", "y", "z"], None


def scores(function):
    return Reward(function)(*ROWS).reward


def test_the_parts_meet_on_their_own_scales():
    np.testing.assert_allclose(scores(WeightedMean((FIRST, SECOND))), [0.2, 0.35, 0.5], rtol=1e-6)
    np.testing.assert_allclose(scores(WeightedMean((FIRST, SECOND), (3.0, 1.0))), [0.1, 0.425, 0.75], rtol=1e-6)
    np.testing.assert_allclose(scores(Minimum((FIRST, SECOND))), [0, 0.2, 0], atol=1e-6)


def test_what_the_parts_disagree_on_counts_less():
    means, spreads = np.array([0.2, 0.35, 0.5]), np.array([0.2, 0.15, 0.5])
    np.testing.assert_allclose(scores(Conservative((FIRST, SECOND), 0.5)), means - spreads / 2, atol=1e-6)
    np.testing.assert_allclose(scores(Conservative((FIRST, SECOND), 2.0)), [0, 0.05, 0], atol=1e-6)
    np.testing.assert_allclose(scores(Conservative((FIRST,), 9.0)), FIRST(*ROWS).reward)


def test_ranks_are_among_a_fixed_set_and_not_among_what_is_scored_beside():
    joined = RankMean.on((FIRST, SECOND), *ROWS, points=3)
    np.testing.assert_allclose(scores(joined), [(1 / 6 + 5 / 6) / 2, 0.5, 0.5], atol=1e-6)
    alone = Reward(joined)(["2"], ["z"], None).reward
    assert alone[0] == scores(joined)[2]
    # a distorted scale has the same ranks
    bent = RankMean.on((Reward(Gives((0.0, 0.01, 1.0))), SECOND), *ROWS, points=3)
    np.testing.assert_allclose(scores(bent), scores(joined))


def test_identity_follows_the_parts_and_the_weights():
    other = Reward(Gives((0.4, 0.2, 0.1)))
    functions = [
        WeightedMean((FIRST, SECOND)),
        WeightedMean((FIRST, other)),
        WeightedMean((FIRST, SECOND), (1.0, 2.0)),
        Minimum((FIRST, SECOND)),
        Conservative((FIRST, SECOND)),
        Conservative((FIRST, SECOND), 2.0),
        RankMean.on((FIRST, SECOND), *ROWS),
    ]
    assert len({Reward(function).identity for function in functions}) == len(functions)
    assert Reward(WeightedMean((FIRST, SECOND))).identity == Reward(functions[0]).identity


class Watched:
    """How many letters a text has, a tenth; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.identity = "letters"

    def __call__(self, sources, hypotheses):
        self.asked += zip(sources, hypotheses, strict=True)
        return np.array([len(text) / 10 for text in hypotheses], np.float32)


def vowels(sources, hypotheses):
    return np.array([text.count("a") / 10 for text in hypotheses], np.float32)


def test_the_dear_one_reads_what_the_cheap_one_likes_best_of_each_source():
    watched = Watched()
    function = Shortlist(Reward(vowels), Reward(watched), best=2, weight=0.25)
    texts = ["aa", "a", "aa", "bbbbbbb", "b", "aaa"]
    groups = Groups(np.array([7, 7, 7, 7, 9, 9]), np.ones(6, bool))
    found = Reward(function)(["x"] * 4 + ["y"] * 2, texts, None, groups).reward
    assert sorted(watched.asked) == [("x", "a"), ("x", "aa"), ("y", "aaa"), ("y", "b")]  # "aa" once, "bbbbbbb" never
    cheap, dear = np.array([2, 1, 2, 0, 0, 3]) / 10, np.array([2, 1, 2, 0, 1, 3]) / 10
    np.testing.assert_allclose(found, 0.75 * cheap + 0.25 * dear, atol=1e-6)
    turned = Groups(groups.ids[::-1], groups.peers)
    again = Reward(function)(["y"] * 2 + ["x"] * 4, texts[::-1], None, turned).reward
    np.testing.assert_array_equal(again, found[::-1])


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 2), st.text("ab", min_size=1, max_size=4)), min_size=1, max_size=20),
    st.integers(1, 4),
)
def test_nothing_comes_above_what_is_on_the_list(rows, best):
    ids = np.array([group for group, _ in rows])
    texts, groups = [text for _, text in rows], Groups(ids, np.ones(len(rows), bool))
    watched = Watched()
    found = Shortlist(Reward(vowels), Reward(watched), best)([str(group) for group in ids], texts, None, groups)
    listed = np.array([(str(group), text) in watched.asked for group, text in rows])
    for group in np.unique(ids):
        mine = ids == group
        assert len({text for text, on in zip(texts, listed & mine, strict=True) if on}) <= best
        assert found[mine & ~listed].max(initial=0.0) <= found[mine & listed].min()


def test_a_human_pair_changes_no_reward_of_samples():
    function = Shortlist(Reward(vowels), Reward(Watched()), best=2)
    samples, human = ["aaa", "aa", "b"], ["aaab", "bbbbb"]
    alone = function(["x"] * 3, samples, None, Groups.of_samples(1, 3))
    peers = np.array([True] * 3 + [False] * 2)
    beside = function(["x"] * 5, samples + human, None, Groups(np.zeros(5, np.int64), peers))
    np.testing.assert_array_equal(beside[:3], alone)
    assert beside[3] > alone[0] and beside[4] == 0  # the second is below the list, and is not read


def test_a_shortlist_is_known_by_its_parts_and_refuses_what_cannot_be():
    known = [Shortlist(FIRST, SECOND), Shortlist(SECOND, FIRST), Shortlist(FIRST, SECOND, 4)]
    known.append(Shortlist(FIRST, SECOND, weight=0.2))
    assert len({Reward(function).identity for function in known}) == len(known)
    with pytest.raises(UserError, match="Shortlist: Shortlist compares the samples"):
        Shortlist(FIRST, Reward(known[0]))
    for wrong in ({"best": 0}, {"weight": 1.0}):
        with pytest.raises(UserError, match=r"best \d+ must be at least 1"):
            Shortlist(FIRST, SECOND, **wrong)


@pytest.mark.parametrize("weights", [(1.0,), (-1.0, 2.0), (0.0, 0.0)])
def test_weights_must_fit(weights):
    with pytest.raises(UserError, match="weights"):
        WeightedMean((FIRST, SECOND), weights)
    with pytest.raises(UserError, match="at least one"):
        Minimum(())
    with pytest.raises(UserError, match=r"RankMean\.on"):
        RankMean((FIRST,))


def test_what_a_guard_flags_has_no_reward_but_keeps_its_score():
    def one(sources, hypotheses, references):
        return np.full(len(hypotheses), 0.7, np.float32)

    sources = ["der Hund schläft heute", "der Hund schläft heute", "der Hund schläft heute"]
    hypotheses = ["the dog sleeps today", "", "der Hund schläft heute"]
    plain, guarded = Reward(one), Reward(one, guards=Guards())
    scored = guarded(sources, hypotheses, None)
    np.testing.assert_allclose(scored.reward, [0.7, 0, 0])
    np.testing.assert_allclose(scored.raw, 0.7)
    assert plain.identity != guarded.identity
    assert "guards" not in plain.settings


def test_guards_within_rewards_learn_too():
    guards = Guards(learn_share=0.01)
    function = WeightedMean((Reward(vowels, guards=guards), Reward(Shortlist(Reward(vowels, guards=guards), FIRST))))
    fitted = Reward(function).fitted(lambda each: each.fit(["ein Haus"] * 9, ["a house"] * 9)).function
    inner = fitted.rewards[0].guards, fitted.rewards[1].function.cheap.guards
    assert all(each.languages is not None for each in inner)
    with pytest.raises(UserError, match=r"learn_share 0\.01: nothing was learned from D for these guards"):
        Reward(function)(["x"], ["a"], None, Groups.of_samples(1, 1))


class Counting:
    """Scores a hypothesis by its length, and remembers what it was asked."""

    def __init__(self, factor: float = 1.0) -> None:
        self.identity, self.factor, self.asked = f"length x {factor}", factor, []

    def __call__(self, sources, hypotheses, references):
        self.asked.append(list(hypotheses))
        return np.asarray([self.factor * len(y) for y in hypotheses], np.float32)


def test_a_cache_asks_for_each_row_once(tmp_path):
    function = Counting()
    cached = Cached(function, tmp_path / "deep" / "scores.sqlite")
    first = cached(["s", "s", "t", "s"], ["ab", "abc", "ab", "ab"], None)
    np.testing.assert_array_equal(first, [2, 3, 2, 2])
    assert function.asked == [["ab", "abc", "ab"]]
    again = Cached(function, cached.path)(["t", "s", "u"], ["ab", "abc", "abcd"], None)
    np.testing.assert_array_equal(again, [2, 3, 4])
    assert function.asked[1:] == [["abcd"]]
    assert cached([], [], None).shape == (0,)


def test_a_cache_tells_functions_sources_and_references_apart(tmp_path):
    path = tmp_path / "scores.sqlite"
    one, two = Counting(), Counting(2.0)
    assert Cached(one, path)(["s"], ["ab"], None)[0] == 2 and Cached(two, path)(["s"], ["ab"], None)[0] == 4
    Cached(one, path)(["s"], ["ab"], ["r"])
    Cached(one, path)(["s"], ["ab"], ["q"])
    assert len(one.asked) == 3
    assert Reward(Cached(one, path)).identity == Reward(one).identity


def test_a_score_that_is_no_number_is_asked_for_again(tmp_path):
    given = iter([np.nan, 0.5])

    def flaky(sources, hypotheses):
        return np.full(len(hypotheses), next(given), np.float32)

    flaky.identity = "flaky"
    cached = Cached(flaky, tmp_path / "scores.sqlite")
    with pytest.raises(UserError, match="is not a finite number"):
        Reward(cached)(["s"], ["ab"], None)
    assert Reward(cached)(["s"], ["ab"], None).reward == 0.5


def test_a_large_request_is_looked_up_in_parts(tmp_path):
    function, texts = Counting(), [f"{'x' * (k % 7)}{k}" for k in range(1300)]
    cached = Cached(function, tmp_path / "scores.sqlite")
    sources = ["s"] * len(texts)
    np.testing.assert_array_equal(cached(sources, texts, None), cached(sources, texts, None))
    assert len(function.asked) == 1


def test_a_file_that_is_no_cache_is_named(tmp_path):
    path = tmp_path / "scores.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match=r"scores\.sqlite"):
        Cached(Counting(), path)(["s"], ["ab"], None)
