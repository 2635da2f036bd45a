"""Mutation testing itself: what is changed and what is not, and that explanations are no excuse."""

from __future__ import annotations

import ast
from textwrap import dedent

import pytest

from tests.mutants.explanation import FILE, read_explanations
from tests.mutants.judge import locate
from tests.mutants.mutation import Mutant, list_mutants
from tests.mutants.sql import CHANGES, list_sql_mutants
from tests.mutants.target import TARGETS, Target

pytestmark = pytest.mark.unit


def read_mutants(target: Target) -> tuple[str, list[Mutant]]:
    source = locate(target.module).read_text(encoding="utf-8")
    if target.by_hand:
        return source, list_sql_mutants(target.name, source)
    return source, list_mutants(source)


def changes(source: str) -> list[str]:
    return [mutant.change for mutant in list_mutants(dedent(source))]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a = b < c", ["b < c -> b <= c"]),
        ("a = b is None", ["b is None -> b is not None"]),
        ("a = not b", ["not b -> b"]),
        ("a = b and c", ["b and c -> c", "b and c -> b"]),
        ("a = sorted(b, key=c)", ["sorted(b, key=c) -> list(b)"]),
        ("a.b = c", ["a.b = c -> pass"]),
        ("a += b", ["a += b -> pass"]),
        ("a = 1", ["1 -> 2"]),
        ("a = True", ["True -> False"]),
        ("a = 'b'", ["'b' -> 'b~'"]),
        ("a = b if c else d", ["c -> True", "c -> False"]),
        ("a = [b for b in c if d]", ["d -> True", "d -> False"]),
        ("if a: b()", ["a -> True", "a -> False", "b() -> pass"]),
        ("while a: break", ["break -> pass"]),
        ("def a(): return b", ["return b -> return None"]),
        ("def a(): return False", ["False -> True"]),
        ("def a():\n    raise b", ["raise b -> pass"]),
        ("class A:\n    @property\n    def a(self): return b", ["return b -> return None"]),
    ],
)
def test_what_is_changed(source: str, expected: list[str]) -> None:
    assert changes(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "'A docstring.'",
        "from a import b",
        "def a(b: 'c' = d) -> 'e': ...",
        "A: TypeAlias = dict['b', 'c']",
        "A = dict['b', 'c']",
        "a = AnError('text', hint='text')",
        "a = corrupt(b, 'text')",
        "a = f'text {b + 1}'",
        "@a(b=True)\nclass C: ...",
        "class A(B, frozen=True): ...",
        "a = zip(b, c, strict=True)",
        f"a = {'x' * 41!r}",
    ],
)
def test_what_is_left_alone(source: str) -> None:
    assert changes(source) == []


def test_mutants_are_python_and_differ() -> None:
    for name in ("cursor", *CHANGES):
        (target,) = (target for target in TARGETS if target.name == name)
        source, mutants = read_mutants(target)
        assert all(ast.parse(mutant.source) for mutant in mutants)
        assert source not in {mutant.source for mutant in mutants}


def test_a_mutant_is_named_by_its_function_and_change() -> None:
    (mutant,) = list_mutants("class A:\n    async def b(self):\n        return c('é', d) + 1.5\n")[
        :1
    ]
    assert (mutant.where, mutant.line) == ("A.b", 3)
    assert mutant.source == "class A:\n    async def b(self):\n        return None\n"


def test_a_change_that_fits_no_more_is_an_error() -> None:
    assert set(CHANGES) == {target.name for target in TARGETS if target.by_hand}
    for target, changes in CHANGES.items():
        with pytest.raises(SystemExit, match="is not in the source any more"):
            list_sql_mutants(target, "nothing")
        assert len({change.name for change in changes}) == len(changes)


def test_every_explanation_is_about_a_mutant_and_says_why() -> None:
    known: set[tuple[str, str, str]] = set()
    for target in TARGETS:
        _, mutants = read_mutants(target)
        known.update((target.name, mutant.where, mutant.change) for mutant in mutants)
    explained = read_explanations(FILE.read_text(encoding="utf-8"))
    given = [(e.module, e.where, e.change) for e in explained]
    assert set(given) - known == set()
    assert len(set(given)) == len(given)
    with pytest.raises(ValueError, match="no reason"):
        read_explanations("[[survivor]]\nmodule='a'\nwhere='b'\nchange='c'\nwhy=' '")
