"""The page of a run folder: whole and partial folders, escaping, no address outside itself, broken files."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rest.errors import UserError
from rest.report import page, plots
from rest.report.page import write_report

OURS = Path(page.__file__).with_suffix(".js").read_text(encoding="utf-8")
SCRIPT = "<script>alert('x')</script> & [link](a) | end"


def summary() -> list[dict[str, Any]]:
    def row(policy: str, grow: int, improve: int, reward: float, split: str) -> dict[str, Any]:
        metrics = {
            "reward_mean": reward, "reward_ci95": [reward - 0.01, reward + 0.01],
            "reward_greedy_mean": 0.8,
            "gold_mean": None, "bleu": 30.0 + reward, "bleu_signature": "nrefs:1|tok:13a", "bleu_beam": 31.0,
        }  # fmt: skip
        return {
            "policy": policy, "grow": grow, "improve": improve, "decode": "sample", "n": 4, "split": split,
            "metrics": metrics, "samples_drawn": 100, "gradient_steps": 20, "wall_s": 3.5,
        }  # fmt: skip

    steps = [("bc", 0, 0, 0.7), ("bc_continued", 0, 0, 0.71), ("rest", 1, 0, 0.72), ("rest", 1, 1, 0.75)]
    return [row(*step, split) for split in ("dev", "test") for step in steps]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with every file that a report reads."""
    run = tmp_path / "toy <run>"
    write(run / "summary.json", summary())
    write(run / "experiment.json", {"name": SCRIPT, "grow": {"samples_per_source": 4}})
    outputs = [
        {"policy": "BC", "hypothesis": SCRIPT, "reward": 0.4321, "gold": None},
        {"policy": "G1 I1", "hypothesis": "fine", "reward": 0.9, "gold": 0.8765},
    ]
    samples = [{"source": f"{SCRIPT} {n}", "reference": "r & d" if n else None, "outputs": outputs} for n in range(9)]
    write(run / "evaluation" / "samples.json", samples)
    result = {
        "grow": 1, "improve": 1, "threshold": 0.5, "rows_kept": 30, "rows": 60, "sources_kept": 10,
        "references_kept": 5, "mean_reward_kept": 0.8, "best_step": 10, "gradient_steps": 20,
        "learning_rate": 0.1,
        "dev_reward": [[0, 0.7], [10, 0.75], [20, 0.74]], "warning": SCRIPT, "started_policy_won": False,
    }  # fmt: skip
    write(run / "improve-1-1" / "stage.json", {"settings": {}, "result": result})
    write(run / "grow-1" / "stage.json", {"settings": {}, "result": {"rows": 60}})
    write(run / "grow-1" / "manifest.json", {"reward": {"all": {"mean": 0.61}, "samples": {"mean": 0.6}}})
    for part, rewards in enumerate(np.linspace(0, 1, 60, dtype=np.float32).reshape(2, 30)):
        pq.write_table(pa.table({"reward": rewards}), run / "grow-1" / f"part-{part:05d}-of-00002.parquet")
    return run


