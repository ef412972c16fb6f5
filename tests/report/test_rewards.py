"""Tables of agreement and attacks show what was measured, and text as it stands."""

import numpy as np
from rich.console import Console

from rest.data.ratings import RatingRow, from_rows
from rest.report.rewards import agreement_table, attack_tables, difference_table
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
