"""The plan of the house: which file may import which, and what may lie in the repository."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A file imports only lower rows and, in its own row, files named before it.
ROWS = """
0 allocator errors journal stage thresholds evaluation/{statistics,significance,text_metrics}
0 learning/{mesh,returns,divergence,losses,preferences,surrogate}
1 data/{tokenizer,synthetic,corpus,ratings,rating_files,shards,store,where,batches,inspect}
2 model/{positions,normaliser,transformer,lora,folder,xlmr,huggingface} learning/{checkpoint,train}
3 policy/{policy,slots,sampler,beam} learning/value
3 reward/{language,guards,reward,calibration,composition,reference_based,trivial}
3 reward/{encoder,learned,scorer,metricx,cometkiwi}
3 reward/{raters,attacks,rated,fit,agreement}
4 grow evaluation/{outputs,evaluate,compare,best_of_n,mbr,decoding,human}
5 columns improve baselines/{bc,rollout,ppo}
6 experiment
7 inputs algorithm report/{tables,plots,sections,best_of_n,comparisons,human,rewards,under_way,page,summary}
7 report/{judging,translate}
8 __main__
"""


def places(rows: str) -> dict[str, tuple[int, int]]:
    """Maps "rest.data.store" to (row, place in the row)."""
    found: dict[str, tuple[int, int]] = {}
    for line in rows.strip().splitlines():
        row, *groups = line.split()
        for group in groups:
            folder, brace, names = group.partition("{")
            for name in names.rstrip("}").split(",") if brace else [""]:
                found["rest." + (folder + name).replace("/", ".")] = (int(row), len(found))
    return found


PLACES = places(ROWS)


def module_name(path: Path, root: Path) -> str:
    """Names rest/data/store.py "rest.data.store" and rest/data/__init__.py "rest.data"."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of every import, wherever it stands, relative ones resolved in `package`."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield node.lineno, alias.name
            case ast.ImportFrom():
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield node.lineno, f"{base}.{alias.name}"
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
                match node.args:
                    case [ast.Constant(value=str(name)), *_]:
                        yield node.lineno, name


def forbidden_arrows(root: Path) -> list[str]:
    """Lists every import in root/rest that the rows forbid, and every file that has no row."""
    wrong = []
    for path in sorted((root / "rest").rglob("*.py")):
        name = module_name(path, root)
        is_package = path.name == "__init__.py"
        if not is_package and name not in PLACES:
            wrong.append(f"{name} is in no row")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for line, target in imported_names(tree, name if is_package else name.rpartition(".")[0]):
            if target.split(".")[0] != "rest" or (target == "rest.__version__" and not is_package):
                continue
            # What is imported is a module, or something in one.
            module = next((m for m in (target, target.rpartition(".")[0]) if m in PLACES), None)
            if is_package:
                wrong.append(f"{name}, line {line}: a package's __init__ imports nothing of rest")
            elif module is None:
                wrong.append(f"{name}, line {line}: {target} is in no row")
            elif module == name or not allowed(PLACES[name], PLACES[module]):
                wrong.append(f"{name}, line {line}: must not import {module}")
    return wrong


def allowed(importer: tuple[int, int], imported: tuple[int, int]) -> bool:
    """Rows and places are compared in turn: a lower row, or the same row and named before."""
    return imported < importer


def test_rows_are_kept() -> None:
    assert forbidden_arrows(ROOT) == []


@pytest.mark.parametrize(
    ("path", "line", "wrong"),
    [
        ("grow.py", "from rest.data.store import Store", None),
        ("data/store.py", "from rest.errors import UserError", None),
        ("data/store.py", "from rest.data import tokenizer", None),
        ("reward/learned.py", "from rest.policy.policy import Policy", None),
        ("algorithm.py", "from rest.experiment import Experiment", None),
        ("data/store.py", "import json, restful.thing", None),
        ("data/store.py", "from rest import __version__", None),
        ("errors.py", "from rest import stage", "must not import rest.stage"),
        ("data/store.py", "import rest.grow", "must not import rest.grow"),
        ("data/tokenizer.py", "from rest.data.store import Store", "must not import rest.data.store"),
        ("data/tokenizer.py", "from . import store", "must not import rest.data.store"),
        ("data/tokenizer.py", "from ..grow import grow", "must not import rest.grow"),
        ("policy/policy.py", "def f():\n    import rest.reward.fit", "must not import rest.reward.fit"),
        (
            "improve.py",
            "if TYPE_CHECKING:\n    from rest.experiment import E",
            "must not import rest.experiment",
        ),
        ("improve.py", "import_module('rest.algorithm')", "must not import rest.algorithm"),
        ("report/page.py", "import rest.__main__", "must not import rest.__main__"),
        ("data/__init__.py", "from .store import Store", "__init__ imports nothing of rest"),
        ("__init__.py", "from rest.errors import UserError", "__init__ imports nothing of rest"),
        ("data/store.py", "from rest.nowhere import x", "rest.nowhere.x is in no row"),
        ("reward/extra.py", "", "rest.reward.extra is in no row"),
    ],
)
def test_the_check_sees(tmp_path: Path, path: str, line: str, wrong: str | None) -> None:
    file = tmp_path / "rest" / path
    file.parent.mkdir(parents=True)
    file.write_text(line)
    found = forbidden_arrows(tmp_path)
    assert len(found) == (wrong is not None)
    assert wrong is None or wrong in found[0]


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Paths of the files that git tracks, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip(f"git cannot read the checkout: {listing.stderr.strip()}")
    return [path for path in listing.stdout.split("\0") if path and (ROOT / path).is_file()]


def test_top_level(tracked: list[str]) -> None:
    folders = {"rest", "experiments", "tests", "scripts", "docs"}
    files = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "constraints.txt"}
    strays = [
        path
        for path in tracked
        if not path.startswith(".") and (path.split("/")[0] not in folders if "/" in path else path not in files)
    ]
    assert strays == []


def test_no_addresses_and_no_machine_paths(tracked: list[str]) -> None:
    registry = r"\bpypi[.]|pythonhosted[.]org|download[.]pytorch[.]org|(extra-)?index-ur[l]|find-link[s]"
    machine = r"(?<![\w.}$])/(home|root|Users|work)/"
    pattern = re.compile(f"{registry}|{machine}")
    found = []
    for path in tracked:
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:  # an image, or another file that is not text
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path}:{number}: {line.strip()[:100]}")
    assert found == []
