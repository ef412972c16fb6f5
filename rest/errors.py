"""What a user did wrong, said in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class UserError(Exception):
    """A mistake in the input, a setting or a file: the command prints its one sentence and exits with status 1.

    The sentence names the file, the line or the field, and the value.
    """


def refuse_below(where: str, settings: Any, least: Mapping[str, int | float]) -> None:
    """UserError for the first field of the settings that is no number from its least on; None is none to look at."""
    for name, low in least.items():
        value = getattr(settings, name)
        if value is not None and not (math.isfinite(value) and value >= low):
            raise UserError(f"{where}{name} must be at least {low:g}, not {value}")


def refuse_shares(where: str, settings: Any, *names: str) -> None:
    """UserError for the first field of the settings that is not from 0 to below 1."""
    for name in names:
        if not 0 <= getattr(settings, name) < 1:
            raise UserError(f"{where}{name} must be at least 0 and below 1, not {getattr(settings, name)}")


def check_seed(seed: int, name: str = "seed") -> int:
    """The seed, if random generators of 32 bits can start from it."""
    if not 0 <= seed < 2**32:
        raise UserError(f"{name} must be from 0 to {2**32 - 1}, not {seed}")
    return seed
