"""Several runs on one page: what each showed, one figure and one table of all their policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from rest.errors import UserError
from rest.folder import read_json
from rest.report import comparisons, plots
from rest.report.sections import Section
from rest.report.studies import figure, lines_of, section
from rest.report.verdict import advice, verdict


def write_comparison(runs: Sequence[Path], page: Path) -> Section:
    """Writes the page; UserError for a run that has no summary.json."""
    names = short_names(runs)
    for run in runs:
        if not (run / "summary.json").is_file():
            raise UserError(f"{run}: has no summary.json; `rest report {run}` writes it")
    rows = {name: read_json(run / "summary.json") for name, run in zip(names, runs, strict=True)}
    lines = lines_of({(name, _seed(run)): rows[name] for name, run in zip(names, runs, strict=True)}, every=True)
    said = []
    for name, run in zip(names, runs, strict=True):
        compared = comparisons.read(run)
        said += [f"{name}: {verdict(rows[name], 'test', compared)[0]} {advice(rows[name], 'test', compared)}"]
    table = section(lines).tables[0]
    caption = "Every policy of every run: the number, and its 95% interval over sources."
    found = Section(f"{len(runs)} runs", said, [table], [(figure(lines), "runs", caption)])
    write_page(found, page)
    return found


def write_page(section: Section, page: Path) -> None:
    """A page of one section, which stands by itself."""
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["svg"] = plots.svg
    environment.globals.update(STANDS={}, SAMPLES_OPEN=0, ORDERS={})
    text = environment.get_template("several.html.jinja").render(
        section=section,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        script=Markup((here / "page.js").read_text(encoding="utf-8")),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def short_names(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of their paths by which they differ."""
    parts = [run.resolve().parts for run in runs]
    for count in range(1, 1 + max(map(len, parts))):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{runs[0]}: is named twice")


def _seed(run: Path) -> int:
    path = run / "experiment.json"
    return int(read_json(path).get("seed", 0)) if path.is_file() else 0
