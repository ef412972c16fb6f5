"""Labels, the three forms of the results table, and what the verdict says in every case."""

from __future__ import annotations

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
from rest.report.tables import BY_KEY, COLUMNS, label, markdown, number, of_split, relation, whole

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
    assert label({"policy": "bc", "decode": "sample", "temperature": 0.5}) == "BC, T = 0.5"
    assert label({"policy": "bc_continued_last", "decode": "sample"}) == "BC continued, last"


def test_rows_come_in_the_order_of_the_algorithm() -> None:
    rows = [row("reference", 0.9), row("other", 0.1), row("ppo", 0.5), row("rest", 0.6, 2, 1), *run()]
    rows += [row("bc", 0.7) | {"temperature": 0.5}, row("bc_continued_last", 0.7), row("bc", 0.7) | {"decode": "mbr"}]
    names = [label(r) for r in of_split(rows, "test")]
    assert names == [
        *("BC", "BC, T = 0.5", "BC, MBR of 8", "BC continued", "BC continued, last"),
        *("G1 I1", "G1 I2", "G2 I1", "PPO", "other", "Reference"),
    ]
    assert [label(r) for r in whole(of_split(rows, "test"))] == [n for n in names if n.isascii() and "T =" not in n
                                                                  and "MBR" not in n]  # fmt: skip


def test_markdown_drops_what_no_row_has_and_keeps_what_one_has() -> None:
    rows = run()
    rows[0]["metrics"]["kl_to_bc"] = 2.5
    rows[1]["metrics"]["gold_mean"] = None
    lines = markdown(rows).splitlines()
    assert lines[0] == "| policy | BLEU, greedy | reward (samples) | KL to BC (nats) | steps | samples drawn | wall s |"
    assert lines[2] == "| BC | 30.0 [29.0–31.0] | 0.700 [0.690–0.710] |  | 500 | 0 | 12 |"
    assert lines[5].startswith("| G1 I2 | 30.0 [29.0–31.0] | 0.800 [0.790–0.810] | 2.5 | 500 | 1,000 |")
    assert sum(SIGNATURE.replace("|", r"\|") in line for line in lines) == 1


def test_another_signature_gets_its_own_footnote() -> None:
    rows = run()
    rows[0]["metrics"]["bleu_signature"] = SIGNATURE.replace("13a", "zh")
    assert len(tables.notes(rows)) == 2


def test_what_chose_on_dev_is_a_footnote() -> None:
    rows = run()
    rows[0] |= {"chosen_by": "chrF of greedy outputs"}
    rows[1] |= {"chosen_by": "chrF of greedy outputs", "last_is_chosen": True}
    rows[3] |= {"chosen_by": "loss of the references"}
    said = (
        "Chosen on dev by loss of the references: BC; chrF of greedy outputs: BC continued (which is its last), G1 I2"
    )
    assert tables.notes(of_split(rows, "test"))[0] == said and f"- {said}" in markdown(rows)


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
    assert "…" not in text and max(len(line.rstrip()) for line in text.splitlines()) <= 110
    for part in ("G1 I1", "0.700", ".250–.750", "33.3", "32.1–34.5", "123,456", "16.0M"):
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
    assert relation(row("rest", value, 1, 1), row("bc", 0.70), BY_KEY["reward_mean"]) == stands


def test_relation_without_numbers_or_intervals() -> None:
    bare, none = row("bc", 0.7, reward_ci95=None), row("bc", math.nan)
    assert relation(row("rest", 0.8, 1, 1), bare, BY_KEY["reward_mean"]) == "unknown"
    assert relation(row("rest", 0.8, 1, 1), none, BY_KEY["reward_mean"]) is None
    assert number(none, "reward_mean") is None


def test_improve_lines() -> None:
    stage = {
        "grow": 1, "improve": 2, "threshold": 0.7, "rows_kept": 1500, "rows": 3000, "learning_rate": 1e-4,
        "best_step": 0, "started_policy_won": True, "warning": "few rows",
    }  # fmt: skip
    head, line = tables.improve_lines([stage])
    told = dict(zip(head, line, strict=True))
    assert told["stage"] == "G1 I2"
    assert (told["rows kept"], told["share"], told["learning rate"]) == ("1,500", "50.0%", "0.0001")
    assert told["remarks"] == "the starting policy won; few rows"
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
