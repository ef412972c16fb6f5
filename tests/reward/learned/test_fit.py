"""Training a reward: it learns what ratings say, stops on sources it has not seen, and never sees gold."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from rest.errors import UserError
from rest.learning.mesh import MachineSettings
from rest.learning.optimizers import Schedule
from rest.learning.train import TrainSettings
from rest.policy.sampler import SamplingSettings
from rest.ratings.files import DirectAssessments
from rest.ratings.rated import Rated
from rest.ratings.record import SplitSettings
from rest.reward.attacks import ENOUGH
from rest.reward.learned import fit as module
from rest.reward.learned.calibration import Quantile
from rest.reward.learned.choice import WithinAndAcross
from rest.reward.learned.fit import fit, human_ratings, rate, rate_again
from rest.reward.learned.network import RatingLoss
from rest.reward.learned.settings import Refresh, RewardSettings
from rest.reward.raters import MetricRater

SAMPLING = SamplingSettings(temperature=0.8, max_target_tokens=12)
MACHINE = MachineSettings(rows=24)
SHORT = [4, 9, 30]  # training sources that share one width, so that samplers are compiled once


@dataclass(frozen=True)
class LengthRater:
    """Rates a hypothesis by its words; remembers nothing, looks at nothing else."""

    def rate(self, sources, hypotheses, references, gold, seed):
        return np.array([min(1.0, len(y.split()) / 14) for y in hypotheses], np.float32)


@dataclass(frozen=True)
class Half:
    """Rates everything alike."""

    def rate(self, sources, hypotheses, references, gold, seed):
        return np.full(len(hypotheses), 0.5, np.float32)


@pytest.fixture(scope="module")
def settings():
    training = TrainSettings(max_steps=40, evaluate_every=20, patience=2, schedule=Schedule(4e-3, 20))
    return RewardSettings(LengthRater(), samples_per_source=2, dev_share=0.2, train=training)


def by_length(split):
    """Two hypotheses of each source: a reference and half of it, rated by their length."""
    halves = [" ".join(y.split()[: len(y.split()) // 2]) for y in split.references]
    hypotheses = split.references + halves
    ratings = LengthRater().rate(split.sources * 2, hypotheses, None, None, 0)
    return Rated(split.sources * 2, hypotheses, ratings, np.concatenate([split.ids, split.ids]))


@pytest.fixture(scope="module")
def rated(corpus):
    """120 sources."""
    return by_length(corpus.train.take(slice(0, 120)))


def gold(sources, hypotheses):
    return np.array([len(set(y.split())) / 20 for y in hypotheses], np.float32)


@pytest.fixture(scope="module")
def fitted(policy, rated, settings, batch, tmp_path_factory):
    return fit(policy, rated, settings, batch, folder=tmp_path_factory.mktemp("fit"), seed=0, gold=gold)


def test_a_fitted_reward_agrees_with_ratings_of_sources_it_has_not_seen(corpus, policy, settings, batch, tmp_path):
    """With more rows than the other tests have, of which a fifth is held out."""
    many = by_length(corpus.train.take(slice(0, 240)))
    report = fit(policy, many, settings, batch, folder=tmp_path, seed=0, gold=gold).report
    assert report["pearson_ratings"] > 0.9 and report["spearman_ratings"] > 0.85
    assert report["ranked_right"] > 0.95 and report["chosen_by"] == "WithinAndAcross"
    assert report["rated"] == len(many.ratings)
    assert report["held_out"] == 2 * round(0.2 * 240)  # whole sources are held out
    assert min(report[name] for name in ("pearson_gold", "spearman_gold", "rater_pearson_gold")) > 0.8
    assert 0 <= report["best_step"] <= report["steps"] <= 40


def test_the_scale_spans_the_held_out_scores_with_a_margin(fitted, rated):
    low, high = fitted.calibration.ends
    assert [low, high] == fitted.report["range"]
    scores = fitted.reward(rated.sources, rated.hypotheses, None)
    inside = (scores >= low) & (scores <= high)
    assert low < high and inside.mean() > 0.9


def test_gold_is_only_reported_and_changes_nothing(policy, rated, settings, batch, tmp_path):
    few = replace(settings, train=replace(settings.train, max_steps=3))
    blind, seeing = (fit(policy, rated, few, batch, folder=tmp_path / str(g), seed=0, gold=g) for g in (None, gold))
    assert blind.reward.identity == seeing.reward.identity and blind.calibration == seeing.calibration
    with_gold = {"pearson_gold", "spearman_gold", "rater_pearson_gold"}
    assert blind.report == {k: v for k, v in seeing.report.items() if k not in with_gold}
    assert with_gold <= set(seeing.report)
    other = fit(policy, rated, few, batch, folder=tmp_path / "other", seed=1)
    assert other.reward.identity != blind.reward.identity


def test_ranking_alone_learns_the_order_of_a_source_s_hypotheses(policy, rated, settings, batch, tmp_path, monkeypatch):
    # nothing but the ranking teaches the head, which starts at random, the wrong way round
    monkeypatch.setattr(module, "probe", turned)
    ranking = replace(settings, loss=RatingLoss(0.0, 1.0))
    none = replace(ranking, train=replace(ranking.train, max_steps=0))
    before, after = (
        fit(policy, rated, s, batch, folder=tmp_path / n, seed=0).report for n, s in (("0", none), ("1", ranking))
    )
    assert before["ranked_right"] < 0.5 and after["ranked_right"] > 0.9


def turned(reward, examples, held_out, penalties, agreement):
    """A random head under which a longer hypothesis scores lower."""
    lengths = np.asarray([len(ids) for ids in examples.targets])
    slope = np.cov(reward.predict(examples)[:, 0], lengths)[0, 1]
    head = {name: -np.sign(slope) * value for name, value in reward.network.parameters["head"].items()}
    return reward.with_network(reward.network.with_part("head", head)), penalties[0]


def test_held_out_sources_are_not_trained_on(policy, rated, settings, batch, tmp_path, monkeypatch):
    """What reaches the update loop and the head's first fit is compared with what the evaluation scores."""
    trained_on, probed, scored = [], [], []

    def watched(examples, *rest, **keywords):
        trained_on.extend(tuple(x) for x in examples.sources)
        return batches(examples, *rest, **keywords)

    def probe(reward, examples, *rest):
        probed.extend(tuple(x) for x in examples.sources)
        return real_probe(reward, examples, *rest)

    def predict(self, examples):
        scored.extend(tuple(x) for x in examples.sources)
        return real(self, examples)

    batches, real, real_probe = module.shuffled, module.LearnedReward.predict, module.probe
    monkeypatch.setattr(module, "shuffled", watched)
    monkeypatch.setattr(module.LearnedReward, "predict", predict)
    monkeypatch.setattr(module, "probe", probe)
    none = replace(settings, train=replace(settings.train, max_steps=0))
    report = fit(policy, rated, none, batch, folder=tmp_path, seed=0).report
    assert trained_on and scored and not set(trained_on) & set(scored)
    assert trained_on == probed
    assert len(trained_on) + report["held_out"] == report["rated"]
    assert report["best_step"] == report["steps"] == 0


