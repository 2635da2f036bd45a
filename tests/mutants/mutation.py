"""Small changes of a module's source, each of which its tests should notice.

Pure: source text in, mutants out. Must not know how they are judged. The hard thing is to
leave out what no test should pin: the wording of errors, annotations, docstrings. What is left
out is listed, with reasons, in docs/explanation/mutants.md.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST_MUTATED_STRING = 40
"""Longer ones are SQL or prose. What SQL means is changed by hand, in `sql.py`."""

# Only to the side that moves the boundary: the other side is the condition forced true or false.
_BOUNDARIES: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_OPPOSITES: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
}
_DROPPED = (ast.Expr, ast.Raise, ast.AugAssign, ast.Delete, ast.Break, ast.Continue)
_PLACES = (ast.Attribute, ast.Subscript)
_NAMING = {
    "TypeVar",
    "check_text",
    "corrupt",
    "damage",
    "invalid",
    "_damage",
    "_out_of_range",
    "_refuse_length",
    "_unknown_field",
}
"""Calls that are given texts for an error, or for the type checker."""
_CALLS = {"sorted": "list", "min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: where it is, what it was, what it became, and the whole source with it."""

    where: str
    line: int
    before: str
    after: str
    source: str

    @property
    def change(self) -> str:
        """The change as text; it names the mutant, because line numbers move."""
        return f"{self.before} -> {self.after}"


def list_mutants(source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its source."""
    return list(_Mutator(source).walk())


class _Mutator:
    """Walks the tree once; a mutant replaces the text of one node."""

    def __init__(self, source: str) -> None:
        self._source = source.encode()
        self._tree = ast.parse(source)
        starts = [0]
        for line in self._source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self._starts = starts

    def walk(self) -> Iterator[Mutant]:
        yield from self._visit(self._tree, "")

    def _visit(self, node: ast.AST, where: str) -> Iterator[Mutant]:
        for child in _list_children(node):
            inner = where
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{where}.{child.name}".lstrip(".")
            for old, new in _mutate(child):
                yield self._make(old, new, inner or "module")
            yield from self._visit(child, inner)

    def _make(self, old: ast.expr | ast.stmt, new: ast.AST | str, where: str) -> Mutant:
        text = new if isinstance(new, str) else ast.unparse(new)
        start = self._starts[old.lineno - 1] + old.col_offset
        end = self._starts[(old.end_lineno or 0) - 1] + (old.end_col_offset or 0)
        put = text if isinstance(old, ast.stmt) else f"({text})"
        source = self._source[:start] + put.encode() + self._source[end:]
        return Mutant(where, old.lineno, ast.unparse(old), text, source.decode())


_Change = tuple[ast.expr | ast.stmt, ast.AST | str]


def _list_children(node: ast.AST) -> Iterator[ast.AST]:
    """Children that are code, not types, texts or declarations."""
    if isinstance(node, ast.Call) and _makes_error(node):
        return
    if isinstance(node, ast.JoinedStr | ast.arguments):
        # Before Python 3.12 what stands inside an f-string has no place of its own.
        defaults = [*node.defaults, *node.kw_defaults] if isinstance(node, ast.arguments) else []
        yield from (default for default in defaults if default is not None)
        return
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "bases", "type_params"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_left_out(child):
                yield child


def _is_left_out(node: ast.AST) -> bool:
    if isinstance(node, ast.keyword):
        # `frozen` is a declaration, as it is where a decorator says it.
        return node.arg in {"strict", "frozen"}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.annotation, ast.Name) and node.annotation.id == "TypeAlias"
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        # Aliases of types look like subscripts, and are never run for their value.
        return node.targets[0].id == "__all__" or isinstance(node.value, ast.Subscript)
    return False


def _makes_error(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    name = call.func.id if isinstance(call.func, ast.Name) else name
    return name.endswith("Error") or name in _NAMING


def _mutate(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.stmt):
        yield from _mutate_statement(node)
    if isinstance(node, ast.If | ast.IfExp | ast.comprehension):
        tests = node.ifs if isinstance(node, ast.comprehension) else [node.test]
        for test in tests:
            yield test, "True"
            yield test, "False"
    if isinstance(node, ast.expr):
        yield from _mutate_expression(node)


def _mutate_statement(node: ast.stmt) -> Iterator[_Change]:
    # Without a plain name nothing would run; what is assigned inside something may be missed.
    inside = isinstance(node, ast.Assign) and isinstance(node.targets[-1], _PLACES)
    if inside or isinstance(node, _DROPPED):
        yield node, "pass"
    elif isinstance(node, ast.Return) and not isinstance(node.value, ast.Constant | None):
        # A constant is changed for itself.
        yield node, "return None"


def _mutate_expression(node: ast.expr) -> Iterator[_Change]:
    if isinstance(node, ast.BoolOp):
        for left_out in node.values:
            kept = [value for value in node.values if value is not left_out]
            yield node, kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node, node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        kind = type(node.ops[0])
        other = _BOUNDARIES.get(kind) or _OPPOSITES.get(kind)
        if other is not None:
            yield node, ast.Compare(node.left, [other()], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        yield node, ast.BinOp(node.left, _OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.Call):
        yield from _mutate_call(node)
    elif isinstance(node, ast.Constant):
        yield from _mutate_constant(node)


def _mutate_call(node: ast.Call) -> Iterator[_Change]:
    if isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        name = _CALLS[node.func.id]
        keywords = [] if name == "list" else node.keywords
        yield node, ast.Call(ast.Name(name), node.args, keywords)


def _mutate_constant(node: ast.Constant) -> Iterator[_Change]:
    value = node.value
    if isinstance(value, bool):
        yield node, repr(not value)
    elif isinstance(value, int):
        yield node, repr(value + 1)
    elif isinstance(value, str | bytes) and len(value) <= LONGEST_MUTATED_STRING:
        yield node, repr(value + ("~" if isinstance(value, str) else b"~"))  # type: ignore[operator]
