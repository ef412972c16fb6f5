"""The documentation builds, its Python runs, and its flags are there."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rest import __version__
from rest.__main__ import main
from rest.baselines.settings import METRICS
from rest.commands.names import COMMANDS
from rest.experiment import import_file, load_experiment
from rest.folder import read_json

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "docs" / "notebooks"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "extend").glob("*.md")), ROOT / "README.md"]


def blocks(page: Path) -> list[str]:
    """The Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)


def run_block(block: str, page: Path) -> dict:
    """What the block defines."""
    names: dict = {"__name__": "block"}
    exec(compile(block, str(page), "exec"), names)
    return names


def script_of(name: str):
    """A script of scripts/ as a module, which is not run; it finds the modules beside it as if it were."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return import_file(ROOT / "scripts" / f"{name}.py")
    finally:
        sys.path.pop(0)


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path):
    """All is read and every reference resolved; only the writing of HTML is left out."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "dummy", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    """All but the script, which has a test of its own, and the lines that open published models, which are not here.

    They print what the page says that they print.
    """
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if "rest.run(" not in block:
            run_block(re.sub(r"^reward = Reward\((MetricX|CometKiwi)\(.*\n", "", block, flags=re.M), page)
    printed = re.findall(r"^It prints\n\n```text\n(.*?)^```", page.read_text(), re.S | re.M)
    assert not printed or "".join(printed) == capsys.readouterr().out


def test_the_results_are_those_of_the_experiments():
    for path, text in script_of("make_results").written().items():
        assert path.read_text() == text, f"{path.name} is old: python scripts/make_results.py"


def test_the_pictures_are_those_that_are_drawn():
    drawing = script_of("draw_loop")
    for name, colours in drawing.COLOURS.items():
        assert (drawing.FOLDER / f"loop-{name}.svg").read_text() == drawing.loop(colours)


def test_the_readme_is_two_screens_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    linked = re.findall(r'(?:\]\(|src="|srcset="|href=")(?!https?:)([^)"#]+)', text)
    assert len(linked) > 10 and not [path for path in linked if not (ROOT / path).exists()]


def test_what_ppo_reports_is_explained():
    text = (ROOT / "docs" / "ppo.md").read_text()
    assert [name for name in METRICS if f"| `{name}` |" not in text] == []


def test_the_version_to_cite():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


# The script of the README improves a published model. The test runs it with these in place of what is there once.
SMALLER = {
    "Helsinki-NLP/opus-mt-de-en": "published",
    "samples_per_source=16": "samples_per_source=3, sources=16",
    "max_steps=500, evaluate_every=100": "max_steps=4, evaluate_every=4",
    "choose=": "batch=rest.BatchSettings(512, 64, 64), sampling=rest.SamplingSettings(max_target_tokens=12), "
    "evaluation=rest.EvaluationSettings(samples_per_source=2, kl_sources=8, bc_temperatures=(), ceiling_samples=0), "
    "machine=rest.MachineSettings(rows=24), choose=",
}


@pytest.fixture(scope="module")
def script() -> str:
    """The Python script of the README."""
    [found] = [block for block in blocks(ROOT / "README.md") if "rest.run(" in block]
    return found


def test_the_script_of_the_readme_is_short(script):
    assert len([line for line in script.splitlines() if line]) <= 20


@pytest.mark.slow
def test_the_script_of_the_readme_runs(script, lively, corpus, tmp_path, monkeypatch, capsys):
    """From the first line to the last, which prints a translation."""
    monkeypatch.chdir(tmp_path)
    lively.save(tmp_path / "bc" / "policy")
    main(["export", ".", "--format", "huggingface", "--out", "published"])
    for name, split in (("train", corpus.train), ("dev", corpus.dev), ("test", corpus.test)):
        some = split.take(slice(16))
        for side, lines in (("de", some.sources), ("en", some.references)):
            (tmp_path / f"{name}.{side}").write_text("\n".join(lines) + "\n")
    for there, smaller in SMALLER.items():
        assert script.count(there) == 1, there
        script = script.replace(there, smaller)
    capsys.readouterr()
    names = run_block(script, ROOT / "README.md")
    printed = eval(capsys.readouterr().out.strip().splitlines()[-1])
    assert len(printed) == 1 and isinstance(printed[0], str)
    rows = read_json(names["run"].out / "summary.json")
    sampled = [row for row in rows if row["decode"] == "sample"]
    assert [row["policy"] for row in sampled if row["policy"] in ("bc", "bc_continued")] == ["bc", "bc_continued"]
    improved = [(row["grow"], row["improve"]) for row in sampled if row["policy"] == "rest"]
    assert improved == [(1, 0), (1, 1), (1, 2)]
    assert (tmp_path / "runs" / "mine" / "report.html").exists()


@pytest.mark.slow
def test_a_notebook_shows_what_grow_wrote(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(finished)
    again = script_of("run_notebooks").run(read_json(NOTEBOOKS / "look_at_a_grow.ipynb"))
    shown = [output.get("data", {}) for cell in again["cells"] for output in cell.get("outputs", [])]
    assert any("image/png" in data for data in shown)
    assert any("best_sample" in "".join(data.get("text/plain", [])) for data in shown)


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_hold_what_running_them_showed(notebook):
    """Running them takes a minute; whoever changes a cell runs scripts/run_notebooks.py, which numbers the cells."""
    cells = [cell for cell in read_json(notebook)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell["outputs"]) for cell in cells) >= 4
    for cell in cells:
        compile("".join(cell["source"]), str(notebook), "exec")


@pytest.mark.slow
def test_the_experiment_of_the_tutorial(tmp_path, monkeypatch):
    """The text and ratings of the tutorial are written, and its experiment, of few imports, reads them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made-up").mkdir()
    page = ROOT / "docs" / "tutorial.md"
    data, experiment = re.findall(r"<<'END'\n(.*?)^END", page.read_text(), re.S | re.M)
    imports = re.findall(r"^(?:from|import) .*", experiment, re.M)
    assert len(imports) <= 8
    assert data.count("train=4000") == 1
    run_block(data.replace("train=4000", "train=400"), page)
    path = tmp_path / "made-up" / "experiment.py"
    path.write_text(experiment)
    settings = load_experiment(str(path))
    assert len(settings.corpus.load(settings.cleaning).train) == 400
    assert len(settings.reward.ratings[0].load().scores) > 1000


# Flags of other programs, and of a corpus and a reward that are not the demo's
ELSEWHERE = {
    "--constraint",
    "--editable",
    "--model",
    "--output_dir",
    "--corpus.directory",
    "--corpus.folder",
    "--echo",
    "--array",
    "--processes",
    "--devices",
    *"--rm --volume --workdir --user --env --gpus".split(),  # Docker's
}


@pytest.mark.slow
def test_flags_are_there(capsys):
    """Every flag that a page names is one of some command's."""
    demo = str(ROOT / "experiments" / "synthetic.py")
    known = set(ELSEWHERE)
    for command in COMMANDS:
        for arguments in ([], [demo], ["module:function", "mqm"]):
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown), contextlib.suppress(SystemExit):
                main([*command.split(), *arguments, "--help-all" if arguments == [demo] else "--help"])
            known |= set(re.findall(r"--[a-z][\w.-]*\w", shown.getvalue()))
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", page.read_text()))
        assert named <= known, f"{page.name}: {sorted(named - known)}"