class Elements(html.parser.HTMLParser):
    """Collects tags and attributes, and checks that every element is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def parse(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    assert elements.open == []
    return elements


def test_a_whole_run_gives_every_section(run: Path) -> None:
    page = write_report(run)
    assert page == run / "report.html"
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Results on test", "Curves", "Rewards of greedy and beam outputs", "What each Improve kept",
        "Sample translations", "Settings", "How this was made",
    ]  # fmt: skip
    for part in (
        "reward 0.750 is above BC continued (0.710",
        "nrefs:1|tok:13a",
        "50.0%",
        "0.432",
        "0.876",
        'data-few="6"',
        "0.610",
        "keeps 50.0%",
    ):
        assert part in text
    assert parse(text).tags.count("svg") == 4
    assert "<b>0.750</b>" in text and 'aria-label="above BC">▲' in text
    assert "<h1>toy &lt;run&gt;</h1>" in text


def test_less_ter_is_drawn_on_the_right_as_what_is_better(run: Path) -> None:
    rows = summary()
    for row in rows:
        row["metrics"]["ter"] = 60.0
    write(run / "summary.json", rows)
    test = {"difference": -2.0, "lo": -3.0, "hi": -1.0, "p_bootstrap": 0.01, "p_randomisation": 0.01}
    result = {"tests": {"ter": test}, "fell": [], "rows": [], "new": "improve-1-1", "old": "bc"}
    write(run / "evaluation" / "improve-1-1-against-bc" / "stage.json", {"settings": {}, "result": result})
    [(figure, _, caption)] = page._first(page._read(run))
    [panel] = figure.axes
    assert panel.get_title(loc="left") == "TER, greedy (how much less)" and "right of the line it is better" in caption
    assert panel.lines[-1].get_xdata() == [2.0] and panel.lines[-1].get_color() == plots.GREEN


def test_text_of_the_run_is_escaped(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    assert text.count("<script") == 1 and f"<script>{OURS}</script>" in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; [link](a) | end" in text
    assert parse(text).tags.count("script") == 1
    markdown = (run / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert r"\[link\](a) \| end" in markdown


def test_the_page_stands_by_itself(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    elements = parse(text)
    assert not {"link", "img", "iframe", "object"} & set(elements.tags)
    assert not re.search(r"fetch|XMLHttpRequest|import\b|innerHTML|eval", OURS)
    assert not any(name == "src" or name.startswith("on") for name, _ in elements.attributes)
    assert all((value or "").startswith("#") for name, value in elements.attributes if name.endswith("href"))
    assert not re.search(r"@import|url\((?!#)", text)
    ids = [value for name, value in elements.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_a_run_that_goes_on_says_where_it_is_and_loads_itself_again(run: Path) -> None:
    assert "Under way" not in write_report(run).read_text(encoding="utf-8")
    lines = ['{"step": 1000, "time": 0.0, "dev/score": 0.5}', '{"step": 1010, "time": 86400.0, "loss": 2.25}', '{"st']
    write(run / ".improve-1-2.partial" / "metrics.jsonl", "\n".join(lines))
    text = write_report(run, refresh=30.0).read_text(encoding="utf-8")
    parse(text)
    assert '<meta http-equiv="refresh" content="30">' in text
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", text[text.index("Under way") :])[4:8]
    assert cells == ["improve-1-2", "1,010", "1970-01-02 00:00:00", "dev/score 0.500, loss 2.250"]


def test_markdown_tables_are_regular(run: Path) -> None:
    write_report(run)
    blocks = re.findall(r"(?:^\|.*\n)+", (run / "report.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(blocks) >= 5
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_summary_alone_is_enough(tmp_path: Path) -> None:
    write(tmp_path / "summary.json", summary())
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert parse(text).tags.count("svg") == 2
    assert "Settings" not in text and "Sample translations" not in text
    assert "nothing else: summary.json." in text


def test_a_run_of_bc_alone_on_dev(tmp_path: Path) -> None:
    write(tmp_path / "summary.json", [{"policy": "bc", "split": "dev", "metrics": {"reward_mean": 0.5}}])
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Results on dev" in text and "No ReST policy" in text
    assert "Curves" not in text


def test_stages_come_in_the_order_they_ran(run: Path) -> None:
    result = json.loads((run / "improve-1-1" / "stage.json").read_text(encoding="utf-8"))["result"]
    for g, i in ((10, 1), (2, 1), (1, 0)):
        write(run / f"improve-{g}-{i}" / "stage.json", {"result": {**result, "grow": g, "improve": i}})
    write(run / ".improve-1-2.partial" / "stage.json", "{ half a fi")  # it is not part of the run
    text = write_report(run).read_text(encoding="utf-8")
    stages = text[text.index("What each Improve kept") : text.index("What each Grow made")]
    assert re.findall(r"G\d+ I\d", stages) == ["G1 I0", "G1 I1", "G2 I1", "G10 I1"]


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    once = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == once


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[{", "summary.json is not valid JSON"),
        ({"policy": "bc"}, "must hold a list"),
        ([], "at least one row"),
        ([3], "row 0: the field 'policy'"),
        ([summary()[0], {"policy": "bc", "split": "test"}], "row 1: the field 'metrics' must be a dict"),
        (
            [{"policy": "rest", "split": "test", "metrics": {}, "grow": 1}],
            "row 0: the field 'improve' must be a int",
        ),
    ],
)
def test_a_broken_summary_is_named(tmp_path: Path, content: Any, said: str) -> None:
    write(tmp_path / "summary.json", content)
    with pytest.raises(UserError, match=re.escape(said)):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_missing_summary_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json does not exist"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("experiment.json", "[]", "experiment.json must hold a dict"),
        ("evaluation/samples.json", [{"source": "a", "outputs": [{}]}], "samples.json, entry 0"),
        ("improve-1-1/stage.json", {"result": {"grow": 1}}, "the field 'improve'"),
        ("grow-1/manifest.json", "nope", "manifest.json is not valid JSON"),
    ],
)
def test_other_broken_files_are_named(run: Path, name: str, content: Any, said: str) -> None:
    write(run / name, content)
    with pytest.raises(UserError, match=re.escape(said)):
        write_report(run)
