"""A run's numbers for the record: with the command, the commit and the versions that made them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rest import __version__
from rest.folder import newest_evaluations, read_json, stages_in

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "sacrebleu", "sentencepiece")
POINTS = (1, 2, 4, 8, 10, 16, 32, 64, 128, 256)  # what is kept of a curve over N


def made_with(command: str) -> dict[str, Any]:
    """How and where numbers were made."""
    return {
        "command": command,
        "version": __version__,
        "commit": _commit(),
        "machine": {"processors": os.cpu_count(), "python": platform.python_version()},
        "packages": {package: version(package) for package in PACKAGES},
    }


def _commit() -> str | None:
    """Of a clone of the project that this runs in; None where it is installed, whatever repository it lies in."""
    root = Path(__file__).resolve().parents[2]
    ask = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    try:
        said = subprocess.run(ask, cwd=root, capture_output=True, text=True)
    except OSError:  # there is no git
        return None
    top, *commit = said.stdout.split("\n") if said.returncode == 0 else [""]
    return commit[0] if commit and Path(top) == root else None


def without_paths(settings: Any) -> Any:
    """The settings with only the last part of a path: where text lay is nobody's concern."""
    if isinstance(settings, dict):
        return {without_paths(key): without_paths(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [without_paths(value) for value in settings]
    return Path(settings).name if isinstance(settings, str) and settings.startswith("/") else settings


def record_of(run: Path) -> dict[str, Any]:
    """A run's rows, what its stages reported, its policies in pairs, and the curves of the best of N."""
    stages = {name.folder: run / name.folder / "stage.json" for name in stages_in(run)}
    curves = {
        path.parent.relative_to(run / "evaluation").as_posix(): {
            kind: _thinned(found) for kind, found in read_json(path)["result"].items() if isinstance(found, dict)
        }
        for path in sorted(run.glob("evaluation/best-of-*/[!.]*/stage.json"))
    }
    paired = {
        path.parent.name: read_json(path)["result"]["tests"]
        for path in sorted(newest_evaluations(run).glob("[!.]*-against-*/stage.json"))
    }
    return {
        **({"rows": read_json(summary)} if (summary := run / "summary.json").exists() else {}),
        "stages": {name: read_json(path)["result"] for name, path in stages.items()},
        **({"paired": paired} if paired else {}),
        **({"best_of_n": curves} if curves else {}),
    }


def _thinned(curves: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Of each curve [mean, low, high] at some N: all of them are thousands of numbers."""
    return {
        metric: {
            str(n): [round(curve[key][n - 1], 5) for key in ("mean", "lo", "hi")]
            for n in POINTS
            if n <= len(curve["mean"])
        }
        for metric, curve in curves.items()
    }
