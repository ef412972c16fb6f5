"""Check a JobSet against the schema of its kind, with unknown fields refused.

    kubectl get crd jobsets.jobset.x-k8s.io -o yaml > definition.yaml
    python scripts/launch/check_jobset.py definition.yaml scripts/launch/gke-jobset.yaml

The first file, which may be gzipped, is JobSet's CustomResourceDefinition. It ends with status 1 and a line for each
thing that is wrong.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
}  # fmt: skip


def wrong(value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
    """What of a value the schema does not allow, each with its place."""
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{at}: {value!r} is neither a number nor text"
        return
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{at}: {value!r} is not of type {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    if isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{at}: {value} is too small or too large"
    if isinstance(value, dict):
        fields, others = schema.get("properties", {}), schema.get("additionalProperties")
        missing = [name for name in schema.get("required", ()) if name not in value]
        yield from (f"{at}: {name} is missing" for name in missing)
        for name, part in value.items():
            if name in fields or isinstance(others, dict):
                yield from wrong(part, fields.get(name, others), f"{at}.{name}")
            elif fields and not schema.get("x-kubernetes-preserve-unknown-fields"):
                yield f"{at}: no field {name!r}; there are {', '.join(fields)}"
    if isinstance(value, list):
        for n, part in enumerate(value):
            yield from wrong(part, schema.get("items", {}), f"{at}[{n}]")


def main(definition: Path, path: Path) -> int:
    data = definition.read_bytes()
    spec = yaml.safe_load(gzip.decompress(data) if definition.suffix == ".gz" else data)["spec"]
    versions = {f"{spec['group']}/{each['name']}": each["schema"]["openAPIV3Schema"] for each in spec["versions"]}
    found = []
    for document in yaml.safe_load_all(path.read_text()):
        if document.get("apiVersion") not in versions:
            found.append(f"apiVersion: {document.get('apiVersion')!r} is none of {list(versions)}")
        else:
            found += wrong(document, versions[document["apiVersion"]], document.get("kind", ""))
    print(*found, sep="\n") if found else print(f"{path}: nothing is wrong")
    return bool(found)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    raise SystemExit(main(*map(Path, sys.argv[1:])))
