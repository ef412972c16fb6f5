"""Agreement with people: scipy, brute force over pairs and resamples, and what must not change a number."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rest.errors import UserError
from rest.ratings.record import RatingRow, from_rows
from rest.reward import agreement as module
from rest.reward.agreement import Resampling, compares_within_sources, evaluate, measure, paired_differences


def rated(scores, groups=None, systems=None, documents=None, language_pair="de-en"):
    """Ratings with these scores; by default every row has a source of its own."""
    n = len(scores)
    groups = range(n) if groups is None else groups
    systems, documents = systems or [""] * n, documents or [""] * n
    return from_rows(
        RatingRow(f"s{g}", f"h{k}", float(scores[k]), g, None, systems[k], documents[k], "", "set", language_pair)
        for k, g in enumerate(groups)
    )


def measured(x, ratings, resamples=20, seed=0):
    return measure(np.asarray(x, float), ratings, Resampling.new(ratings, seed, resamples))


def values(found):
    return {name: m.value for name, m in found.items()}


def acc_eq(x, y, pairs_of_groups):
    """Deutsch et al. 2023 word by word: the accuracy with the best of all thresholds, and minus that threshold."""
    candidates = {0.0} | {abs(x[i] - x[j]) for pairs in pairs_of_groups for i, j in pairs}
    return max((accuracy(x, y, pairs_of_groups, epsilon), -epsilon) for epsilon in candidates)


def accuracy(x, y, pairs_of_groups, epsilon):
    """The mean over groups of the share of pairs that are right when x ties up to epsilon."""
    shares = []
    for pairs in pairs_of_groups:
        seen = [0 if abs(x[i] - x[j]) <= epsilon else np.sign(x[i] - x[j]) for i, j in pairs]
        people = [np.sign(y[i] - y[j]) for i, j in pairs]
        shares.append(np.mean([a == b for a, b in zip(seen, people, strict=True)]))
    return np.mean(shares)


def grouped_pairs(groups):
    rows = [[k for k, g in enumerate(groups) if g == each] for each in sorted(set(groups))]
    return [list(itertools.combinations(own, 2)) for own in rows if len(own) > 1]


small = st.lists(st.tuples(st.integers(-4, 4), st.integers(-3, 3)), min_size=3, max_size=14)


@given(small)
def test_correlations_are_scipys(rows):
    x, y = np.array(rows, float).T
    found = values(measured(x, rated(y)))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert [found[name] for name in ("pearson", "spearman", "kendall_b", "kendall_c")] == [0, 0, 0, 0]
        return
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    assert found["kendall_b"] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-9)
    assert found["kendall_c"] == pytest.approx(stats.kendalltau(x, y, variant="c").statistic, abs=1e-9)


@given(small)
def test_accuracy_over_all_pairs_is_the_brute_force_one(rows):
    x, y = np.array(rows, float).T
    pairs = list(itertools.combinations(range(len(x)), 2))
    assert measured(x, rated(y))["accuracy"].value == pytest.approx(acc_eq(x, y, [pairs])[0])


@given(small, st.data())
def test_accuracy_within_sources_is_the_brute_force_one(rows, data):
    x, y = np.array(rows, float).T
    groups = data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x)))
    pairs = grouped_pairs(groups)
    alone = sum(groups.count(g) == 1 for g in groups)
    assert compares_within_sources(rated(y, groups)) == (2 * alone <= len(x))
    if 2 * alone <= len(x):
        assert measured(x, rated(y, groups))["accuracy"].value == pytest.approx(acc_eq(x, y, pairs)[0])


def test_ties_are_calibrated_by_hand():
    # one source; people see a tie between the last two, which the metric tells apart by 0.1
    found = measured([3.0, 2.0, 1.1, 1.0], rated([0, -1, -5, -5], [0] * 4))
    assert found["accuracy"].value == 1.0
    # a metric that never ties gets the tied pair wrong without calibration: here it costs two right pairs instead
    assert measured([3.0, 2.9, 2.8, 1.0], rated([0, -1, -5, -5], [0] * 4))["accuracy"].value == pytest.approx(5 / 6)
    # one that always ties is right where people tie
    assert measured([7.0] * 4, rated([0, -1, -5, -5], [0] * 4))["accuracy"].value == pytest.approx(1 / 6)


def test_perfect_and_reversed_agreement():
    y = np.arange(12.0)
    ratings = rated(y, [k // 3 for k in range(12)], systems=list("abc") * 4)
    right, wrong = values(measured(2 * y + 1, ratings)), values(measured(-y, ratings))
    assert right == pytest.approx(dict.fromkeys(right, 1.0))
    correlations = dict.fromkeys(("pearson", "spearman", "kendall_b", "kendall_c"), -1.0)
    assert wrong == pytest.approx({**correlations, "accuracy": 0.0, "system_accuracy": 0.0})


@given(small, st.integers(1, 9), st.integers(-5, 5), st.randoms())
def test_neither_the_rewards_scale_nor_the_order_of_the_rows_matters(rows, scale, shift, random):
    x, y = np.array(rows, float).T
    groups, systems = [k // 3 for k in range(len(x))], [f"system {k % 3}" for k in range(len(x))]
    found = values(measured(x, rated(y, groups, systems)))
    assert values(measured(x * scale + shift, rated(y, groups, systems))) == pytest.approx(found)
    order = list(range(len(x)))
    random.shuffle(order)
    shuffled = rated(y, groups, systems).take(order)
    assert values(measured(x[order], shuffled)) == pytest.approx(found)


def test_resampled_values_are_those_of_the_rows_drawn():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, 30).astype(float)
    x = y + rng.integers(0, 3, 30)
    documents = [f"d{k // 3}" for k in range(30)]
    ratings = rated(y, documents=documents)
    resampling = Resampling.new(ratings, 5, 10)
    assert (resampling.unit, resampling.units) == ("documents", 10)
    found = measure(x, ratings, resampling)
    # every document of a resample written out as often as it was drawn
    for r, counts in enumerate(resampling.counts.astype(int)):
        rows = np.concatenate([np.flatnonzero(resampling.clusters == c).repeat(n) for c, n in enumerate(counts) if n])
        assert found["pearson"].resampled[r] == pytest.approx(stats.pearsonr(x[rows], y[rows]).statistic)
        assert found["spearman"].resampled[r] == pytest.approx(stats.spearmanr(x[rows], y[rows]).statistic)
        pairs = [(i, j) for i in rows for j in rows if i != j]  # not with its own copy
        i, j = np.array(pairs).T
        signs = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        tau_b = np.sum(signs[0] * signs[1]) / np.sqrt(np.sum(signs[0] != 0) * np.sum(signs[1] != 0))
        assert found["kendall_b"].resampled[r] == pytest.approx(tau_b)


def test_resampled_accuracy_within_sources_keeps_the_threshold():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 3, 24).astype(float)
    x, groups = y + rng.normal(size=24), [k // 4 for k in range(24)]
    ratings = rated(y, groups)
    resampling = Resampling.new(ratings, 0, 8)
    found = measure(x, ratings, resampling)["accuracy"]
    pairs = grouped_pairs(groups)
    threshold = -acc_eq(x, y, pairs)[1]
    for r, counts in enumerate(resampling.counts.astype(int)):
        drawn = [pairs[g] for g in range(6) for _ in range(counts[resampling.clusters[4 * g]])]
        assert found.resampled[r] == pytest.approx(accuracy(x, y, drawn, threshold))


def test_systems_are_compared_on_the_sources_that_both_translated():
    # B only translated the hard second source, where it is better than A
    ratings = rated([0.0, -9.0, -5.0], [0, 1, 1], systems=["A", "A", "B"])
    assert measured([0.0, -9.0, -5.0], ratings)["system_accuracy"].value == 1.0
    assert measured([0.0, -9.0, -10.0], ratings)["system_accuracy"].value == 0.0
    assert "system_accuracy" not in measured([1.0, 2.0], rated([1, 2], systems=["A", "B"]))
    assert "system_accuracy" not in measured([1.0, 2.0], rated([1, 2], [0, 0]))


def test_intervals_cover_the_true_correlation_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    inside = 0
    for seed in range(60):
        topic = np.repeat(rng.normal(size=(40, 2)), 5, axis=0)  # rows of a document are alike
        x, y = (topic + rng.normal(size=(200, 2))).T
        y = 0.6 * x + 0.8 * y
        ratings = rated(y, documents=[f"d{k // 5}" for k in range(200)])
        low, high = module.resampled_pearson(x, y, Resampling.new(ratings, seed, 300)).ci95
        inside += low <= 0.6 <= high
    assert 0.85 <= inside / 60 <= 1


def test_a_paired_comparison_sees_a_small_difference():
    rng = np.random.default_rng(4)
    y = rng.normal(size=400)
    noise = rng.normal(size=400)
    ratings = rated(y)
    resampling = Resampling.new(ratings, 0, 300)
    a, b = measure(y + noise, ratings, resampling), measure(y + 1.1 * noise, ratings, resampling)
    assert a["pearson"].ci95[0] < b["pearson"].ci95[1]
    difference = paired_differences(a, b)["pearson"]
    assert 0 < difference.lo < difference.difference < difference.hi
    assert difference.p < 0.05
    assert paired_differences(a, a)["spearman"] == (0, 0, 0, 1)


def test_few_documents_leave_sources_and_many_sources_are_joined(monkeypatch):
    ratings = rated(np.arange(30.0), documents=[f"d{k % 9}" for k in range(30)])
    assert Resampling.new(ratings, 0, 5).unit == "sources"
    monkeypatch.setattr(module, "MAX_CLUSTERS", 7)
    resampling = Resampling.new(ratings, 0, 5)
    assert (resampling.units, resampling.counts.shape) == (30, (5, 7))
    assert resampling.counts.sum(1).tolist() == [7] * 5


def test_pairs_are_added_up_in_blocks(monkeypatch):
    rng = np.random.default_rng(6)
    x, y = rng.integers(0, 5, (2, 40)).astype(float)
    ratings = rated(y, documents=[f"d{k % 11}" for k in range(40)])
    whole = values(measured(x, ratings))
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 130)
    assert values(measured(x, ratings)) == whole
    monkeypatch.setattr(module, "CALIBRATION_PAIRS", 300)
    assert measured(x, ratings)["accuracy"].value == pytest.approx(whole["accuracy"], abs=0.1)


def test_evaluate_compares_the_first_reward_with_the_others():
    def good(sources, hypotheses, references):
        return np.array([float(h[1:]) for h in hypotheses])

    def bad(sources, hypotheses, references):
        return np.zeros(len(hypotheses))

    ratings = rated(np.arange(20.0), documents=[f"d{k % 10}" for k in range(20)])
    found = evaluate({"good": good, "bad": bad}, ratings, seed=0, resamples=50)
    assert found.counts == {"rows": 20, "sources": 20, "documents": 10, "systems": 0}
    assert found.differences["bad"]["pearson"].difference == pytest.approx(1)
    record = found.record()
    assert record["rewards"]["good"]["pearson"] == {"value": pytest.approx(1), "ci95": [pytest.approx(1)] * 2}
    assert (record["resampled"], record["resamples"]) == ("documents", 50)
    again = evaluate({"good": good, "bad": bad}, ratings, seed=0, resamples=50)
    assert again.record() == record
    two = from_rows([RatingRow("s", "h", 0.0, 0, None, "", "", "", "set", pair) for pair in ("de-en", "fi-en")])
    with pytest.raises(UserError, match="2 sets or language pairs"):
        evaluate({"good": good}, two, seed=0)


@pytest.mark.parametrize("scores", [[1.0], [1.0, np.nan]])
def test_scores_that_cannot_be_compared_are_refused(scores):
    with pytest.raises(UserError, match="2 ratings need as many finite scores"):
        measured(scores, rated([1, 2]))
