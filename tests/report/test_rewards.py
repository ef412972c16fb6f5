"""Tables of agreement and attacks show what was measured, and text as it stands."""

import numpy as np
from rich.console import Console

from rest.ratings.record import RatingRow, from_rows
from rest.report.rewards import (
    agreement_table,
    attack_tables,
    difference_table,
    reward_tables,
    reward_warnings,
)
from rest.reward.agreement import evaluate
from rest.reward.attacks import attack


def shown(renderable):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(renderable)
        return console.export_text()


def number(sources, hypotheses, references):
    return np.array([float(h[1:]) for h in hypotheses])


def constant(sources, hypotheses, references):
    return np.zeros(len(hypotheses))


def test_agreement_is_shown_with_intervals_and_what_differs():
    rows = [RatingRow(f"s{k}", f"h{k}", float(k), k, None, "", "", "", "[set]", "de-en") for k in range(20)]
    found = evaluate({"[number]": number, "constant": constant}, from_rows(rows), 0, 50)
    text = shown(agreement_table(found))
    assert "[set] de-en: 20 rows, 20 sources" in text
    assert "[number]" in text
    assert "1.000" in text
    assert "0.000*" in text
    assert "intervals over sources; pairs: all; * differs from [number]" in text
    alone = evaluate({"[number]": number}, from_rows(rows), 0, 50)
    assert "*" not in shown(agreement_table(alone))


FIT = {"rated": 1500, "held_out": 200, "pearson_ratings": 0.5, "spearman_gold": 0.61}
ATTACK = {
    "attack": "said twice",
    "cases": 20,
    "higher": 0.35,
    "higher_ci95": [0.1, 0.6],
    "ties": 0.05,
    "mean_change": 0.25,
}


def test_a_refreshed_reward_is_shown_beside_the_first():
    fresh = {
        "held_out": 40,
        "first": {"spearman_ratings": 0.1, "spearman_gold": 0.2},
        "newest": {"spearman_ratings": 0.3},
    }
    warning = "said twice: scores above the honest translation in 35% of 20 cases"
    fits = {
        1: FIT,
        2: {
            **FIT,
            "chosen_by": "WithinSources",
            "negatives": 30,
            "fresh": fresh,
            "attacks": [ATTACK],
            "attack_warnings": [warning],
        },
    }
    row = {"policy": "bc", "grow": 0, "improve": 0, "split": "test", "metrics": {"reward_gold_spearman": 0.7}}
    agreement, later, trusted, attacks = (lines for _, lines in reward_tables(fits, [row], "test"))
    assert agreement[0] == [
        "reward of", "ratings", "negatives", "held out", "Pearson, ratings", "Spearman, gold", "chosen by",
    ]  # fmt: skip
    assert agreement[1:] == [
        ["G1", "1,500", "", "200", "0.500", "0.610", ""],
        ["G2", "1,500", "30", "200", "0.500", "0.610", "WithinSources"],
    ]
    assert later[1:] == [["G2", "40", "first", "0.100", "0.200"], ["G2", "40", "newest", "0.300", ""]]
    assert trusted == [["policy", "reward"], ["BC", "0.700"]]
    assert attacks[1] == ["said twice", "20", "35.0%", "10.0%–60.0%", "5.0%", "+0.2500"]
    assert reward_warnings(fits) == [f"Warning: reward of Grow 2: {warning}."]


def test_nothing_is_shown_of_a_reward_that_nothing_is_known_of():
    row = {"policy": "bc", "grow": 0, "improve": 0, "split": "test", "metrics": {"reward_mean": 0.7}}
    assert reward_tables({}, [row], "test") == [] and reward_warnings({}) == []


def test_differences_are_shown_with_interval_and_p():
    rows = [RatingRow(f"s{k}", f"h{k}", float(k), k, None, "", "", "", "set", "de-en") for k in range(20)]
    found = evaluate({"number": number, "constant": constant}, from_rows(rows), 0, 199)
    text = shown(difference_table(found))
    assert "number less the others" in text
    assert "+1.000–+1.000" in text and "p 0.010" in text  # 2 (0 + 1) / (199 + 1)


def test_attacks_are_shown_with_the_worst_cases():
    def longer(sources, hypotheses, references):
        return np.array([len(y) for y in hypotheses])

    text = shown(attack_tables(attack(longer, ["a", "b"], ["[red]one\x1b two", "three four"], 0)))
    assert "said twice" in text
    assert "100.0%" in text
    assert "[red]one\N{REPLACEMENT CHARACTER} two [red]one" in text
    assert "fooled most" not in shown(
        attack_tables(attack(lambda s, y, r: np.zeros(len(y)), ["a", "b"], ["c", "d"], 0))
    )
