"""Labels, the three forms of the results table, and what the verdict says in every case."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from rest.errors import UserError
from rest.report import tables
from rest.report.tables import COLUMNS, label, markdown, number, of_split, relation, verdict

SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"


def row(policy: str, reward: float, grow: int = 0, improve: int = 0, **metrics: Any) -> dict[str, Any]:
    found = {"reward_mean": reward, "reward_ci95": [reward - 0.01, reward + 0.01], **metrics}
    return {
        "policy": policy, "grow": grow, "improve": improve, "decode": "sample", "n": 8, "split": "test",
        "metrics": found, "samples_drawn": 1000 * grow, "gradient_steps": 500, "wall_s": 12.4,
    }  # fmt: skip


def bleu(value: float) -> dict[str, Any]:
    return {"bleu": value, "bleu_ci95": [value - 1, value + 1], "bleu_signature": SIGNATURE}


def run(bc: float = 0.70, continued: float = 0.71, last: float = 0.80) -> list[dict[str, Any]]:
    return [
        row("rest", last, 1, 2, **bleu(30)),
        row("bc_continued", continued, **bleu(30)),
        row("rest", 0.75, 1, 1, **bleu(31)),
        row("bc", bc, **bleu(30)),
    ]


def test_labels() -> None:
    assert [label(r) for r in run()] == ["G1 I2", "BC continued", "G1 I1", "BC"]
    assert label({"policy": "ppo"}) == "PPO"
    assert label({"policy": "bc", "decode": "best_of_n", "n": 8}) == "BC, best of 8"
    assert label({"policy": "rest", "grow": 2, "improve": 1, "decode": "mbr", "n": 4}) == "G2 I1, MBR of 4"
    assert label({"policy": "my_own", "decode": "beam"}) == "my own, beam"


def test_rows_come_in_the_order_of_the_algorithm() -> None:
    rows = [row("reference", 0.9), row("other", 0.1), row("ppo", 0.5), row("rest", 0.6, 2, 1), *run()]
    names = [label(r) for r in of_split(rows, "test")]
    assert names == ["BC", "BC continued", "G1 I1", "G1 I2", "G2 I1", "PPO", "other", "Reference"]


def test_markdown_drops_what_no_row_has_and_keeps_what_one_has() -> None:
    rows = run()
    rows[0]["metrics"]["kl_to_bc"] = 2.5
    rows[1]["metrics"]["gold_mean"] = None
    lines = markdown(rows).splitlines()
    assert lines[0] == "| policy | reward (samples) | BLEU | KL to BC (nats) | steps | samples drawn | wall s |"
    assert lines[2] == "| BC | 0.700 [0.690–0.710] | 30.0 [29.0–31.0] |  | 500 | 0 | 12 |"
    assert lines[5].startswith("| G1 I2 | 0.800 [0.790–0.810] | 30.0 [29.0–31.0] | 2.5 | 500 | 1,000 |")
    assert sum(SIGNATURE.replace("|", r"\|") in line for line in lines) == 1


def test_another_signature_gets_its_own_footnote() -> None:
    rows = run()
    rows[0]["metrics"]["bleu_signature"] = SIGNATURE.replace("13a", "zh")
    assert len(tables.signatures(rows)) == 2


def test_console_fits_and_shows_the_same_numbers() -> None:
    everything = {column.key: 0.5 for column in COLUMNS if column.key != "reward_mean"}
    everything |= {column.interval: [0.25, 0.75] for column in COLUMNS if column.interval}
    rows = [row("bc_continued", 0.7, **everything), row("rest", 0.8, 1, 1, **everything)]
    for each in rows:
        each |= {"gradient_steps": 123456, "samples_drawn": 16_000_000, "wall_s": 98765.0}
        each["metrics"] |= {"bleu": 33.3, "bleu_ci95": [32.1, 34.5], "chrf": 55.5, "chrf_ci95": [54.1, 56.2]}
        for key in ("gradient_steps", "samples_drawn", "wall_s"):
            each["metrics"].pop(key)
    out = io.StringIO()
    Console(file=out, width=112).print(tables.console(rows, "test"))
    text = out.getvalue()
    assert "…" not in text
    for part in ("G1 I1", "0.700", ".250–.750", "33.3", "32.1–34.5", "123,456", "16.0M", "98,765"):
        assert part in text


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(UserError, match="no row of split 'dev'; the splits it has: test"):
        markdown(run(), "dev")


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=40))
def test_markdown_text_is_literal(text: str) -> None:
    written = tables.markdown_text(text)
    assert "\n" not in written and "<" not in written
    rendered = MarkdownIt("commonmark").parseInline(f"x {written} x")[0].children or []
    assert all(token.type in ("text", "text_special") for token in rendered)
    assert "".join(token.content for token in rendered) == f"x {' '.join(text.split())} x"


@pytest.mark.parametrize(
    ("value", "stands"),
    [(0.80, "above"), (0.60, "below"), (0.705, "overlap"), (0.72, "overlap"), (0.70, "equal")],
)
def test_relation_by_intervals(value: float, stands: str) -> None:
    assert relation(row("rest", value, 1, 1), row("bc", 0.70), COLUMNS[0]) == stands


def test_relation_without_numbers_or_intervals() -> None:
    bare, none = row("bc", 0.7, reward_ci95=None), row("bc", math.nan)
    assert relation(row("rest", 0.8, 1, 1), bare, COLUMNS[0]) == "unknown"
    assert relation(row("rest", 0.8, 1, 1), none, COLUMNS[0]) is None
    assert number(none, "reward_mean") is None


def test_verdict_above_both() -> None:
    first, second, *rest = verdict(run())
    assert first == (
        "Reward on test: G1 I2 at 0.800 [0.790–0.810] lies above BC (0.700 [0.690–0.710]) "
        "and BC continued (0.710 [0.700–0.720])."
    )
    assert second.startswith("BLEU on test: G1 I2 at 30.0 [29.0–31.0] is equal to BC (30.0")
    assert rest == []


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (0.60, "lies below BC (0.700 [0.690–0.710]) and BC continued"),
        (0.715, "cannot be told apart by its interval from BC (0.700 [0.690–0.710]) and BC continued"),
        (
            0.725,
            "lies above BC (0.700 [0.690–0.710]) and cannot be told apart by its interval from BC continued",
        ),
        (
            0.70,
            "is equal to BC (0.700 [0.690–0.710]) and cannot be told apart by its interval from BC continued",
        ),
    ],
)
def test_verdict_is_honest_when_rest_does_not_win(last: float, words: str) -> None:
    assert words in verdict(run(last=last))[0]


def test_verdict_says_when_the_last_step_is_not_the_best() -> None:
    assert verdict(run(last=0.72))[-1] == "The highest reward is G1 I1's (0.750 [0.740–0.760]), not the last step's."


def test_verdict_warns_when_reward_rises_and_quality_falls() -> None:
    rows = run()
    rows[0]["metrics"] |= {**bleu(20), "gold_mean": 0.4, "gold_ci95": [0.39, 0.41]}
    rows[3]["metrics"] |= {"gold_mean": 0.6, "gold_ci95": [0.59, 0.61]}
    said = verdict(rows)
    assert "Caution: against BC the reward rose while gold and BLEU fell, a sign that" in said[-2]
    assert "Caution: against BC continued the reward rose while BLEU fell" in said[-1]


def test_verdict_without_intervals_claims_no_win() -> None:
    rows = copy.deepcopy(run())
    for each in rows:
        each["metrics"].pop("reward_ci95")
    assert "is, without an interval to go by, higher than BC (0.700) and BC continued (0.710)" in verdict(rows)[0]


def test_verdict_names_missing_controls() -> None:
    rows = [r for r in run() if r["policy"] != "bc_continued"]
    assert any("BC continued was not evaluated" in line for line in verdict(rows))
    rows = [row("bc", 0.7), row("bc_continued", 0.7), row("rest", 0.8, 1, 1)]
    assert verdict(rows)[-1] == "Caution: no metric but the reward itself was evaluated."


def test_verdict_without_rest_or_baselines() -> None:
    assert "No ReST policy" in verdict([row("bc", 0.7)])[0]
    assert "No ReST policy" in verdict([row("bc", 0.7), row("rest", 0.9, 1, 0)])[0]  # only the side branch
    assert "Neither BC nor BC continued" in verdict([row("rest", 0.7, 1, 1)])[0]
    assert "share no metric" in verdict([row("bc", math.nan), row("rest", 0.7, 1, 1)])[0]


def test_the_last_policy_is_the_last_improve_of_the_last_grow() -> None:
    rows = [
        *run(),
        row("rest", 0.9, 2, 0),
        row("rest", 0.85, 2, 1),
        row("rest", 0.99, 2, 1) | {"decode": "mbr"},
    ]
    assert verdict(rows)[0].startswith("Reward on test: G2 I1 at 0.850")


def test_improve_lines() -> None:
    stage = {
        "grow": 1, "improve": 2, "threshold": 0.7, "rows_kept": 1500, "rows": 3000, "learning_rate": 1e-4,
        "best_step": 0, "started_policy_won": True, "warning": "few rows",
    }  # fmt: skip
    head, line = tables.improve_lines([stage])
    told = dict(zip(head, line, strict=True))
    assert told["stage"] == "G1 I2"
    assert (told["rows kept"], told["share"], told["learning rate"]) == ("1,500", "50.0%", "0.0001")
    assert told[""] == "the starting policy won; few rows"
    without = [{**stage, "threshold": tau} for tau in (None, -math.inf)]
    assert [line[1] for line in tables.improve_lines(without)[1:]] == ["none", "none"]
    of_sources = {**stage, "threshold": None, "thresholds": {"min": 0.25, "mean": 0.5, "max": 0.75}}
    assert tables.improve_lines([of_sources])[1][1] == "one per source, 0.250–0.750, mean 0.500"
    assert tables.improve_lines([{"grow": 1, "improve": 1}])[1][0] == "G1 I1"


def test_grow_and_setting_lines() -> None:
    grows = {
        1: {"reward": {"all": {"mean": 0.5}, "samples": {"mean": 0.4}}},
        2: {"rows": 3},
        3: {"reward": None},
    }
    assert tables.grow_lines(grows)[1:] == [["G1", "0.500", "0.400", ""]]
    lines = tables.setting_lines({"seed": 0, "grow": {"temperature": 0.8, "extra": {}}, "rules": [{"tau": 1}]})
    assert lines[1:] == [
        ["seed", "0"],
        ["grow.temperature", "0.8"],
        ["grow.extra", "{}"],
        ["rules", '[{"tau": 1}]'],
    ]