def test_ratings_that_are_all_equal_teach_nothing_and_are_refused(policy, rated, settings, batch, tmp_path):
    # 0.3 has no exact mean in float32
    equal = replace(rated, ratings=np.full(len(rated.ratings), 0.3, np.float32))
    with pytest.raises(UserError, match=r"all 240 ratings are 0.3"):
        fit(policy, equal, settings, batch, folder=tmp_path, seed=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_rating_that_is_no_number_is_refused(policy, rated, settings, batch, tmp_path, bad):
    ratings = rated.ratings.copy()
    ratings[7] = bad
    with pytest.raises(UserError, match=r"rating of hypothesis 7 .* is (nan|inf)"):
        fit(policy, replace(rated, ratings=ratings), settings, batch, folder=tmp_path, seed=0)


def test_a_fitted_reward_is_attacked_with_the_best_rated_held_out_translations(fitted, settings):
    attacks = {found["attack"]: found for found in fitted.report["attacks"]}
    assert {found["cases"] for found in attacks.values()} == {24}  # one of each source held out
    assert attacks["said twice"]["higher"] > 0.9 > settings.attack_warning  # rated by their length
    assert attacks["cut in half"]["higher"] < 0.1
    twice, half = (
        [line for line in fitted.report["attack_warnings"] if line.startswith(name)]
        for name in ("said twice: scores above the honest translation in", "cut in half")
    )
    assert len(twice) == 1 and "of 24 cases" in twice[0] and not half


def test_references_are_attacked_where_they_are_known_and_few_cases_warn_of_nothing(
    policy, rated, settings, batch, tmp_path, monkeypatch
):
    attacked = []

    def spy(reward, sources, honest, *rest, **keywords):
        attacked.append(dict(zip(sources, honest, strict=True)))
        return attack(reward, sources, honest, *rest, **keywords)

    attack = module.attack
    monkeypatch.setattr(module, "attack", spy)
    none = replace(settings, train=replace(settings.train, max_steps=0))
    references = [y.upper() for y in rated.hypotheses[:120]] * 2  # which no row says
    known = replace(rated, references=references)
    many = fit(policy, known, none, batch, folder=tmp_path / "many", seed=0).report
    few = fit(policy, known, replace(none, attacked=ENOUGH - 1), batch, folder=tmp_path / "few", seed=0).report
    assert [len(texts) for texts in attacked] == [24, ENOUGH - 1]
    assert attacked[0].items() <= dict(zip(rated.sources, references, strict=True)).items()
    assert many["attack_warnings"] and few["attack_warnings"] == [] and len(few["attacks"]) > 5


@dataclass(frozen=True)
class Scripted:
    """A choice that remembers what it was asked, and likes what comes later."""

    seen: list

    def __call__(self, scores, ratings, groups):
        self.seen.append((scores, ratings, groups))
        return float(len(self.seen))


def test_what_chooses_the_checkpoint_is_a_setting(policy, rated, settings, batch, tmp_path, capsys):
    def chosen(name, rated, choose, **changes):
        training = replace(settings.train, max_steps=2, evaluate_every=1)
        asked = replace(settings, choose=choose, attacked=0, train=training, **changes)
        return fit(policy, rated, asked, batch, folder=tmp_path / name, seed=0).report

    assert settings.choose == WithinAndAcross()
    scripted = Scripted([])
    assert chosen("scripted", rated, scripted)["best_step"] == 2  # it went on rising
    looks = len(settings.ridge) + 3  # at each penalty of the first fit, then at each checkpoint
    assert len(scripted.seen) == looks and all(len(column) == 48 for seen in scripted.seen for column in seen)
    assert "Pearson's correlation chooses" not in capsys.readouterr().err
    alone = replace(rated, groups=np.arange(240))  # nothing shares a source
    assert chosen("alone", alone, WithinAndAcross())["chosen_by"] == "AcrossSources"
    assert "no held-out source has two rows of different ratings" in capsys.readouterr().err


def test_quantiles_are_those_of_the_samples(policy, rated, settings, batch, tmp_path):
    none = replace(settings, train=replace(settings.train, max_steps=0), attacked=0, calibration=Quantile(50))
    human = np.arange(240) < 120
    found = fit(policy, replace(rated, human=human), none, batch, folder=tmp_path, seed=0)
    samples = found.reward(rated.sources[120:], rated.hypotheses[120:], None)
    low, high = found.calibration.ends
    assert np.isclose(samples, low, atol=1e-5).any() and np.isclose(samples, high, atol=1e-5).any()
    assert found.calibration.rewards[-1] == 1 and found.report["range"] == [low, high]


def test_negatives_lower_what_spoilt_translations_score(policy, rated, settings, batch, tmp_path, fitted):
    some = replace(settings, negatives=0.4, attacked=20)
    found = fit(policy, rated, some, batch, folder=tmp_path, seed=0).report
    assert found["negatives"] == round(0.4 / 0.6 * (found["rated"] - found["held_out"]))
    assert found["rated"] == fitted.report["rated"] and found["held_out"] == fitted.report["held_out"]
    before, after = (np.mean([a["higher"] for a in report["attacks"]]) for report in (fitted.report, found))
    assert after < before, [[(a["attack"], a["higher"]) for a in r["attacks"]] for r in (fitted.report, found)]


def test_rewards_are_compared_on_the_ratings_that_came_last(policy, rated, settings, batch, tmp_path, fitted):
    few = replace(settings, train=replace(settings.train, max_steps=0), attacked=0)
    odd = dict(zip(rated.hypotheses, 1 - rated.ratings, strict=True))  # the other way round
    later = Rated(rated.sources, rated.hypotheses, 1 - rated.ratings, rated.groups, None, np.full(240, 2))

    def right(sources, hypotheses, references):
        return np.array([odd[y] for y in hypotheses], np.float32)

    known = {"first": fitted.reward, "right": right}
    report = fit(policy, rated + later, few, batch, folder=tmp_path, seed=0, gold=gold, before=known).report
    fresh = report["fresh"]
    assert fresh["held_out"] == 48 and report["rated"] == 480 and "attacks" not in report
    assert fresh["right"]["spearman_ratings"] == pytest.approx(1) and fresh["first"]["spearman_ratings"] < -0.8
    assert fresh["first"]["spearman_gold"] > 0.7
    assert fresh["first"]["spearman_ratings"] < fresh["newest"]["spearman_ratings"] < 1


def test_what_is_rated_again_is_the_latest_policy_s(lively, corpus, settings):
    split = corpus.train.take(SHORT)
    asked = Refresh(samples_per_source=3)
    found = rate_again(lively, split, None, settings, asked, SAMPLING, g=2, seed=0, machine=MACHINE)
    assert found.groups.tolist() == [4] * 3 + [9] * 3 + [30] * 3 and found.steps.tolist() == [2] * 9
    expected = LengthRater().rate(found.sources, found.hypotheses, None, None, 0)
    np.testing.assert_array_equal(found.ratings, expected)
    assert (
        rate_again(lively, split, None, settings, asked, SAMPLING, g=3, seed=0, machine=MACHINE).hypotheses
        != found.hypotheses
    )
    some = rate_again(
        lively, split, None, settings, replace(asked, sources=2, rater=Half()), SAMPLING, g=2, seed=0, machine=MACHINE
    )
    assert len(set(some.groups.tolist())) == 2 and set(some.ratings.tolist()) == {0.5}


@pytest.mark.parametrize(
    "wrong",
    [
        {"negatives": 1.0},
        {"attacked": -1},
        {"attack_warning": 1.5},
        {"temperatures": ()},
        {"temperatures": (0.0,)},
        {"temperatures": (0.8, 0.8)},
        {"samples_per_source": 1},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(UserError, match=rf"reward[.:].*{next(iter(wrong))}"):
        RewardSettings(LengthRater(), **wrong)


@pytest.mark.parametrize("wrong", [{"sources": -1}, {"samples_per_source": 0}, {"temperature": 0.0}])
def test_a_refresh_out_of_range_is_named(wrong):
    with pytest.raises(UserError, match=rf"refresh\.{next(iter(wrong))} must be .*, not {next(iter(wrong.values()))}"):
        Refresh(**wrong)


def test_too_few_sources_to_hold_some_out_are_refused(policy, rated, settings, batch, tmp_path):
    few = Rated(rated.sources[:2], rated.hypotheses[:2], rated.ratings[:2], rated.groups[:2])
    with pytest.raises(UserError, match=r"2 rated sources are too few"):
        fit(policy, few, settings, batch, folder=tmp_path, seed=0)


def test_every_sample_and_human_pair_gets_one_rating(lively, corpus, settings):
    split = corpus.train.take(SHORT)
    found = rate(lively, split, None, settings, SAMPLING, 0, MACHINE)
    assert found.groups.tolist() == [4, 4, 9, 9, 30, 30, 4, 9, 30]
    by_id = dict(zip(split.ids.tolist(), split.sources, strict=True))
    assert found.sources == [by_id[group] for group in found.groups.tolist()]
    assert found.hypotheses[6:] == split.references
    assert found.is_reference.tolist() == [False] * 6 + [True] * 3
    assert found.references == [y for y in split.references for _ in range(2)] + split.references
    expected = LengthRater().rate(found.sources, found.hypotheses, None, None, 0)
    np.testing.assert_array_equal(found.ratings, expected)
    assert rate(lively, split, None, settings, SAMPLING, 0, MACHINE).hypotheses == found.hypotheses
    assert rate(lively, split, None, settings, SAMPLING, 1, MACHINE).hypotheses != found.hypotheses
    assert split.sources == corpus.train.take(SHORT).sources  # the split is left as it was


def test_rating_human_pairs_can_be_turned_off(lively, corpus, settings):
    split = corpus.train.take(SHORT)
    found = rate(lively, split, None, replace(settings, rate_references=False), SAMPLING, 0, MACHINE)
    assert found.groups.tolist() == [4, 4, 9, 9, 30, 30]
    no_references = replace(split, references=None)
    assert rate(lively, no_references, None, settings, SAMPLING, 0, MACHINE).hypotheses == found.hypotheses


def test_a_rater_that_compares_with_references_gets_the_one_of_each_row(lively, corpus, settings):
    split = corpus.train.take(SHORT)
    found = rate(lively, split, None, replace(settings, rater=MetricRater()), SAMPLING, 0, MACHINE)
    np.testing.assert_array_equal(found.ratings[6:], 1)  # the human pairs against themselves
    assert (found.ratings[:6] < 1).all()


def test_samples_are_dealt_evenly_to_the_temperatures_of_the_reward(lively, corpus, settings):
    split = corpus.train.take(SHORT)

    def drawn(*temperatures, n=2, text=split, sampling=SAMPLING):
        asked = replace(settings, temperatures=temperatures, samples_per_source=n, rate_references=False)
        found = rate(lively, text, None, asked, sampling, 0, MACHINE)
        assert Counter(found.groups.tolist()) == dict.fromkeys(text.ids.tolist(), n)
        return {g: [y for y, of in zip(found.hypotheses, found.groups, strict=True) if of == g] for g in text.ids}

    cold, warm, both = drawn(0.1, n=2), drawn(1.0, n=2), drawn(0.1, 1.0, n=3)
    assert cold != warm
    # the first temperature gets one more; each sample is that of its temperature alone, whatever is drawn beside it
    assert both == {g: [*cold[g], warm[g][0]] for g in cold}
    assert drawn(0.1, 1.0, n=3, sampling=replace(SAMPLING, temperature=0.3)) == both
    some = drawn(0.1, 1.0, n=3, text=split.take([0, 2]))
    assert some == {g: both[g] for g in some}
    assert RewardSettings(LengthRater(), samples_per_source=5).samples_at == {0.8: 3, 1.0: 2}


def test_what_the_reward_before_has_learned_from_is_not_new(tmp_path):
    """More ratings divide the documents anew, and some that were learned from are held out then."""

    def table(name, documents):
        rows = [f"source {d}\t{name} {d}\t{d % 7}\t{d}" for d in range(documents)]
        path = tmp_path / f"{name}.tsv"
        path.write_text("\n".join(["source\thypothesis\tscore\tdocument", *rows, ""]))
        return DirectAssessments(path, document="document")

    settings = RewardSettings(ratings=(table("first", 40),))
    before, after = human_ratings(settings), human_ratings(settings, ((table("more", 45),),))
    learned = {x for x, held in zip(before.sources, before.held_out, strict=True) if not held}
    held_out = {x for x, held in zip(after.sources, after.held_out, strict=True) if held}
    new = {x for x, step in zip(after.sources, after.steps, strict=True) if step == 2}
    assert learned & held_out and new and not learned & new


def test_ratings_must_be_held_out(tmp_path):
    with pytest.raises(UserError, match=r"reward.split.dev_share 0: some ratings must be held out"):
        human_ratings(RewardSettings(ratings=(DirectAssessments(tmp_path),), split=SplitSettings(dev_share=0.0)))
