"""What the library installs, for comparison with what a database has. Pure text.

PostgreSQL prints a trigger differently from its DDL. So both are brought to one form, without
blanks, brackets, casts and capitals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from oplog.postgres.quoting import (
    quote,
    quote_literal,
)
from oplog.schema.guard import make_prefix
from oplog.schema.partitions import define_trigger
from oplog.schema.tables import (
    create_statements,
)

_EVENT = "(?:INSERT|UPDATE|DELETE|TRUNCATE)"
_EVENTS = re.compile(rf"\b(BEFORE|AFTER) ({_EVENT}(?: OR {_EVENT})*)")
_TABLE = re.compile(r"CREATE (?:UNLOGGED )?TABLE ")
_SETTING = re.compile(r"\bSET (\w+) = (.+?)(?= SET | SECURITY |\s*$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FoundTrigger:
    """A trigger as the catalog has it; `enabled` is `pg_trigger.tgenabled`."""

    table: str
    name: str
    enabled: str
    definition: str
    function: str


@dataclass(frozen=True, slots=True)
class FunctionForm:
    """What makes a function do what it does. `settings` are those of its SET clauses."""

    body: str
    definer: bool
    settings: frozenset[str]


@dataclass(frozen=True, slots=True)
class TriggerFault:
    """A trigger that is not as it was installed; `text` says how, after its name."""

    name: str
    kind: str
    """missing, disabled or altered."""
    text: str


def list_log_tables(schema: str) -> list[str]:
    """Names of the log's tables."""
    pattern = re.compile(_TABLE.pattern + re.escape(quote(schema)) + r"\.(oplog_\w+)")
    return [m[1] for statement in create_statements(schema) if (m := pattern.match(statement))]


def list_log_triggers(schema: str, *, partitions: Iterable[str]) -> dict[str, dict[str, str]]:
    """Definitions of the log's own triggers, by table and name; `partitions` are tables, too."""
    pattern = re.compile(
        rf"CREATE (?:CONSTRAINT )?TRIGGER (?P<name>\w+) .*? ON {re.escape(quote(schema))}\."
        r"(?P<table>oplog_\w+)"
    )
    expected: dict[str, dict[str, str]] = {}
    for statement in create_statements(schema):
        match = pattern.match(statement)
        if match is not None:
            expected.setdefault(match["table"], {})[match["name"]] = statement
    for name in partitions:
        definition = define_trigger(quote(schema), f"{quote(schema)}.{name}")
        expected[name] = {"oplog_append_only": f"CREATE {definition}"}
    return expected


def list_log_functions(schema: str) -> dict[str, FunctionForm]:
    """The log's functions by name."""
    pattern = re.compile(
        rf"CREATE FUNCTION {re.escape(quote(schema))}\.(?P<name>oplog_\w+)\("
        r"(?P<head>.*?)\sAS (?P<mark>\$\w*\$)(?P<body>.*)(?P=mark)",
        re.DOTALL,
    )
    expected = {}
    for statement in create_statements(schema):
        match = pattern.match(statement)
        if match is not None:
            head = match["head"].rpartition("LANGUAGE ")[2]
            expected[match["name"]] = FunctionForm(
                match["body"],
                "SECURITY DEFINER" in head,
                normalise_settings("=".join(found) for found in _SETTING.findall(head)),
            )
    return expected


def list_guard_triggers(schema: str, *, kind: str, table: str) -> dict[str, str]:
    """Definitions of the guards of one table or partition, by name.

    `kind` is the relkind of the tree's root, `table` the qualified and quoted name.
    """
    s, p, argument = quote(schema), make_prefix(schema), quote_literal(schema)
    rows = f"AFTER INSERT OR UPDATE OR DELETE ON {table}"
    made = {
        f"{p}_guard_truncate": f"BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
        f"EXECUTE FUNCTION {s}.oplog_guard_truncate()",
        f"{p}_guard_armed": f"{rows} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
        f"WHEN ({s}.oplog_arm()) EXECUTE FUNCTION {s}.oplog_guard_check()",
    }
    if kind == "p":
        made[f"{p}_guard_row"] = (
            f"{rows} FOR EACH ROW EXECUTE FUNCTION {s}.oplog_guard_row({argument})"
        )
    for event in ("INSERT", "UPDATE", "DELETE") if kind != "p" else ():
        old = "" if event == "INSERT" else " OLD TABLE AS oplog_old"
        new = "" if event == "DELETE" else " NEW TABLE AS oplog_new"
        made[f"{p}_guard_{event.lower()}"] = (
            f"AFTER {event} ON {table} REFERENCING{old}{new} FOR EACH STATEMENT "
            f"EXECUTE FUNCTION {s}.oplog_guard({argument})"
        )
    return {
        name: f"CREATE {'CONSTRAINT ' if name.endswith('_armed') else ''}TRIGGER {name} {rest}"
        for name, rest in made.items()
    }


def find_trigger_faults(
    schema: str, *, expected: Mapping[str, str], found: Mapping[str, FoundTrigger]
) -> list[TriggerFault]:
    """Triggers of one table that are missing, disabled, or not what they should be."""
    faults = []
    for name, definition in expected.items():
        trigger = found.get(name)
        if trigger is None:
            faults.append(TriggerFault(name, "missing", "is missing"))
        elif trigger.enabled != "A":
            state = "is disabled" if trigger.enabled == "D" else "is not ENABLE ALWAYS"
            faults.append(TriggerFault(name, "disabled", state))
        elif normalise_trigger(trigger.definition, schema) != normalise_trigger(definition, schema):
            called = re.escape(trigger.function)
            same = re.search(rf"\b{called}\([^()]*\)$", definition)
            text = "does not fire on what it should" if same else f"calls {trigger.function}"
            faults.append(TriggerFault(name, "altered", text))
    return faults


def find_function_faults(
    expected: Mapping[str, FunctionForm], found: Mapping[str, list[FunctionForm]]
) -> dict[str, str]:
    """By name, what is wrong with functions: missing or altered."""
    faults = {}
    for name, form in expected.items():
        forms = found.get(name, [])
        if forms != [form]:
            faults[name] = "altered" if forms else "missing"
    return faults


def normalise_trigger(definition: str, schema: str) -> str:
    """A trigger's definition in a form that both its DDL and Postgres' own print come to."""
    ordered = _EVENTS.sub(
        lambda found: f"{found[1]} {' OR '.join(sorted(found[2].split(' OR ')))}", definition
    )
    return _strip(ordered).replace(f"{_strip(schema)}.", "")


def normalise_settings(pairs: Iterable[str]) -> frozenset[str]:
    """Settings of a function, as its DDL and as the catalog have them, in one form."""
    return frozenset(re.sub(r"[\s']", "", pair).lower() for pair in pairs)


def _strip(text: str) -> str:
    return re.sub(r'[\s()"]|::text\b', "", text.lower().replace("pg_catalog.", ""))
