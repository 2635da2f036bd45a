"""What a build changes for a log: judged from facts, without a database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import sqlalchemy as sa

from oplog import TypeCatalog, TypeChange
from oplog.catalog import DeclaredType
from oplog.doctor.contract import judge_contract
from oplog.doctor.evolution import judge_evolution
from oplog.doctor.table_difference import ChangeKind
from oplog.doctor.type_facts import Refusal, SchemaFacts, TypeFacts
from oplog.payload.derived_shape import DeclaredColumn, derive_shape
from oplog.payload.schema_change import SchemaChange
from oplog.payload.shape import Shape
from oplog.postgres.live_table import LiveColumn, LiveTable, Reference
from oplog.value import codec_for
from tests.models.messages import make_message

pytestmark = pytest.mark.unit

TYPES: dict[str, Any] = {
    "integer": sa.Integer,
    "bigint": sa.BigInteger,
    "text": sa.Text,
    "double precision": sa.Double,
}


def make_live(
    columns: str, *, name: str = "acct", oid: int = 7, schema: str = "public"
) -> LiveTable:
    """A table by 'name:type:number' of its columns; the first is the key, ! is NOT NULL."""
    found = []
    for place, one in enumerate(columns.split(), 1):
        called, kind, number = one.split(":")
        found.append(
            LiveColumn(
                name=called.rstrip("!*"),
                pg_type=kind.replace("_", " "),
                category="",
                generated=False,
                primary_key=place == 1 or called.endswith("*"),
                not_null=called.endswith("!"),
                has_default=False,
                number=int(number),
            )
        )
    return LiveTable(oid, schema, name, "r", tuple(found), rewrites_rows=False, database="1/1")


def make_shape(live: LiveTable, *stored: Shape, excluded: dict[str, str] | None = None) -> Shape:
    columns = [
        DeclaredColumn(c.name, c.pg_type, codec_for(c.pg_type, category="").kind, c.primary_key)
        for c in live.columns
        if c.name not in (excluded or {})
    ]
    return derive_shape(
        "acct",
        columns,
        schema=live.schema,
        table=live.name,
        aggregate=f"{live.name}/{{{live.key_names[0]}}}",
        excluded=excluded or {},
        stored=stored,
        numbers=live.numbers,
    )


def declare(live: LiveTable | None, **options: Any) -> TypeCatalog:
    """Models that are just the table."""
    metadata = sa.MetaData()
    if live is not None:
        add_table(metadata, live)
    return TypeCatalog.from_models(metadata, **options)


def add_table(metadata: sa.MetaData, live: LiveTable) -> None:
    columns = [
        sa.Column(c.name, TYPES[c.pg_type], primary_key=c.primary_key, nullable=not c.not_null)
        for c in live.columns
    ]
    sa.Table(live.name, metadata, *columns)


FIRST_TABLE = make_live("id:integer:1 a:integer:2 b:text:3")
STORED = make_shape(FIRST_TABLE)


@dataclass
class Case:
    """A table that was `before`, the table and the models of now, and what is said of them."""

    expected: list[tuple[str, str, bool]]
    live: LiveTable | None = FIRST_TABLE
    models: LiveTable | None = FIRST_TABLE
    facts: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    adapt: Callable[[TypeCatalog], None] = lambda _: None
    said: str = ""
    hint: str = ""
    references: tuple[Reference, ...] = ()


def find_declared(catalog: TypeCatalog) -> DeclaredType | None:
    return next(iter(catalog.types.values()), None)


def make_facts(case: Case, catalog: TypeCatalog) -> SchemaFacts:
    facts = TypeFacts(
        "acct", [STORED], find_declared(catalog), case.live, change=SchemaChange(previous=1)
    )
    if case.live is not None:
        excluded = {k: v for k, v in facts.excluded.items() if k in case.live.numbers.columns}
        facts = replace(facts, now=make_shape(case.live, STORED, excluded=excluded))
    return SchemaFacts([replace(facts, **case.facts)], case.references)


def add_downcast(catalog: TypeCatalog) -> None:
    catalog.downcast("acct", to_revision=1, step=dict)


def own_message(**fields: int) -> Callable[[TypeCatalog], None]:
    def adapt(catalog: TypeCatalog) -> None:
        (declared,) = catalog.types.values()
        kinds = {c.name: "string" if str(c.type) == "TEXT" else "int64" for c in declared.table.c}
        message = make_message(
            "shop.Own",
            {name: (number, kinds.get(name, "int64")) for name, number in fields.items()},
        )
        changed = replace(declared, message_class=message)
        catalog._types["acct"] = changed
        catalog._by_table[declared.table] = changed

    return adapt


ADDED = make_live("id:integer:1 a:integer:2 b:text:3 c:integer:4")
LESS = make_live("id:integer:1 a:integer:2")
RENAMED = make_live("id:integer:1 z:integer:2 b:text:3")
AGAIN = make_live("id:integer:1 a:integer:4 b:text:3")
WIDER = make_live("id:bigint:1 a:bigint:2 b:text:3")
TEXTUAL = make_live("id:integer:1 a:text:2 b:text:3")
OTHER_KEY = make_live("id2:integer:5 a:integer:2 b:text:3")
MOVED = make_live("id:integer:1 a:integer:2 b:text:3", name="ledger")
ELSEWHERE = make_live("id:integer:1 a:integer:2 b:text:3", schema="books")
NOT_NULL = make_live("id:integer:1 a!:integer:2 b:text:3")
ANOTHER = make_live("id:integer:1 a:integer:2 b:text:3", oid=8)

CASES = {
    "nothing": Case([]),
    "a column is new": Case(
        [("added", "c", False)], live=ADDED, models=ADDED, facts={"change": SchemaChange(1)}
    ),
    "a column is new, with a value for all rows": Case(
        [("added", "c", False)],
        live=ADDED,
        models=ADDED,
        facts={"change": SchemaChange(1, fills={4: "5"})},
        said="rows from before have '5'",
    ),
    "a column is new, with a value for each row": Case(
        [("refill", "", True), ("added", "c", False)],
        live=ADDED,
        models=ADDED,
        facts={"change": SchemaChange(1, rewritten=frozenset({4}))},
        said="wrote c anew",
        hint="oplog types sync",
    ),
    "a column is in the models only": Case(
        [("added", "c", False)],
        models=ADDED,
        said="does not have it yet",
        hint="run the migrations",
    ),
    "a column is in the table only": Case([("added", "c", False)], live=ADDED),
    "a column was dropped": Case(
        [("dropped", "b", True)],
        live=LESS,
        models=LESS,
        said="readers of revision 1 do not find it",
        hint="catalog.downcast('acct', to_revision=1, step=...)",
    ),
    "a column was dropped, and a step says what readers get": Case(
        [("dropped", "b", False)], live=LESS, models=LESS, adapt=add_downcast
    ),
    "a column is not in the models any more": Case(
        [("dropped", "b", True)],
        models=LESS,
        said="logged as long as the table has it: once it is dropped, readers",
    ),
    "a column was dropped, and the models have it": Case(
        [("dropped", "b", True), ("behind", "b", True)], live=LESS
    ),
    "a column is excluded now": Case(
        [("excluded", "b", True)], options={"exclude": {"acct.b": "personal"}}
    ),
    "a column was renamed": Case([("renamed", "z", False)], live=RENAMED, models=RENAMED),
    "a column was renamed, and the models have the old name": Case(
        [("behind", "a", True), ("renamed", "z", False)], live=RENAMED
    ),
    "a column will be renamed": Case(
        [("dropped", "a", True), ("added", "z", False)], models=RENAMED
    ),
    "a column was dropped and added again": Case(
        [("dropped", "a", True), ("added", "a", False)],
        live=AGAIN,
        models=AGAIN,
        said="another one has its name",
    ),
    "a type is wider": Case(
        [("converted", "id", False), ("converted", "a", False)], live=WIDER, models=WIDER
    ),
    "a type is of another kind": Case(
        [("converted", "a", True), ("refill", "", True)],
        live=TEXTUAL,
        models=TEXTUAL,
        facts={"change": SchemaChange(1, rewritten=frozenset({4}))},
        said="column a is text, was integer",
    ),
    "a type is of another kind in the models": Case(
        [("converted", "a", True)],
        models=TEXTUAL,
        said="column a is integer, and TEXT in the models",
    ),
    "a type of another kind, and a step": Case(
        [("converted", "a", False)], models=TEXTUAL, adapt=add_downcast
    ),
    "labels were renamed": Case(
        [("relabelled", "b", False)],
        facts={"change": SchemaChange(1, labels={3: {"old": "new"}})},
        said="'old' is 'new'",
    ),
    "rows were written anew": Case(
        [("refill", "", True)],
        facts={"change": SchemaChange(1, rewritten=frozenset({2}))},
        said="wrote a anew",
    ),
    "rows of a stored revision are not all logged": Case(
        [("refill", "", True)],
        facts={
            "pending": True,
            "stored": [replace(STORED, change=SchemaChange(1, readopted=True))],
            "now": None,
        },
        said="wrote all columns anew",
    ),
    "the table was renamed": Case(
        [("moved", "", False), ("regrouped", "", False)],
        live=MOVED,
        models=MOVED,
        hint="aggregates={'ledger': 'acct/{id}'}",
    ),
    "the table was renamed, and the models have the old name": Case(
        [("behind", "", True), ("moved", "", False), ("regrouped", "", False)],
        live=MOVED,
        facts={"reached": False},
    ),
    "the table was moved": Case([("moved", "", False)], live=ELSEWHERE),
    "a column of the key was renamed": Case(
        [("renamed", "key", False)],
        live=make_live("key:integer:1 a:integer:2 b:text:3"),
        models=make_live("key:integer:1 a:integer:2 b:text:3"),
    ),
    "the key was replaced": Case(
        [("dropped", "id", True), ("key", "", True), ("added", "id2", False)],
        live=OTHER_KEY,
        models=OTHER_KEY,
        hint="op.replace_type('acct', reason=...)",
    ),
    "the key will be replaced": Case(
        [("dropped", "id", True), ("key", "", True), ("added", "id2", False)],
        models=OTHER_KEY,
        hint="op.replace_type('acct', reason=...)",
    ),
    "the aggregate is another one": Case(
        [("regrouped", "", False)],
        facts={"now": replace(STORED, revision=2, aggregate="all")},
    ),
    "the table was dropped": Case(
        [("retired", "", False)], live=None, models=None, facts={"dropped": True}
    ),
    "the table is gone, from a database that never had it": Case(
        [("retired", "", True)], live=None, models=None, hint="op.retire_type('acct', reason=...)"
    ),
    "the table was dropped, and the models have it": Case(
        [("missing", "", True)], live=None, facts={"dropped": True}
    ),
    "another table with rows": Case(
        [("replaced", "", True)],
        live=None,
        facts={"dropped": True, "replacement": ANOTHER, "filled": True},
        hint="op.replace_type('acct', reason=...)",
    ),
    "another table that cannot be looked at": Case(
        [("replaced", "", True)],
        live=None,
        facts={"dropped": True, "replacement": ANOTHER, "filled": None},
        hint="op.replace_type('acct', reason=...)",
    ),
    "another table without rows": Case(
        [("replaced", "", False)],
        live=None,
        facts={"dropped": True, "replacement": ANOTHER, "filled": False},
        hint="oplog types sync",
    ),
    "the models do not have the table": Case([("undeclared", "", False)], models=None),
    "the table is left out on purpose": Case(
        [("undeclared", "", True)],
        options={"untracked": {"acct": "reference data"}},
        said="reference data",
        hint="op.retire_type('acct', reason=...)",
    ),
    "a new type without a table": Case(
        [("added", "", False)], live=None, facts={"stored": []}, hint="run the migrations"
    ),
    "a new type with a table": Case([("added", "", False)], facts={"stored": []}),
    "a new type, and its table has another key": Case(
        [("key", "", True), ("added", "", False), ("added", "id2", False)],
        models=OTHER_KEY,
        facts={"stored": [], "now": None},
    ),
    "a retired type begins anew": Case(
        [("added", "", False)], facts={"retired": True}, said="begins anew"
    ),
    "a retired type has ended": Case([], live=None, models=None, facts={"retired": True}),
    "a column cannot be logged": Case(
        [("refused", "", True)],
        facts={"now": None, "refusal": Refusal("money", "use numeric")},
        said="money",
        hint="use numeric",
    ),
    "a new type cannot be logged": Case(
        [("refused", "", True)],
        facts={"stored": [], "now": None, "refusal": Refusal("money", "use numeric")},
    ),
    "a message waits": Case(
        [("waiting", "", True)],
        facts={"now": None, "refusal": Refusal("no field", "add it", waits=True)},
    ),
    "an own message": Case([], adapt=own_message(id=1, a=2, b=3)),
    "an own message without a field": Case(
        [("message", "b", True)], adapt=own_message(id=1, a=2), said="no field for column b"
    ),
    "an own message with another number": Case(
        [("message", "b", True)],
        adapt=own_message(id=1, a=2, b=4),
        said="column b has field number 4 in the message and 3 in revision 1",
    ),
    "an own message with a number that was another column's": Case(
        [("message", "c", True)],
        live=make_live("id:integer:1 a:integer:2 c:integer:4"),
        models=make_live("id:integer:1 a:integer:2 c:integer:4"),
        adapt=own_message(id=1, a=2, c=3),
        said="which was that of column b in revision 1",
    ),
    "an own message after a rename": Case(
        [("renamed", "z", False)],
        live=RENAMED,
        models=RENAMED,
        adapt=own_message(id=1, z=2, b=3),
    ),
    "an excluded column that may not be NULL": Case(
        [("excluded", "a", True), ("restore", "a", True)],
        live=NOT_NULL,
        models=NOT_NULL,
        options={"exclude": {"acct.a": "secret"}},
        hint="server default",
    ),
    "a reference to what is not logged": Case(
        [("restore", "", True)],
        references=(Reference("acct_fk", "public.acct", "public.country"),),
        said="acct_fk of public.acct refers to public.country",
    ),
}


def judge(case: Case) -> list[TypeChange]:
    catalog = declare(case.models, **case.options)
    case.adapt(catalog)
    report = judge_contract(make_facts(case, catalog), catalog)
    assert report.ok == (not any(change.breaks for change in report.changes))
    assert report.to_json()["ok"] == report.ok
    return list(report.changes)


@pytest.mark.parametrize("name", CASES)
def test_what_a_build_changes(name: str) -> None:
    case = CASES[name]
    found = judge(case)
    told = [(change.kind.value, change.column, change.breaks) for change in found]
    assert sorted(told) == sorted(case.expected)
    assert [change.breaks for change in found] == sorted(
        (change.breaks for change in found), reverse=True
    )
    assert case.said in " ".join(change.message for change in found)
    assert case.hint in " ".join(change.hint for change in found)
    assert all(change.message for change in found)
    assert all(change.hint for change in found if change.breaks)


def test_every_kind_is_told_apart() -> None:
    kinds = {kind for case in CASES.values() for kind, _, _ in case.expected}
    assert kinds | {"unknown"} == {kind.value for kind in ChangeKind}


def test_what_the_role_may_not_ask_is_said() -> None:
    catalog = declare(FIRST_TABLE)
    facts = replace(make_facts(Case([]), catalog), unasked=["oplog_is_marked"])
    (change,) = judge_contract(facts, catalog).changes
    assert (change.kind.value, change.breaks) == ("unknown", False)
    assert "oplog grants auditor" in change.hint


# -- what is deployed --------------------------------------------------------------------------

DEPLOYED: dict[str, tuple[str, Case]] = {
    "nothing": ("", Case([])),
    "a column is new": ("table-differs", Case([], live=ADDED)),
    "a column was renamed": ("table-differs", Case([], live=RENAMED)),
    "the table was moved": ("table-differs", Case([], live=MOVED)),
    "rows were written anew": (
        "change-unfinished",
        Case([], facts={"change": SchemaChange(1, rewritten=frozenset({2}))}),
    ),
    "a type is of another kind": (
        "change-unfinished table-differs",
        Case([], live=TEXTUAL, facts={"change": SchemaChange(1, rewritten=frozenset({4}))}),
    ),
    "the key was replaced": ("table-replaced", Case([], live=OTHER_KEY)),
    "another table with rows": (
        "table-replaced",
        Case([], live=None, facts={"dropped": True, "replacement": ANOTHER, "filled": True}),
    ),
    "another table that cannot be looked at": (
        "table-replaced",
        Case([], live=None, facts={"dropped": True, "replacement": ANOTHER, "filled": None}),
    ),
    "another table without rows": (
        "type-table-missing",
        Case([], live=None, facts={"dropped": True, "replacement": ANOTHER, "filled": False}),
    ),
    "the table was dropped": ("type-table-missing", Case([], live=None, facts={"dropped": True})),
    "the table is gone": ("type-table-missing", Case([], live=None)),
    "a retired type has ended": ("", Case([], live=None, facts={"retired": True})),
    "a message waits": (
        "message-waiting",
        Case([], facts={"now": None, "refusal": Refusal("no field", "add it", waits=True)}),
    ),
    "a column cannot be logged": (
        "table-differs",
        Case([], facts={"now": None, "refusal": Refusal("money", "use numeric")}),
    ),
    "an excluded column that may not be NULL": (
        "restore-excluded table-differs",
        Case([], live=NOT_NULL, models=NOT_NULL, options={"exclude": {"acct.a": "secret"}}),
    ),
    "a reference to what is not logged": (
        "restore-reference",
        Case([], references=(Reference("acct_fk", "public.acct", "public.country"),)),
    ),
}


@pytest.mark.parametrize("name", DEPLOYED)
def test_what_a_deployed_log_does_not_know(name: str) -> None:
    codes, case = DEPLOYED[name]
    catalog = declare(case.models, **case.options)
    found = judge_evolution(make_facts(case, catalog))
    assert sorted(one.what for one in found) == sorted(codes.split())
    assert all(one.severity == "problem" and one.hint and one.message for one in found)


def list_hints() -> Iterator[str]:
    for case in CASES.values():
        yield from (change.hint for change in judge(case))
    for _, case in DEPLOYED.values():
        facts = make_facts(case, declare(case.models, **case.options))
        yield from (one.hint for one in judge_evolution(facts))


def test_no_hint_loses_rows() -> None:
    for hint in list_hints():
        assert "--again" not in hint
        if "retire_type" in hint:
            # Only for what is gone already, or what is not to be logged any more.
            assert "for good" in hint or "ends here" in hint
