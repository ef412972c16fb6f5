"""The plan of the house: which file may import which, and what may lie in the repository."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A row is a file at the top of rest/ or a whole folder. A file imports only lower rows and, in its own folder, files
# named before it.
ROWS = """
allocator
errors
processes
identity
journal
folder
statistics/{words,moses,correlation,regression,intervals,paired,text_metrics}
data/{lines,ragged,tokenizer,lexicon,synthetic,corpus,files,tfds,iwslt,testsets,survey,shards,known,large,sidecars,store,where,segments,packing,batches,inspect}
ratings/{record,files,rated}
learning/{mesh,pace,returns,divergence,losses,preferences,surrogate,lora,optimizers,depth,checkpoint,apply,learner,train}
model/{network,positions,products,normaliser,attention,layers,flops,transformer,families/hub,families/torch_files,families/files,families/xlmr,families/bert}
model/{families/family,families/bart,families/marian,families/t5,families/m2m100,families/mbart,families/huggingface}
policy/{policy,slots,sampler,beam,value,drawn}
reward/{language,guards,reward,composition,reference_based,ngrams,utility,embedding,consensus,likelihood,trivial,raters,attacks,agreement}
reward/{learned/encoder,learned/sentences,learned/calibration,learned/choice,learned/reading,learned/network,learned/probe,learned/saved,learned/settings,learned/fit}
reward/{published/scorer,published/metricx,published/cometkiwi}
selection
thresholds
grow
columns
improve
baselines/{bc,rollout,settings,updates,ppo}
evaluation/{outputs,chooser,evaluate,compare,best_of_n,exact,mbr,decoding,human}
experiment
stages/{inputs,checks,bc,reward,grow,improve,ppo,evaluation}
report/{tables,plots,sections,data,best_of_n,comparisons,verdict,human,rewards,under_way,pace,page,summary,record,studies,joint,several,paper_figures,paper}
runs
algorithm
plan
study
commands/{names,doctor,flags,reward,human,report,plan,run,study,translate,export,inspect,choices,own,written,init,completion}
__main__
"""


def places(rows: str) -> dict[str, tuple[int, int]]:
    """Maps "rest.data.store" to (row, place in the row); several lines of one folder are one row."""
    found: dict[str, tuple[int, int]] = {}
    numbers: dict[str, int] = {}
    for line in rows.split():
        folder, brace, names = line.partition("{")
        row = numbers.setdefault(folder, len(numbers))
        for name in names.rstrip("}").split(",") if brace else [""]:
            found["rest." + (folder + name).replace("/", ".")] = (row, len(found))
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
        ("reward/learned/network.py", "from rest.policy.policy import Policy", None),
        ("algorithm.py", "from rest.experiment import Experiment", None),
        ("data/store.py", "import json, restful.thing", None),
        ("data/store.py", "from rest import __version__", None),
        ("errors.py", "from rest import folder", "must not import rest.folder"),
        ("data/store.py", "import rest.grow", "must not import rest.grow"),
        ("data/tokenizer.py", "from rest.data.store import Store", "must not import rest.data.store"),
        ("data/tokenizer.py", "from . import store", "must not import rest.data.store"),
        ("data/tokenizer.py", "from ..grow import grow", "must not import rest.grow"),
        ("policy/policy.py", "def f():\n    import rest.reward.learned.fit", "must not import rest.reward.learned.fit"),
        (
            "improve.py",
            "if TYPE_CHECKING:\n    from rest.experiment import E",
            "must not import rest.experiment",
        ),
        ("improve.py", "import_module('rest.algorithm')", "must not import rest.algorithm"),
        ("report/page.py", "import rest.__main__", "must not import rest.__main__"),
        ("data/__init__.py", "from .store import Store", "__init__ imports nothing of rest"),
        ("__init__.py", "from rest.errors import UserError", "__init__ imports nothing of rest"),
        ("grow.py", "from rest import Experiment", "rest.Experiment is in no row"),
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


def test_the_public_names_are_of_modules_in_the_rows() -> None:
    import rest

    assert set(rest._MODULES.values()) <= set(PLACES)
    children = {path.stem for path in (ROOT / "rest").iterdir()}
    assert not children & set(rest._MODULES)


# What a room may know

DEVICES = (
    r"jax[.](local_)?devices|device_put|process_(index|count)|\bMesh\b|_mesh\(|mesh_of|held_rows|addressable"
    r"|(?<![.\w])divide\(|replicated?\("
)
KNOW_DEVICES = (
    "learning/mesh",
    "learning/pace",
    "learning/apply",
    "learning/learner",
    "learning/train",
    "learning/checkpoint",
    "policy/sampler",
)
MERGES = ("model", "learning")
PARAMETERS = ("model", "learning", "policy")


def sources(root: Path) -> Iterator[tuple[str, str]]:
    """Path in rest/ without its ending, and text, of every module."""
    for path in sorted((root / "rest").rglob("*.py")):
        yield path.relative_to(root / "rest").with_suffix("").as_posix(), path.read_text(encoding="utf-8")


def knowing_devices(root: Path) -> list[str]:
    return [name for name, text in sources(root) if re.search(DEVICES, text)]


def merging(root: Path) -> list[str]:
    return [name for name, text in sources(root) if "nnx.merge" in text and name.split("/")[0] not in MERGES]


def passing_parameters(root: Path) -> list[str]:
    """Functions outside model/, learning/ and policy/ that take or return a graph or a tree of parameters."""
    found = []
    for name, text in sources(root):
        if name.split("/")[0] in PARAMETERS:
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            values = (
                [] if isinstance(node, ast.Lambda) else [n.value for n in ast.walk(node) if isinstance(n, ast.Return)]
            )
            parts = [v.elts if isinstance(v, ast.Tuple) else [v] for v in values]
            returned = [v.attr if isinstance(v, ast.Attribute) else v.id for each in parts for v in each
                        if isinstance(v, ast.Attribute | ast.Name)]  # fmt: skip
            words = {argument.arg for argument in given} | set(returned)
            if words & {"graph", "parameters", "params", "graphdef", "state_dict"}:
                found.append(f"{name}, line {node.lineno}")
    return found


def test_what_knows_devices() -> None:
    assert sorted(knowing_devices(ROOT)) == sorted(KNOW_DEVICES)


def test_networks_are_merged_and_parameters_passed_in_their_rooms_alone() -> None:
    assert merging(ROOT) == []
    assert passing_parameters(ROOT) == []


def test_these_checks_see(tmp_path: Path) -> None:
    (tmp_path / "rest" / "model").mkdir(parents=True)
    (tmp_path / "rest" / "model" / "inside.py").write_text("def f(graph): return nnx.merge(graph, parameters)")
    wrong = {
        "a": "def f(graph): ...",
        "b": "def f(self):\n    return self.network.parameters",
        "c": "g = lambda parameters: 0",
        "d": "nnx.merge(x, y)",
        "e": "len(jax.devices())",
        "f": "def f(x):\n    return x, parameters",
    }
    for name, text in wrong.items():
        (tmp_path / "rest" / f"{name}.py").write_text(text)
    assert merging(tmp_path) == ["d"] and knowing_devices(tmp_path) == ["e"]
    assert [line.split(",")[0] for line in passing_parameters(tmp_path)] == ["a", "b", "c", "f"]


def test_no_class_is_two_things() -> None:
    lengths = {
        f"{name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, text in sources(ROOT)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    }
    assert max(lengths.values()) <= 150, max(lengths, key=lambda name: lengths[name])


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
    files = {
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
        "pyproject.toml",
        "constraints.txt",
    }
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
