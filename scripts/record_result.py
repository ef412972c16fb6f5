"""Keeps a run's numbers for the record: python scripts/record_result.py RUN NAME "COMMAND" [AGREEMENT.json ...].

Writes experiments/results/NAME.json: the command, the commit, versions, the settings, every row of summary.json, the
curves of `rest best-of-n`, and what `rest reward evaluate --out AGREEMENT.json` measured.
Run it in a clean checkout of the commit that made the run.
"""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "sacrebleu", "sentencepiece")
ROOT = Path(__file__).resolve().parent.parent


def made_with(command: str) -> dict[str, Any]:
    """What a record begins with: how and where its numbers were made."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        "command": command,
        "commit": commit.stdout.strip(),
        "machine": {"processors": os.cpu_count(), "python": platform.python_version()},
        "packages": {package: version(package) for package in PACKAGES},
    }


def without_paths(settings: object) -> object:
    """The settings with only the last part of a path: where text lay is nobody's concern."""
    if isinstance(settings, dict):
        return {without_paths(key): without_paths(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [without_paths(value) for value in settings]
    return Path(settings).name if isinstance(settings, str) and settings.startswith("/") else settings


def thinned(curves: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Of each curve [mean, low, high] at some N: all of them are thousands of numbers."""
    return {
        metric: {
            str(n): [round(curve[key][n - 1], 5) for key in ("mean", "lo", "hi")]
            for n in (1, 2, 4, 8, 10, 16, 32, 64, 128, 256)
            if n <= len(curve["mean"])
        }
        for metric, curve in curves.items()
    }


def main(run: Path, name: str, command: str, *agreements: str) -> None:
    record = {
        **made_with(command),
        "settings": without_paths(json.loads((run / "experiment.json").read_text())),
        "reward": json.loads((run / "reward" / "stage.json").read_text())["result"]
        if (run / "reward").exists()
        else None,
        "refreshed": {
            path.name: json.loads((path / "stage.json").read_text())["result"] for path in sorted(run.glob("reward-*"))
        },
    }
    for path in sorted(run.glob("evaluation/best-of-*/*/stage.json")):
        curves = json.loads(path.read_text())["result"]
        of_policies = record.setdefault(path.parent.parent.name, {})
        of_policies[path.parent.name] = {kind: thinned(found) for kind, found in curves.items()}
    if (run / "summary.json").exists():
        record["rows"] = json.loads((run / "summary.json").read_text())
    if agreements:
        record["agreement"] = [without_paths(json.loads(Path(path).read_text())) for path in agreements]
    target = ROOT / "experiments" / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(target)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *sys.argv[2:])
