"""The public names: each can be had from `rest`, none hides a module, and `import rest` costs nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

import rest

ROOT = Path(__file__).resolve().parent.parent
NAMES = [name for name in rest.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_what_its_module_defines(name):
    found = getattr(rest, name)
    if hasattr(found, "__qualname__"):  # a class or function, and no constant
        assert (found.__module__, found.__qualname__) == (rest._MODULES[name], name)


def test_names_stand_once():
    names = [name for names in rest._NAMES.values() for name in names.split()]
    assert len(names) == len(set(names))


def test_no_public_name_is_that_of_a_module_or_folder():
    modules = {path.stem for path in (ROOT / "rest").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {"grow", "data", "thresholds"} < modules
    assert modules.isdisjoint(rest.__all__)


def test_dir_lists_them_and_another_name_is_refused():
    assert set(rest.__all__) <= set(dir(rest))
    with pytest.raises(AttributeError, match="module 'rest' has no attribute 'Experimant'"):
        rest.Experimant  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Experimant'"):
        from rest import Experimant  # noqa: F401


def test_importing_rest_imports_nothing_large():
    script = "import sys, rest; print([m for m in sys.modules if m.startswith('rest')], len(sys.modules))"
    script += "; sys.exit(bool({'jax', 'tyro', 'numpy', 'rich', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("['rest']")


def test_a_name_imports_only_what_it_needs():
    script = "import sys; from rest import UserError, StageName; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
