"""What a run showed, in sentences: first what a user ships, by metrics that nothing was trained on, then samples.

A policy that is only sharper, whose samples score higher because they differ less, has learned nothing that a user of
greedy or beam outputs would see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rest.folder import StageName
from rest.report import tables
from rest.report.tables import BY_KEY, Column, Row, cell, label, number, relation
from rest.statistics.intervals import LEAST_SOURCES

REWARD, GOLD = BY_KEY["reward_mean"], BY_KEY["gold_mean"]
SHIPPED = {  # way of decoding -> its metrics that nothing was trained on, each by the name of its paired test
    "greedy": {
        **{name: BY_KEY[name] for name in ("bleu", "chrf", "ter")},
        **{f"{name}_greedy": BY_KEY[f"{name}_greedy_mean"] for name in ("gold", "judge")},
    },
    "beam": {
        **{name: BY_KEY[name] for name in ("bleu_beam", "chrf_beam")},
        **{f"{name}_beam": BY_KEY[f"{name}_beam_mean"] for name in ("gold", "judge")},
    },
}
SAMPLES = {"reward": REWARD, "first_reward": BY_KEY["first_reward_mean"], "gold": GOLD, "judge": BY_KEY["judge_mean"]}
OUTPUT_REWARDS = {f"reward_{way}": BY_KEY[f"reward_{way}_mean"] for way in SHIPPED}
TRAINED_ON = ("reward", "first_reward")
COMPARE = {"SentenceBLEU": "BLEU", "SentenceChrF": "chrF", "ChrF": "chrF"}  # what rewards and utilities are made of
HARDLY = 3.0  # BLEU of greedy outputs, below which samples have little that is right to choose from
AS_VARIED = 1.25  # times as many distinct samples a source, up to which two policies are about equally varied
LENGTH = 0.1  # further than a baseline from the length of the references, as a logarithm
STANDS = {
    "above": "above",
    "below": "below",
    "equal": "equal to",
    "overlap": "not told apart from",
    "higher": "higher, without an interval to go by, than",
    "lower": "lower, without an interval to go by, than",
}


@dataclass(frozen=True)
class Difference:
    """How the last policy stands to a baseline in one metric."""

    metric: str  # the name of its paired test
    column: Column
    last: Row
    base: Row
    test: dict[str, float] | None  # paired, on the same sources; None where there is none

    @property
    def stands(self) -> str:
        """A key of STANDS: by the paired interval, else by whether the two intervals touch."""
        if self.test is not None:
            low, high = self.test["lo"], self.test["hi"]
            if low == high == self.test["difference"] == 0:
                return "equal"
            return "above" if low > 0 else "below" if high < 0 else "overlap"
        stands, (a, b) = relation(self.last, self.base, self.column), self._values
        if stands == "unknown":
            return "equal" if a == b else "higher" if a > b else "lower"
        assert stands is not None  # both have numbers
        return stands

    @property
    def outcome(self) -> str:
        """ "gained", "lost", or nothing that is told apart."""
        above, below = ("lost", "gained") if self.column.best is min else ("gained", "lost")
        return {"above": above, "below": below}.get(self.stands, "")

    @property
    def name(self) -> str:
        """The metric without the way of decoding."""
        return self.column.title.removesuffix(" (samples)").partition(", ")[0]

    @property
    def words(self) -> str:
        """ "above BC (+1.2 [+0.5 to +1.9])"; without a paired test "above BC (31.0 [30.1–32.0])"."""
        if self.stands == "equal":
            return f"{STANDS['equal']} {label(self.base)}"
        if self.test is None:
            beside = written(self.base, self.column)
        else:
            by, low, high = (f"{self.test[key]:+.{self.column.digits}f}" for key in ("difference", "lo", "hi"))
            beside = f"{by} [{low} to {high}]"
        return f"{STANDS[self.stands]} {label(self.base)} ({beside})"

    @property
    def _values(self) -> tuple[float, float]:
        a, b = number(self.last, self.column.key), number(self.base, self.column.key)
        assert a is not None and b is not None
        return a, b


def verdict(
    rows: list[Row],
    split: str = "test",
    compared: Sequence[dict[str, Any]] = (),
    grown: Mapping[int, dict[str, Any]] = MappingProxyType({}),
    reward: Any = None,
) -> list[str]:
    """What the last ReST policy showed against BC and BC continued: the conclusion, its evidence, then cautions.

    `compared` are the paired comparisons of the test split, as report/comparisons.py reads them, `grown` the manifests
    of Grow steps, which tell why there is no policy where there is none, and `reward` its settings in experiment.json.
    """
    every, rows = tables.of_split(rows, split), tables.whole(tables.of_split(rows, split))
    last = tables.last_rest(rows, split)
    if last is None:
        return [f"No ReST policy was evaluated on the {split} split, so there is nothing to compare.", *_why(grown)]
    if few := last.get("sources", LEAST_SOURCES) < LEAST_SOURCES:
        compared = ()
    baselines = _baselines(rows)
    if not baselines:
        return [f"Neither BC nor BC continued was evaluated on the {split} split to compare {label(last)} with."]
    tests = _tests(last, compared) if split == "test" else {}
    ways = {way: _differences(metrics, last, baselines, tests) for way, metrics in SHIPPED.items()}
    of_samples = _differences(SAMPLES, last, baselines, tests)
    shown = {**ways, "samples": of_samples}
    if not any(shown.values()):
        said = [f"{label(last)} and the baselines share no metric on the {split} split."]
    else:
        rewarded = of_samples + _differences(OUTPUT_REWARDS, last, baselines, tests)
        said = [_conclusion(last, baselines, ways, rewarded)]
        said += [_sentence(way, split, found) for way, found in shown.items() if found]
    if few:
        said.append(f"Caution: {last['sources']} {split} sources are too few to tell any difference from chance.")
    found = [each for differences in shown.values() for each in differences]
    return said + _as_varied(every, last) + _cautions(rows, last, baselines, found) + _of_its_kind(reward, found)


def _why(grown: Mapping[int, dict[str, Any]]) -> list[str]:
    """Why nothing was learned: the rewards of the first Grow step that no Improve step followed."""
    for g, manifest in grown.items():
        rewards = (manifest.get("reward") or {}).get("all") or {}
        if "max" in rewards:
            low, high = (tables.plain(float(rewards[end])) for end in ("min", "max"))
            between = f"all {low}" if low == high else f"from {low} to {high}"
            return [
                f"Nothing was learned from {StageName('grow', g).label}: no row passed its first threshold, and the "
                f"rewards are {between}. A reward that tells translations apart, or a lower threshold, is needed."
            ]
    return []


def advice(rows: list[Row], split: str = "test", compared: Sequence[dict[str, Any]] = ()) -> str:
    """One sentence on whether the last policy may take the place of BC."""
    shipped = differences(rows, split, compared)
    if _is_bc(shipped):
        return f"May it be shipped? There is nothing new: the outputs of {called(shipped[0].last)} are those of BC."
    if not shipped or all(each.stands in ("higher", "lower", "equal") for each in shipped):
        return "May it be shipped? These numbers cannot tell."
    name, others = called(shipped[0].last), _joined(each.base for each in shipped)
    gained, lost = _names(shipped, "gained", all), _names(shipped, "lost", any)
    if gained and lost:
        return f"May it be shipped? Only where {gained} matters more than {lost}."
    if gained and not any(each.base["policy"].startswith("bc_continued") for each in shipped):
        return "May it be shipped? In place of BC, yes; whether BC trained for longer is as good, is not known."
    if gained:
        return "May it be shipped? Yes: no metric of greedy or beam outputs got worse."
    if lost:
        return f"May it be shipped? No: against {others}, {name} loses {lost}."
    return f"May it be shipped? There is no reason to: no metric of what users see beats {others} beyond chance."


def differences(rows: list[Row], split: str = "test", compared: Sequence[dict[str, Any]] = ()) -> list[Difference]:
    """How greedy and beam outputs of the last policy stand to those of the baselines; none where there is neither."""
    rows = tables.whole(tables.of_split(rows, split))
    last = tables.last_rest(rows, split)
    if last is None:
        return []
    few = last.get("sources", LEAST_SOURCES) < LEAST_SOURCES
    tests = {} if few or split != "test" else _tests(last, compared)
    return [each for metrics in SHIPPED.values() for each in _differences(metrics, last, _baselines(rows), tests)]


def _baselines(rows: list[Row]) -> list[Row]:
    """BC continued, the better of what dev chose and the last, and BC."""
    controls = [row for row in rows if row["policy"] in ("bc_continued", "bc_continued_last")]
    known = [column for metrics in SHIPPED.values() for column in metrics.values()]
    by = next((column for column in known if all(number(row, column.key) is not None for row in controls)), REWARD)
    better = max(controls, key=lambda row: number(row, by.key) or 0.0, default=None)
    return ([] if better is None else [better]) + [row for row in rows if row["policy"] == "bc"]


def _tests(last: Row, compared: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """The paired tests of the last policy, by the kind of policy that it is compared with."""
    return {kind: result["tests"] for kind, result in _with(last, compared).items()}


def _with(last: Row, compared: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The comparisons of the last policy, by the kind of policy that it is compared with."""
    stage = tables.stage_of(last)
    found = {}
    for result in compared:
        old = StageName.parse(result["old"])
        if old is not None and stage is not None and result["new"] == stage.folder:
            found[old.kind] = result
    return found


