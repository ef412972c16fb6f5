"""What settings are known by: JSON that two of them share exactly when they decide the same."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import re
import threading
from pathlib import Path
from typing import Any

from rest.errors import UserError


def describe(value: Any) -> Any:
    """Settings as JSON: a dataclass by its qualified name and fields, a function by name and hash of its source.

    A function is also known by what it has captured and by its defaults, a method by its object, and any other object
    by its class and what it was made from. UserError for what can be told by none of these.
    """
    if id(value) in _KNOWN:
        return _KNOWN[id(value)][1]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((describe(item) for item in value), key=json.dumps)
    if isinstance(value, functools.partial):
        return {"partial": describe(value.func), "arguments": describe(value.args), **describe(value.keywords)}
    if isinstance(value, re.Pattern):
        return {"pattern": describe(value.pattern), "flags": value.flags}
    if callable(value):
        return _callable(value)
    if isinstance(value, Path) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else _object(value)


_KNOWN: dict[int, tuple[Any, Any]] = {}  # by its id: an object, which is kept, and what it is known by


def remember(value: Any) -> None:
    """From here on the object is known by what it is now, and not by what it remembers later.

    One that has an identity of its own is left to it; one that cannot be told from another is refused when it is to be
    known.
    """
    if id(value) not in _KNOWN and getattr(type(value), "identity", None) is None:
        with contextlib.suppress(UserError):
            _KNOWN[id(value)] = value, describe(value)


def _callable(value: Any) -> dict[str, Any]:
    function = value if hasattr(value, "__qualname__") else type(value)
    name = f"{getattr(function, '__module__', 'builtins')}:{function.__qualname__}"  # str.lower has no module
    if isinstance(identity := getattr(value, "identity", None), str):
        return {"function": name, "identity": identity}
    try:
        own: Any = function.__func__ if inspect.ismethod(function) else function
        source = _source_of(own)
    except (OSError, TypeError) as error:
        raise UserError(f"{name}: has no Python source to know it by; use a function in a file") from error
    if inspect.ismethod(value):
        inside = {"self": value.__self__}
    elif function is not value:
        inside = _made_from(value)
    else:
        inside = {**inspect.getclosurevars(value).nonlocals, **_defaults(value)} if inspect.isfunction(value) else {}
        if not inspect.isfunction(value) and hasattr(value, "__wrapped__"):  # functools.lru_cache
            inside = {"wrapped": value.__wrapped__}
    return {"function": name, "source_sha256": source, **_each(name, inside)}


@functools.lru_cache(256)
def _source_of(function: Any) -> str:
    """Sha256 of the source of a function or class; to find it, Python parses the whole file that it stands in."""
    own = getattr(function, "__code__", function)  # of a decorated function, not of what it decorates
    return hashlib.sha256(inspect.getsource(own).encode()).hexdigest()


def _defaults(function: Any) -> dict[str, Any]:
    """What arguments are where they are not given: one source makes several functions that differ in these alone."""
    parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _object(value: Any) -> dict[str, Any]:
    """Of an object that is neither plain nor a setting: its class, and what it holds."""
    kind = type(value)
    name, known = f"{kind.__module__}.{kind.__qualname__}", {}
    if isinstance(value, type(threading.Lock()) | type(threading.RLock())):  # holds nothing that decides anything
        return {"type": name}
    if getattr(getattr(value, "dtype", None), "hasobject", False):  # an array of Python objects
        return {"type": name, "shape": str(value.shape), "values": describe(value.tolist())}
    if isinstance(value, bytes | bytearray) or hasattr(value, "tobytes"):  # an array
        content = value if isinstance(value, bytes | bytearray) else value.tobytes()
        shape = {key: str(getattr(value, key)) for key in ("dtype", "shape") if hasattr(value, key)}
        return {"type": name, **shape, "sha256": hashlib.sha256(content).hexdigest()}
    if hasattr(value, "__dict__"):
        with contextlib.suppress(OSError, TypeError):  # of C there is no source
            own: Any = kind
            known["source_sha256"] = _source_of(own)
        return {"type": name, **known, **_each(name, _made_from(value))}
    if " at 0x" in repr(value):
        raise TypeError(f"a {kind.__qualname__} has nothing to be told by")
    return {"type": name, "repr": repr(value)}


def _made_from(value: Any) -> dict[str, Any]:
    """The attributes that are named like the arguments of the constructor; all of them, where an argument has none."""
    arguments = list(inspect.signature(type(value).__init__).parameters.values())[1:]
    own = dict(vars(value)) if hasattr(value, "__dict__") else {}
    if type(value).__init__ is object.__init__:
        return {}
    found = [next((name for name in (a.name, f"_{a.name}") if name in own), None) for a in arguments]
    return own if None in found else {str(name): own[str(name)] for name in found}


def _each(name: str, inside: dict[str, Any]) -> dict[str, Any]:
    """What an object or a function holds, by name."""
    found = {}
    for key, part in inside.items():
        try:
            found[key] = describe(part)
        except (TypeError, ValueError, RecursionError, UserError) as error:
            raise UserError(
                f"{name}: keeps {key!r}, a {type(part).__name__}, by which it cannot be told from another; "
                "give it an `identity`, a text that changes when its results do"
            ) from error
    return found
