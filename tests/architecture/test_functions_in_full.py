"""SQL means functions and operators of the server where others could be taken for them.

Of two functions with one name PostgreSQL takes the one whose arguments fit better, wherever on the
search path it is. A function of any type is a worse fit than one that somebody made for the very
type; it would run with the rights of whoever reads the log.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import oplog

pytestmark = pytest.mark.architecture

ROOT = Path(oplog.__file__).parent
OF_ANY_TYPE = (
    *("array_agg", "array_append", "array_cat", "array_fill", "array_length", "array_lower"),
    *("array_ndims", "array_position", "array_remove", "array_to_string", "cardinality", "concat"),
    *("concat_ws", "format", "json_agg", "jsonb_agg", "jsonb_build_array", "jsonb_build_object"),
    *("lag", "lead", "num_nonnulls", "num_nulls", "pg_column_size", "pg_typeof", "row_to_json"),
    *("to_json", "to_jsonb", "unnest"),
)
UNQUALIFIED = re.compile(rf"(?<![\w.\"])({'|'.join(OF_ANY_TYPE)})\(")
OF_OIDS = (
    *("castfunc", "conparentid", "grantee", "grantee_oid", "relfilenode", "tgparentid", "typelem"),
    *("typrelid", "typbasetype"),
)
UNTYPED = re.compile(rf"\b({'|'.join(OF_OIDS)})(?: = | <> |, )[0-9]+(?!::)")
"""An oid that is compared with an integer: an operator of these two types would fit better."""
PINNED = ("schema",)
"""Functions of the log, whose search path is fixed."""


def list_texts(path: Path) -> list[str]:
    """String constants of a module, without docstrings."""
    tree = ast.parse(path.read_text())
    told = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told
    ]


def test_functions_of_any_type_are_named_in_full() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).parts[0] not in PINNED
        for text in list_texts(path)
        for name in UNQUALIFIED.findall(text)
    ]
    assert found == []


def test_oids_are_compared_with_oids() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted(ROOT.rglob("*.py"))
        for text in list_texts(path)
        for name in UNTYPED.findall(text)
    ]
    assert found == []