def compared_with(rows: list[Row], compared: Sequence[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """The folders of the last policy and of what it is held against on test, by what the sentences call that."""
    last = tables.last_rest(rows, "test")
    if last is None:
        return {}
    found = _with(last, compared)
    bases = [base for base in _baselines(tables.whole(tables.of_split(rows, "test"))) if base["policy"] in found]
    return {called(base): (found[base["policy"]]["new"], found[base["policy"]]["old"]) for base in bases}


def _differences(
    metrics: dict[str, Column], last: Row, baselines: list[Row], tests: dict[str, dict[str, dict[str, float]]]
) -> list[Difference]:
    """Metric by metric, those to all baselines that have it."""
    return [
        Difference(name, column, last, base, tests.get(base["policy"], {}).get(name))
        for name, column in metrics.items()
        for base in baselines
        if number(last, column.key) is not None and number(base, column.key) is not None
    ]


def _names(found: list[Difference], outcome: str, of: Callable[[Iterable[bool]], bool]) -> str:
    """Gained or lost against all, or any, baselines: "BLEU, chrF of greedy outputs and gold of beam outputs"."""
    by_metric: dict[tuple[str, str], list[bool]] = {}
    for each in found:
        way = next(way for way, metrics in SHIPPED.items() if each.metric in metrics)
        by_metric.setdefault((way, each.name), []).append(each.outcome == outcome)
    by_way: dict[str, list[str]] = {}
    for (way, name), so in by_metric.items():
        if of(so):
            by_way.setdefault(way, []).append(name)
    return " and ".join(f"{', '.join(names)} of {way} outputs" for way, names in by_way.items())


def _is_bc(found: list[Difference]) -> bool:
    """Whether every metric is exactly BC's: dev kept it in each Improve step."""
    against_bc = [each for each in found if each.base["policy"] == "bc"]
    return bool(against_bc) and all(each.test is not None and each.stands == "equal" for each in against_bc)


def called(row: Row) -> str:
    """A policy in a sentence for people who know none of the labels: "ReST (G1 I2)", "BC continued"."""
    return f"ReST ({label(row)})" if row["policy"] == "rest" else label(row).removesuffix(", last")


def _joined(rows: Iterable[Row]) -> str:
    return " and ".join(dict.fromkeys(map(called, rows)))


def _conclusion(last: Row, baselines: list[Row], ways: dict[str, list[Difference]], rewarded: list[Difference]) -> str:
    """One sentence. A gain lies above all baselines, a loss below one of them. `rewarded` are those in the reward."""
    name, others = called(last), _joined(baselines)
    shipped = [each for found in ways.values() for each in found]
    outputs = " and ".join(way for way, found in ways.items() if found)
    if not shipped:
        return f"No metric but those of samples was evaluated, so whether users of {name} gain is not known."
    if all(each.stands in ("higher", "lower") for each in shipped):
        return f"Whether users of {name} gain is not known: the metrics of {outputs} outputs have no intervals."
    gained, lost = _names(shipped, "gained", all), _names(shipped, "lost", any)
    if _is_bc(shipped):
        better = f"; BC continued is better in {lost}" if lost else ""
        return f"No change: the outputs of {name} are those of BC, from which no Improve step gained on dev{better}."
    if gained:
        better = f"{name} translates better than {others}: it gained {gained}."
        return f"Mixed: against {others}, {name} gained {gained}, and lost {lost}." if lost else better
    stands = {metric: {each.stands for each in rewarded if each.metric == metric} for metric in _metrics(rewarded)}
    if rose := " and ".join(way for way in SHIPPED if stands.get(f"reward_{way}") == {"above"}):
        if lost:
            return f"Worse: against {others}, {name} lost {lost}, though the reward of {rose} outputs rose."
        return (
            f"No gain but in the reward: that of {rose} outputs of {name} rose, and no other metric of them gained on "
            f"{others} beyond chance."
        )
    if stands.get("reward") == {"above"}:
        rest = f"it lost {lost}" if lost else f"its {outputs} outputs show no gain on {others} beyond chance"
        sharper = "Not better" if _no_less_varied(last, baselines[-1]) else "Sharper, not better"
        return f"{sharper}: only the samples of {name} gained; {rest}."
    if lost:
        return f"Worse: against {others}, {name} lost {lost}."
    return f"No gain: the {outputs} outputs of {name} show none on {others} beyond chance."


def _metrics(found: list[Difference]) -> set[str]:
    return {each.metric for each in found}


def _no_less_varied(last: Row, base: Row) -> bool:
    """Whether the samples of a source are known to differ as much as before."""
    ours, theirs = number(last, "distinct_per_source"), number(base, "distinct_per_source")
    return ours is not None and theirs is not None and ours >= theirs


def _sentence(way: str, split: str, found: list[Difference]) -> str:
    """ "Greedy on test: BLEU 31.0 is above BC continued (...) and not told apart from BC (...); chrF ..."."""
    clauses: dict[str, list[str]] = {}
    for each in found:
        name = f"{each.name} (less is better)" if each.column.best is min else each.name
        clauses.setdefault(f"{name} {cell(each.last, each.column)[0]}", []).append(each.words)
    joined = "; ".join(f"{value} is {' and '.join(words)}" for value, words in clauses.items())
    return f"{way.capitalize()} on {split}: {joined}."


def _as_varied(rows: list[Row], last: Row) -> list[str]:
    """The last policy beside BC at the lower temperature where its samples differ about as much."""
    varied = number(last, "distinct_per_source")
    of_bc = [row for row in rows if row["policy"] == "bc" and number(row, "distinct_per_source") is not None]
    of_bc = [
        row for row in of_bc if (row.get("decode") or "sample") == "sample" and number(row, REWARD.key) is not None
    ]
    if varied is None or not of_bc or number(last, REWARD.key) is None:
        return []
    nearest = min(of_bc, key=lambda row: abs((number(row, "distinct_per_source") or 0.0) - varied))
    if nearest.get("temperature") is None:  # it is as varied as BC at the same temperature
        return []
    theirs, stands = number(nearest, "distinct_per_source") or 0.0, Difference("reward", REWARD, last, nearest, None)
    if max(varied, theirs) > AS_VARIED * min(varied, theirs):
        return [
            f"No temperature of BC leaves its samples about as varied ({theirs:.1f} distinct samples a source of "
            f"{label(nearest)}, {varied:.1f} of {label(last)}), so that BC's reward there tells nothing."
        ]
    return [
        f"At about equal variety ({theirs:.1f} distinct samples a source of "
        f"{label(nearest)}, {varied:.1f} of {label(last)}) the reward {written(last, REWARD)} is {stands.words}."
    ]


def _cautions(rows: list[Row], last: Row, baselines: list[Row], found: list[Difference]) -> list[str]:
    """What a reader must know before believing the sentences above."""
    cautions = []
    for base in baselines:
        own = [each for each in found if each.base is base]
        worse = [each.column.title for each in own if each.outcome == "lost" and each.metric not in TRAINED_ON]
        worse = [title.removesuffix(" (less is better)") for title in worse]
        if any(each.metric == "reward" and each.stands == "above" for each in own) and worse:
            cautions.append(
                f"Caution: against {label(base)} the reward rose while {' and '.join(worse)} got worse, "
                "a sign that the policy exploits the reward."
            )
    policies = {row["policy"] for row in rows}
    if not {"bc_continued", "bc_continued_last"} & policies:
        cautions.append("Caution: BC continued was not evaluated, so a gain may come from further training alone.")
    if "bc" not in policies:
        cautions.append("Caution: BC, the starting policy, was not evaluated.")
    if all(each.metric in TRAINED_ON for each in found):
        cautions.append("Caution: no metric but the reward itself was evaluated.")
    if (bleu := number(baselines[-1], "bleu")) is not None and bleu < HARDLY:
        cautions.append(
            f"Caution: {label(baselines[-1])} has BLEU {bleu:.1f}, so that it hardly translates: more pairs, or a "
            "published model to start from, would do more than a reward can."
        )
    cautions += _lengths(last, baselines[0])
    steps = [(value, row) for row in rows if (value := number(row, REWARD.key)) is not None]
    best = max((step for step in steps if step[1]["policy"] == "rest"), key=lambda step: step[0], default=None)
    if best and best[0] > (number(last, REWARD.key) or 0.0):
        cautions.append(f"The highest reward is {label(best[1])}'s ({written(best[1], REWARD)}), not the last step's.")
    return cautions


def _of_its_kind(reward: Any, found: list[Difference]) -> list[str]:
    """Where outputs gained in a metric by which the reward compares texts: of such gains people see less (Freitag et
    al. 2022, "High Quality Rather than High Model Probability", on MBR)."""
    used = {COMPARE[kind] for kind in _kinds(reward) if kind in COMPARE}
    names = sorted({each.name for each in found if each.outcome == "gained" and each.name in used}, key=str.lower)
    if not names:
        return []
    metrics = " and ".join(names)
    return [f"Caution: the reward compares texts by {metrics}, so a gain there weighs less than one in other metrics."]


def _kinds(settings: Any) -> set[str]:
    """The names of all types in settings."""
    if isinstance(settings, list):
        return {kind for each in settings for kind in _kinds(each)}
    if not isinstance(settings, dict):
        return set()
    return {str(settings.get("type")).rpartition(".")[2]} | _kinds(list(settings.values()))


def _lengths(last: Row, base: Row) -> list[str]:
    """Where greedy outputs have become too long or too short, which moves their metrics by itself."""
    ours, theirs = number(last, "length_ratio"), number(base, "length_ratio")
    if not ours or not theirs or abs(math.log(ours)) - abs(math.log(theirs)) < LENGTH:
        return []
    moves = "chrF likes what is too long, BLEU and TER do not" if ours > 1 else "BLEU and chrF miss what is left out"
    return [
        f"Caution: greedy outputs of {called(last)} are {ours:.2f} times as long as the references, those of "
        f"{label(base)} {theirs:.2f} times; {moves}."
    ]


def written(row: Row, column: Column) -> str:
    """A number with its interval: "31.0 [30.1–32.0]"."""
    value, ends = cell(row, column)
    return f"{value} [{ends}]" if ends else value
