"""Judges from facts what is wrong with a log, its guards and its database. Pure.

A problem means that something may go unlogged or that a promise does not hold; a notice is allowed
and declared. Only problems make `oplog doctor` fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oplog.catalog import TypeCatalog
from oplog.doctor.access import judge_access, spell_upgrade
from oplog.doctor.coverage import judge_coverage
from oplog.doctor.environment import judge_activity, judge_owners, judge_settings
from oplog.doctor.evolution import judge_evolution
from oplog.doctor.facts import Facts, GuardedTree, LogFacts, Part
from oplog.doctor.key_status import KEY_DAYS, judge_keys
from oplog.doctor.model_fit import judge_models
from oplog.doctor.record_marks import RecordMarks, judge_record_marks
from oplog.doctor.type_facts import SchemaFacts
from oplog.finding import Finding, make_notice, make_problem
from oplog.schema.expected import (
    find_function_faults,
    find_trigger_faults,
    list_guard_triggers,
    list_log_functions,
    list_log_triggers,
)
from oplog.schema.row_checks import find_check_faults
from oplog.schema.tables import VERSION
from oplog.schema.upgrade import FIRST_TABLES
from oplog.store.guard_state import DeclaredGuard
from oplog.store.home import REMEDIES, Homing


def judge(
    facts: Facts,
    *,
    schema: str,
    catalog: TypeCatalog,
    guard: bool,
    evolution: SchemaFacts | None = None,
    key_id: str = "",
    key_days: int = KEY_DAYS,
    marks: RecordMarks = RecordMarks(),  # noqa: B008 - frozen
    missing: Sequence[str] = (),
) -> list[Finding]:
    """All findings, problems first, in a stable order.

    `schema` is the log's; `guard` is whether its application relies on guards; `evolution` is
    None if the log's types cannot be read, and `marks` has nothing then. `key_id` is what the
    application seals with; a key that is older than `key_days` is reported. `missing` are tables of
    the application's models that its catalog does not have.
    """
    found = list(_judge_log(facts.log, schema))
    if facts.log.usable and facts.log.version == VERSION:
        tracked = {part.name for tree in facts.trees for part in tree.parts}
        found += judge_access(facts.log.access, schema, tracked=tracked)
        found += judge_owners(facts, schema)
        found += judge_coverage(facts, catalog, missing)
        found += judge_models(facts, catalog, evolution)
        if evolution is not None:
            found += judge_evolution(evolution)
        found += _judge_guards(facts, schema=schema, catalog=catalog, guard=guard)
        found += judge_keys(facts.log.keys, current=key_id, key_days=key_days)
        found += _judge_traces(facts.log)
        found += judge_record_marks(marks)
    found += judge_settings(facts)
    found += judge_activity(facts.activity)
    return sorted(found, key=lambda finding: finding.severity != "problem")


def _judge_home(homing: Homing | None) -> Iterator[Finding]:
    home = None if homing is None else homing.home
    if homing is None or home is None:
        return
    server = home.identity.system_identifier
    if server != homing.here.system_identifier:
        yield make_problem(
            "log-foreign",
            f"server {server}",
            message="the log was written on that server, and this is server "
            f"{homing.here.system_identifier}: nothing that reads or publishes it works here",
            hint=REMEDIES,
        )


# -- the log's own schema -----------------------------------------------------------------------


def _judge_log(log: LogFacts, schema: str) -> Iterator[Finding]:
    where = "" if schema == "oplog" else f", schema={schema!r}"
    if not log.usable:
        yield make_problem(
            "log-unreadable",
            f"schema {schema}",
            message="this role may not look into the log's schema, so nothing in it was checked",
            hint="GRANT USAGE ON SCHEMA and SELECT on its tables, or run this as another role",
        )
    elif log.version is None:
        yield make_problem(
            "log-missing",
            f"schema {schema}",
            message="the log's tables are not here, or the comment with their version is gone",
            hint=f"add this line to a migration: op.create_oplog(version={VERSION}{where})",
        )
    elif log.version != VERSION:
        older = log.version < VERSION
        yield make_problem(
            "log-version",
            f"schema {schema}",
            message=f"the log's tables are at schema version {log.version}, this library "
            f"{'needs' if older else 'knows'} {VERSION}; nothing else in them was checked",
            hint=f"add this line to a migration: op.upgrade_oplog(version={VERSION}{where})"
            if older
            else "upgrade the oplog package in this application",
        )
    else:
        yield from _judge_home(log.homing)
        if log.restoring:
            yield make_problem(
                "log-restoring",
                f"schema {schema}",
                message="this database is being restored, and the restore has not finished",
                hint="wait for its end; if it was interrupted, run the restore again",
            )
        yield from _judge_log_tables(log, schema)
        yield from _judge_log_triggers(log, schema)
        yield from _judge_log_functions(log, schema)
        yield from _judge_row_checks(log, schema)


def _judge_log_tables(log: LogFacts, schema: str) -> Iterator[Finding]:
    for table in log.missing_tables:
        first = table.removeprefix("oplog_") in FIRST_TABLES
        yield make_problem(
            "log-table-missing",
            f"{schema}.{table}",
            message="a table of the log is not here",
            hint="restore it from a backup; transactions that need it fail"
            if first
            else f"{spell_upgrade(schema)} in a migration creates it; if it was there, restore it "
            "from a backup",
        )
    for table in log.unreadable_tables:
        yield make_notice(
            "log-unreadable",
            f"{schema}.{table}",
            message="this role may not read the table, so what is in it was not checked",
            hint="GRANT SELECT, or run this as another role",
        )


def _judge_log_functions(log: LogFacts, schema: str) -> Iterator[Finding]:
    for name, kind in find_function_faults(list_log_functions(schema), log.functions).items():
        state = "not here" if kind == "missing" else "not the one that the log was created with"
        yield make_problem(
            f"log-function-{kind}",
            f"function {schema}.{name}",
            message=f"a function of the log is {state}",
            hint="if the log was created by another version of this library, or you know who "
            f"changed it: {spell_upgrade(schema)} in a migration puts it right; else find that "
            "out, and run `oplog verify` first",
        )


def _judge_log_triggers(log: LogFacts, schema: str) -> Iterator[Finding]:
    for table, expected in list_log_triggers(schema, partitions=log.partitions).items():
        if table in log.missing_tables:
            continue
        found = log.triggers.get(table, {})
        for fault in find_trigger_faults(schema, expected=expected, found=found):
            yield make_problem(
                f"log-trigger-{fault.kind}",
                f"{schema}.{table} trigger {fault.name}",
                message=f"the trigger that keeps {schema}.{table} append-only {fault.text}",
                hint="find out who changed it, run `oplog verify`, then "
                f"ALTER TABLE {schema}.{table} ENABLE ALWAYS TRIGGER {fault.name}"
                if fault.kind == "disabled"
                else "find out who changed it, and run `oplog verify`; "
                f"{spell_upgrade(schema)} in a migration then puts it right",
            )


def _judge_row_checks(log: LogFacts, schema: str) -> Iterator[Finding]:
    for fault in find_check_faults(log.row_checks):
        where = f"{schema}.{fault.table} constraint {fault.name}"
        if fault.kind == "unchecked":
            yield make_notice(
                "log-constraint-unchecked",
                where,
                message="rows that were there before it were not checked",
                hint="`oplog maintain` checks them, and writers go on meanwhile",
            )
        elif fault.table not in log.missing_tables:
            yield make_problem(
                f"log-constraint-{fault.kind}",
                where,
                message=f"a constraint that keeps impossible rows out of the log is {fault.kind}",
                hint=f"{spell_upgrade(schema)} in a migration puts it right; run `oplog verify`",
            )


# -- guards -------------------------------------------------------------------------------------


def _judge_guards(
    facts: Facts, *, schema: str, catalog: TypeCatalog, guard: bool
) -> Iterator[Finding]:
    declared = {(d.schema, d.table): d for d in facts.log.declared}
    known = {live.oid for table, live in facts.live.items() if catalog.find_table(table)}
    for tree in facts.trees:
        if tree.kind not in {"r", "p"}:
            continue
        tracked = any(part.oid in known for part in tree.parts)
        if not any(part.triggers for part in tree.parts):
            declaration = declared.get((tree.root.schema, tree.root.table))
            yield _judge_unguarded(tree.root, declaration, guard=guard)
            continue
        for part in tree.parts:
            yield from _judge_part(tree, part, schema)
        if not tracked:
            yield make_notice(
                "guard-undeclared",
                tree.root.name,
                message="the table is guarded, and this application's catalog does not have it: "
                "its sessions cannot change it",
                hint="add it to the catalog, or "
                f"{_spell(tree.root, 'untrack_tables', ', reason=...')} in a migration",
            )


def _judge_unguarded(root: Part, declaration: DeclaredGuard | None, *, guard: bool) -> Finding:
    name, track = root.name, _spell(root, "track_tables")
    if declaration is not None and not declaration.tracked:
        return make_notice(
            "guard-waived",
            name,
            message=f"a migration took the guard away: {declaration.reason}",
            hint=f"{track} puts it back",
        )
    if declaration is not None:
        return make_problem(
            "guard-missing",
            name,
            message="a migration guarded the table, and the triggers are gone: what sessions that "
            "are not attached write is neither logged nor refused",
            hint=f"run `oplog verify`, then {track} in a migration",
        )
    make = make_problem if guard else make_notice
    waive = _spell(root, "untrack_tables", ", reason=...")
    return make(
        "guard-missing",
        name,
        message="the table has no guard: text SQL, COPY, cascades and sessions that are not "
        "attached change it unseen",
        hint=f"{track} in a migration, or {waive} to say why not",
    )


def _spell(root: Part, operation: str, more: str = "") -> str:
    """The line of a migration that calls `operation` on the table."""
    schema = "" if root.schema == "public" else f", schema={root.schema!r}"
    return f"op.{operation}({root.table!r}{schema}{more})"


def _judge_part(tree: GuardedTree, part: Part, schema: str) -> Iterator[Finding]:
    track = _spell(tree.root, "track_tables")
    expected = list_guard_triggers(schema, kind=tree.kind, table=part.qualified)
    for fault in find_trigger_faults(schema, expected=expected, found=part.triggers):
        if part.oid != tree.oid and fault.kind == "missing" and fault.name.endswith("_truncate"):
            yield make_problem(
                "guard-partition",
                part.name,
                message=f"the partition of {tree.root.name} has no guard against TRUNCATE: it was "
                "made or attached after the table was tracked",
                hint="`oplog types sync` or `oplog maintain`, as the owner of the partition and "
                f"the log; or {track} again, in a migration",
            )
            continue
        code = {"missing": "incomplete"}.get(fault.kind, fault.kind)
        replaced = fault.kind == "altered"
        yield make_problem(
            f"guard-{code}",
            f"{part.name} trigger {fault.name}",
            message=f"a guard of {tree.root.name} {fault.text}: changes may be neither logged "
            "nor refused",
            hint="find out who changed it, run `oplog verify`, then in a migration "
            + (f"DROP TRIGGER {fault.name} ON {part.qualified} and " if replaced else "")
            + track,
        )


# -- traces, settings ---------------------------------------------------------------------------


def _judge_traces(log: LogFacts) -> Iterator[Finding]:
    if log.pruned is not None:
        mark = log.pruned
        yield make_notice(
            "pruned",
            f"archive {mark.url}",
            message=f"{mark.entries} entries, up to sequence {mark.sequence} and position "
            f"{mark.position}, were pruned: they are in the archive only",
            hint=f"history, as_of, replay and verify need it: archive=..., or --archive {mark.url}",
        )
    if log.bypasses is not None:
        last = log.bypasses
        moment = last.recorded_at.isoformat(timespec="seconds")
        number = f"{last.count} transaction{'' if last.count == 1 else 's'}"
        yield make_notice(
            "bypassed",
            f"role {last.role}",
            message=f"{number} passed unlogged; the last at {moment} changed {last.changes}, "
            f"with the reason {last.reason!r}",
            hint="`oplog tail --aggregate oplog/bypass` lists them, `oplog verify` shows what they "
            "left different",
        )
    for table, rows in log.images_left.items():
        yield make_problem(
            "images-left",
            table,
            message=f"{rows} changed row{'' if rows == 1 else 's'} passed COMMIT without being "
            "logged: a guard was switched off at that moment",
            hint="run `oplog verify` to find them; the images themselves can then be deleted",
        )
