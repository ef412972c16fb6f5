"""The page in a browser: columns sort, samples are found, nothing of the data runs. Needs Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rest.report.page import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--enable-logging=stderr",
)  # fmt: skip
HOSTILE = "<script>alert(1)</script><img src=x onerror=\"document.title='run'\">"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with three policies and nine samples; the first sample's text is hostile."""
    run = tmp_path_factory.mktemp("browsed") / "run"
    (run / "evaluation").mkdir(parents=True)
    rows = [
        {"policy": policy, "grow": g, "improve": i, "split": "test", "gradient_steps": steps,
         "metrics": {"reward_mean": reward, "reward_ci95": [reward - 0.01, reward + 0.01], "bleu": bleu}}
        for policy, g, i, reward, bleu, steps in (
            ("bc", 0, 0, 0.5, 9.5, 1_000), ("rest", 1, 1, 0.7, None, 20), ("rest", 1, 2, 0.6, 30.25, 300)
        )
    ]  # fmt: skip
    samples = [
        {"source": HOSTILE if n == 0 else f"source {n}", "reference": None, "outputs": [
            {"policy": "BC", "hypothesis": HOSTILE if n == 0 else f"word{n} old", "reward": 0.5, "gold": None},
            {"policy": "G1 I2", "hypothesis": f"word{n} new", "reward": 0.1 * n, "gold": None},
        ]}
        for n in range(9)
    ]  # fmt: skip
    (run / "summary.json").write_text(json.dumps(rows), encoding="utf-8")
    (run / "evaluation" / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    return write_report(run)


def browse(page: Path, tmp_path: Path, script: str) -> Any:
    """What `script`, the body of a function, returns on the page. Fails where the page's console shows an error."""
    ending = (
        f"<script>const told = (() => {{ {script} }})();"
        "const place = document.createElement('pre'); place.id = 'told';"
        "place.textContent = JSON.stringify(told); document.body.append(place);</script></body>"
    )
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", ending), encoding="utf-8")
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    return json.loads(html.unescape(found[1]))


def test_columns_sort_by_their_numbers_and_what_is_empty_comes_last(page: Path, tmp_path: Path) -> None:
    told = browse(page, tmp_path, """
        const table = document.querySelector("table");
        const button = (title) => [...table.querySelectorAll("thead button")].find((b) => b.textContent === title);
        const column = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
        const out = [];
        const reward = "reward (samples)", bleu = "BLEU, greedy";
        for (const title of [reward, reward, bleu, bleu, "steps", "policy"]) {
          button(title).click();
          out.push([column(), button(title).parentElement.getAttribute("aria-sort")]);
        }
        return out;
    """)  # fmt: skip
    bc, one, two = "BC", "G1 I1", "G1 I2"
    assert told == [
        [[one, two, bc], "descending"],
        [[bc, two, one], "ascending"],
        [[two, bc, one], "descending"],
        [[bc, two, one], "ascending"],
        [[bc, two, one], "descending"],
        [[two, one, bc], "descending"],
    ]


def test_samples_are_searched_ordered_and_filtered(page: Path, tmp_path: Path) -> None:
    told = browse(page, tmp_path, """
        const form = document.querySelector(".samples form").elements;
        const shown = () => [...document.querySelectorAll("article")].filter((card) => card.offsetParent)
          .map((card) => [...card.querySelectorAll(".output")].filter((o) => o.offsetParent).at(-1).textContent);
        const give = (name, value) => {
          form[name].value = value;
          form[name].dispatchEvent(new Event("input", { bubbles: true }));
          return shown();
        };
        const count = () => document.querySelector("form output").value;
        const out = { first: shown().length, count: count() };
        out.best = give("order", "gain -1")[0];
        out.worst = give("order", "reward 1")[0];
        out.found = give("search", "NEW word7");
        out.old = give("policy", "BC");
        give("search", ""); form.more.click();
        return { ...out, all: shown().length, allCount: count(), more: form.more.hidden };
    """)  # fmt: skip
    assert told["first"] == 6 and told["count"] == "6 of 9 shown"
    assert "word8 new" in told["best"] and "word0 new" in told["worst"]
    assert len(told["found"]) == 1 and "word7 new" in told["found"][0]
    assert len(told["old"]) == 1 and "word7 old" in told["old"][0]
    assert (told["all"], told["allCount"], told["more"]) == (9, "9 of 9 shown", True)


def test_text_of_the_data_is_shown_and_never_run(page: Path, tmp_path: Path) -> None:
    told = browse(page, tmp_path, """
        return { text: document.querySelector("article dd").textContent, title: document.title,
                 scripts: document.scripts.length, images: document.images.length,
                 plots: [...document.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect().height) };
    """)  # fmt: skip
    assert told["text"] == HOSTILE
    assert told["title"] == "run" and told["images"] == 0
    assert told["scripts"] == 2  # the page's own, and this test's
    assert len(told["plots"]) >= 2 and min(told["plots"]) > 100
