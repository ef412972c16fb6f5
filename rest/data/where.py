"""Conditions on the rows of a scored dataset: "reward > 0.9 and flags = ''".

A condition is one of Python's: comparisons, `and`, `or`, `not`, `in (...)`, brackets, numbers and quoted text, where
`=` means `==`, and quoting is SQL's: 'it''s'. Names are stored columns, those derived from them (`is_reference`,
`is_sample`, `is_truncated`, `is_flagged`, `length`) and sidecars. Quoted text is normalised as that of the run is. It
is computed by pyarrow on whole columns; nothing is evaluated as Python.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rest.data.corpus import cleaning_of
from rest.data.shards import SCHEMA
from rest.data.store import DERIVE, DERIVED, ScoredDataset
from rest.errors import UserError

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
YES_OR_NO = ("is_reference", "is_sample", "is_truncated", "is_flagged")
_LIKE_SQL = re.compile(r"\b(AND|OR|NOT|IN)\b")
_QUOTED = re.compile(r"""((?:'[^']*')+|(?:"[^"]*")+)""")  # a mark within is written twice, as in SQL


@dataclass(frozen=True)
class Condition:
    """What rows must fulfil."""

    text: str
    tree: ast.expr
    names: tuple[str, ...]  # the columns it looks at

    @classmethod
    def parse(cls, text: str, known: Sequence[str]) -> Condition:
        """UserError, in one sentence, for what is no condition on the columns `known`."""
        parts = _QUOTED.split(text)  # what is quoted stays as it is
        parts[1::2] = [repr(part[1:-1].replace(2 * part[0], part[0])) for part in parts[1::2]]
        parts[::2] = [_LIKE_SQL.sub(lambda word: word[0].lower(), part).replace("<>", "!=") for part in parts[::2]]
        parts[::2] = [re.sub(r"(?<![<>!=])=(?!=)", "==", part) for part in parts[::2]]
        try:
            tree = ast.parse("".join(parts).strip(), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise _refused(text, "it is not a condition like \"reward > 0.9 and flags = ''\"") from error
        names = _check(text, tree, known, as_value=False)
        return cls(text, tree, tuple(dict.fromkeys(names)))

    def holds(self, table: pa.Table) -> np.ndarray:
        """Bool [rows of the table]; a row where a column is null does not fulfil a comparison with it."""
        try:
            found = self._value(self.tree, table)
        except (pa.ArrowException, TypeError) as error:
            raise _refused(self.text, str(error).splitlines()[0]) from error
        return pc.fill_null(found, False).to_numpy()

    def _value(self, node: ast.expr, table: pa.Table) -> Any:
        match node:
            case ast.BoolOp(op=op, values=values):
                found = [self._value(value, table) for value in values]
                join = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
                for other in found[1:]:
                    found[0] = join(found[0], other)
                return found[0]
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return pc.invert(self._value(operand, table))
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [left, *others]
                pairs = [_compare(self._value(a, table), op, self._value(b, table))
                         for a, op, b in zip(sides, ops, others, strict=False)]  # fmt: skip
                for other in pairs[1:]:
                    pairs[0] = pc.and_kleene(pairs[0], other)
                return pairs[0]
            case ast.Name(id=name):
                return DERIVE[name](table[DERIVED[name]]) if name in DERIVED else table[name]
            case _:
                return ast.literal_eval(node)


def _compare(a: Any, op: ast.cmpop, b: Any) -> Any:
    if isinstance(op, ast.In | ast.NotIn):
        found = pc.is_in(a, value_set=pa.array(list(b)).cast(a.type))
        return found if isinstance(op, ast.In) else pc.invert(found)
    return COMPARISONS[type(op)](_like(a, b), _like(b, a))


def _like(value: Any, other: Any) -> Any:
    """A number in the type of the column of float32 that it is compared with, as thresholds are."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    column = isinstance(other, pa.Array | pa.ChunkedArray) and other.type == pa.float32()
    return pa.scalar(float(value), pa.float32()) if plain and column else value


def _check(text: str, node: ast.expr, known: Sequence[str], *, as_value: bool) -> list[str]:
    """The names in a condition, all of whose parts are known to `_value`."""
    match node:
        case ast.BoolOp(values=values) if not as_value:
            return [name for value in values for name in _check(text, value, known, as_value=False)]
        case ast.UnaryOp(op=ast.Not(), operand=operand) if not as_value:
            return _check(text, operand, known, as_value=False)
        case ast.Compare(left=left, ops=ops, comparators=others) if not as_value:
            sides = [left, *others]
            names = [name for side in sides for name in _check(text, side, known, as_value=True)]
            for op, a, b in zip(ops, sides, others, strict=False):
                if isinstance(op, ast.In | ast.NotIn):
                    if not (isinstance(a, ast.Name) and isinstance(b, ast.Tuple | ast.List | ast.Set)):
                        raise _refused(text, "`in` needs a column before it and a list in brackets after it")
                elif type(op) not in COMPARISONS:
                    raise _refused(text, "columns compare with =, !=, <, <=, >, >=, in and not in")
                elif not (isinstance(a, ast.Name) or isinstance(b, ast.Name)):
                    raise _refused(text, "a comparison needs a column on one of its sides")
            return names
        case ast.Name(id=name) if as_value:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                raise _refused(text, f"there is no column {name!r}{hint}; there are {', '.join(known)}")
            return [name]
        case ast.Name(id=name) if not as_value and name in YES_OR_NO:
            return [name]
        case _ if as_value:
            try:
                ast.literal_eval(node)
            except ValueError as error:
                raise _refused(text, f"{ast.unparse(node)!r} is neither a column, a number nor quoted text") from error
            return []
    raise _refused(text, f"{ast.unparse(node)!r} is not a comparison")


def _refused(text: str, why: str) -> UserError:
    return UserError(f"--where {text!r}: {why}")


def rows_where(dataset: ScoredDataset, text: str) -> np.ndarray:
    """Bool [rows]: the rows that fulfil a condition; only the columns that it names are read."""
    lists = ("tokens", "log_probs", "behaviour_log_probs")
    known = [name for name in (*SCHEMA.names, *DERIVED, *dataset.sidecars.names) if name not in lists]
    condition = Condition.parse(text, known)
    spelling = replace(cleaning_of(dataset.folder), collapse_white_space=False)
    for node in ast.walk(condition.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = spelling.line(node.value)
    for name, value in _compared(condition.tree):
        if name in SCHEMA.names and pa.types.is_string(SCHEMA.field(name).type) != isinstance(value, str):
            kind = "text, compared with quotes" if not isinstance(value, str) else "a number, compared without quotes"
            hint = "; no flag is flags = ''" if name == "flags" else ""
            raise _refused(text, f"{name} is {kind}{hint}")
    stored = list(dict.fromkeys(DERIVED.get(name, name) for name in condition.names))
    parts = [condition.holds(batch) for batch in dataset.batches(stored)]
    return np.concatenate(parts) if parts else np.zeros(dataset.rows, bool)


def _compared(tree: ast.expr) -> list[tuple[str, Any]]:
    """Every column and the constant that it is compared with."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for a, b in pairwise(sides):
                for name, value in ((a, b), (b, a)):
                    if isinstance(name, ast.Name) and not isinstance(value, ast.Name):
                        constant = ast.literal_eval(value)
                        values = constant if isinstance(constant, tuple | list | set) else [constant]
                        found += [(name.id, one) for one in values]
    return found
