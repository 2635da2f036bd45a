"""Floors, fences, sizes and public names: what keeps the house in order.

The contracts are in `pyproject.toml`; the rules that import-linter cannot say are here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.architecture

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "oplog"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PYPROJECT = ROOT / "pyproject.toml"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_proto" not in path.parts)

LONGEST_FILE = 400
LONGEST_FUNCTION = 50
MOST_POSITIONAL = 2
MOST_ARGUMENTS = 4
POSITIONAL = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
# Decoders take hostile input: nothing that runs what it reads.
FORBIDDEN_IMPORTS = {"dill", "marshal", "pickle", "shelve", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec"}
# Where the log's tables are defined.
DEFINITIONS = (
    "append",
    "append_checks",
    "append_only",
    "column_judgement",
    "guard",
    "guard_origin",
    "kept_images",
    "key_retirement",
    "locks",
    "own_writes",
    "partitions",
    "progress_functions",
    "progress_tables",
    "registering",
    "rights",
    "tables",
    "touched_keys",
    "trusted_tables",
    "type_changes",
    "upgrade",
)
# Names that say nothing about what is inside.
FORBIDDEN_MODULES = {"common", "helpers", "manager", "misc", "tools", "util", "utils"}

PUBLIC = {
    "oplog.errors": {
        "ArchiveError",
        "ArchiveLagError",
        "CaptureMismatchError",
        "CatalogWarning",
        "ChainBrokenError",
        "CommitCancelledError",
        "CommitError",
        "CommitInterruptedError",
        "CommitOutcomeUnknownError",
        "CommitWouldRollBackError",
        "ConfigurationError",
        "ConflictError",
        "DecodeError",
        "DurabilityNotConfirmedWarning",
        "EntryError",
        "EntryTooLargeError",
        "ForeignArchiveError",
        "ForeignServerError",
        "HeadRolledBackError",
        "HeadUnsignedError",
        "IdempotencyConflictError",
        "InvalidMetadataError",
        "MissingMetadataError",
        "KeyRetiredError",
        "KeyUnavailableError",
        "LeaseHeldError",
        "LeaseLostError",
        "LogForkedError",
        "ManifestInvalidError",
        "NotCapturableError",
        "ObjectConflictError",
        "ObjectTooLargeError",
        "OlderArchiveError",
        "OplogError",
        "PrunedError",
        "QuarantineWarning",
        "ReplayError",
        "RestoreWarning",
        "RevokedPublisherError",
        "SchemaChangedError",
        "SchemaDriftError",
        "SchemaVersionError",
        "SealError",
        "SegmentCorruptError",
        "SegmentMissingError",
        "SignatureInvalidError",
        "SignedForkError",
        "SigningKeyMissingError",
        "StalePlanError",
        "StorageConfigError",
        "StoreUnavailableError",
        "TicketConflictError",
        "UndoConflictError",
        "UndoError",
        "UnknownPublisherError",
        "UnknownTypeError",
        "UnloggedWriteError",
        "UpcastError",
        "VerificationError",
        "WrongKeyError",
    },
    "oplog": {
        "AdoptedType",
        "AdoptionReport",
        "AsyncMoment",
        "Archive",
        "ArchiveLag",
        "ArchiveProblem",
        "ArchiveReport",
        "ArchiveStepDone",
        "Batch",
        "Blocker",
        "Change",
        "ChangesReport",
        "CollectionReport",
        "Difference",
        "Entries",
        "EntriesAppended",
        "EntriesDrafted",
        "Entry",
        "Event",
        "Expectation",
        "Finding",
        "FollowReport",
        "ForkReport",
        "FoundChange",
        "GrantsReport",
        "IncarnationReport",
        "Keyring",
        "LoggedEntry",
        "LostEntry",
        "MaintenanceReport",
        "Moment",
        "OpType",
        "Operation",
        "Oplog",
        "Outcome",
        "OutcomeLost",
        "OutcomeResolved",
        "Page",
        "Pin",
        "ProtoReport",
        "PruneReport",
        "QuarantineReport",
        "QuarantinedRecord",
        "Receipt",
        "RefusedTransaction",
        "ReplayLostReport",
        "ReplayReport",
        "Resolution",
        "RestoreReport",
        "ResyncReport",
        "Retention",
        "RowDifference",
        "RowOrigin",
        "RowVersion",
        "SearchPage",
        "SigningKeyring",
        "SnapshotPolicy",
        "SnapshotReport",
        "StatusReport",
        "StepFailure",
        "StepReport",
        "Subscription",
        "SyncReport",
        "SyncWorker",
        "Ticket",
        "Trust",
        "TypeCatalog",
        "TypeChange",
        "TypesCheckReport",
        "TypesReport",
        "UndoConflict",
        "UndoPlan",
        "VerifyReport",
        "VersionRow",
        "WorkRetried",
        "asgi",
        "carry_context",
        "context",
        "current_context",
        "open_archive",
        "wsgi",
    },
    "oplog.asgi": {"ContextMiddleware"},
    "oplog.celery": {"connect_signals", "disconnect_signals"},
    "oplog.rq": {"ContextJob"},
    "oplog.wsgi": {"ContextMiddleware"},
    "oplog.migration": {
        "AdoptTableOp",
        "CreateOplogOp",
        "DropOplogOp",
        "ReplaceTypeOp",
        "RetireTypeOp",
        "TrackTablesOp",
        "UntrackTablesOp",
        "UpgradeOplogOp",
        "migrations_path",
    },
    "oplog.arrow": {
        "Batches",
        "changes_of",
        "read_batches",
        "rows_of",
        "to_pandas",
        "to_polars",
        "to_table",
        "write_parquet",
    },
    "oplog.testing": {
        "EmbeddedServer",
        "assert_logged",
        "assert_tracked",
        "rolled_back",
        "rolled_back_async",
    },
    "oplog.testing.plugin": {
        "OpenedLog",
        "open_oplog",
        "oplog_databases",
        "oplog_engine",
        "oplog_server_url",
        "oplog_template",
    },
}
# Three arguments with one natural order each, as the contract of these names has them.
CROWDED = {
    # A worker is of a log, a database and an archive.
    "oplog": {
        "Oplog.append",
        "Oplog.as_of",
        "Oplog.as_of_async",
        "Oplog.history",
        "Oplog.versions",
        "Oplog.versions_async",
        "Oplog.history_async",
        "SyncWorker",
    },
    "oplog.migration": {
        # Alembic calls these with its own arguments.
        "AdoptTableOp.adopt_table",
        "CreateOplogOp.create_oplog",
        "UpgradeOplogOp.upgrade_oplog",
        "DropOplogOp.drop_oplog",
        "TrackTablesOp.track_tables",
        "UntrackTablesOp.untrack_tables",
    },
    # The log, where to look in it, and which table.
    "oplog.arrow": {"changes_of", "rows_of"},
    # RQ makes its jobs itself.
    "oplog.rq": {"ContextJob"},
    # The log, where to look in it, and what for.
    "oplog.testing": {"assert_logged"},
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def public_callables(module_name: str) -> Iterator[tuple[str, inspect.Signature]]:
    """Yield the public functions and classes of a module, and the classes' public methods."""
    module = importlib.import_module(module_name)
    for public in module.__all__:
        value = getattr(module, public)
        if not callable(value):
            continue
        # The library makes its values, users only read them.
        if not is_dataclass(value):
            yield public, inspect.signature(value)
        for member, found in _list_members(value) if inspect.isclass(value) else ():
            method = getattr(value, member)
            if not member.startswith("_") and inspect.isroutine(method):
                bound = inspect.ismethod(method) or isinstance(found, staticmethod)
                yield f"{public}.{member}", _without_self(inspect.signature(method), bound=bound)


def _list_members(value: type) -> Iterator[tuple[str, object]]:
    """A class's own members and those of its parts, which need not be public themselves."""
    for part in value.__mro__:
        if part.__module__.startswith("oplog"):
            yield from vars(part).items()


def _without_self(signature: inspect.Signature, *, bound: bool) -> inspect.Signature:
    parameters = list(signature.parameters.values())
    return signature.replace(parameters=parameters if bound else parameters[1:])


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """Each module of the package, parsed."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def test_floors_and_fences() -> None:
    """`make floors`, which is therefore no part of `make check`."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-logo", "--no-cache"],
        cwd=ROOT,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout


def test_files_are_short() -> None:
    lengths = {name(p): len(p.read_text(encoding="utf-8").splitlines()) for p in MODULES}
    assert len(lengths) > 100
    assert {where: lines for where, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_functions_fit_on_a_screen(trees: dict[Path, ast.Module]) -> None:
    lengths = {
        f"{name(path)}:{function.lineno} {function.name}": function.end_lineno - function.lineno + 1
        for path, tree in trees.items()
        for function in functions(tree)
        if function.end_lineno is not None
    }
    assert len(lengths) > 1000
    assert {where: lines for where, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


def test_modules_have_a_docstring(trees: dict[Path, ast.Module]) -> None:
    assert [name(path) for path, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_modules_are_named_after_what_they_hold() -> None:
    assert [name(path) for path in MODULES if path.stem in FORBIDDEN_MODULES] == []


def test_no_two_modules_have_one_name() -> None:
    counted = Counter(path.stem for path in MODULES if path.stem != "__init__")
    assert [stem for stem, count in counted.items() if count > 1] == []


def test_contributing_lists_the_rooms() -> None:
    text = CONTRIBUTING.read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z_/]+)` \| \w", text, re.MULTILINE)
    folders = {path.parent for path in MODULES} - {PACKAGE}
    rooms = {str(folder.relative_to(PACKAGE)) for folder in folders}
    rooms |= {path.stem for path in MODULES if path.parent == PACKAGE} - {"__init__", "__main__"}
    assert listed == sorted(rooms)


def test_contributing_shows_the_floors_that_are_checked() -> None:
    text = CONTRIBUTING.read_text(encoding="utf-8")
    (block,) = re.findall(r"```\n(doors .*?)```", text, re.DOTALL)
    # A floor's line ends with its rooms; a word for it may stand before, a remark behind.
    shown = [
        set(re.findall(r"[a-z_]+", line.partition("(")[0][11:])) for line in block.splitlines()
    ]
    contracts = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]
    (floors,) = (one["layers"] for one in contracts["contracts"] if one["id"] == "floors")
    declared = [set(re.findall(r"[a-z_]+", floor)) for floor in floors]
    assert shown == [floor for floor in declared if floor != {"__main__"}]


def test_no_more_than_four_positional_arguments(trees: dict[Path, ast.Module]) -> None:
    """Beyond that nobody can tell at the call which is which."""
    crowded = [
        f"{name(path)}:{node.lineno} {ast.unparse(node.func)}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and len(node.args) > MOST_ARGUMENTS
        and not any(isinstance(one, ast.Starred) for one in node.args)
    ]
    crowded += [
        f"{name(path)}:{function.lineno} def {function.name}"
        for path, tree in trees.items()
        for function in functions(tree)
        if len(_list_positional(function)) > MOST_ARGUMENTS
    ]
    assert crowded == []


def _list_positional(function: Function) -> list[str]:
    given = [*function.args.posonlyargs, *function.args.args]
    return [one.arg for one in given if one.arg not in {"self", "cls"}]


def test_nothing_runs_what_it_reads(trees: dict[Path, ast.Module]) -> None:
    found = [
        f"{name(path)}: {full}"
        for path, tree in trees.items()
        for full in imported(tree)
        if full.partition(".")[0] in FORBIDDEN_IMPORTS
    ]
    found += [
        f"{name(path)}:{node.lineno} {node.func.id}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in FORBIDDEN_CALLS
    ]
    assert found == []


@pytest.mark.parametrize("module_name", sorted(PUBLIC))
def test_public_names_are_pinned(module_name: str) -> None:
    module = importlib.import_module(module_name)
    assert set(module.__all__) == PUBLIC[module_name]
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)


@pytest.mark.parametrize("module_name", sorted(PUBLIC))
def test_two_positional_parameters_at_most(module_name: str) -> None:
    crowded = {
        where: str(signature)
        for where, signature in public_callables(module_name)
        if sum(parameter.kind in POSITIONAL for parameter in signature.parameters.values())
        > MOST_POSITIONAL
    }
    assert set(crowded) <= CROWDED.get(module_name, set()), crowded


def test_only_the_store_names_the_logs_tables() -> None:
    names = re.compile(
        r"\boplog_(?:entry|metadata|ticket|type|key|log|fence|image|guard"
        r"|consumer|archive|adoption|restore|follower)\b"
    )
    definitions = {PACKAGE / "schema" / f"{name}.py" for name in DEFINITIONS}
    allowed = {
        *definitions,
        *(PACKAGE / "store").glob("*.py"),
        *(PACKAGE / "doctor").glob("*.py"),
    }
    elsewhere = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in MODULES
        if path not in allowed
        for line, text in _list_statements(path)
        if names.search(text)
    }
    assert elsewhere == set()


def _list_statements(path: Path) -> list[tuple[int, str]]:
    """Strings that hold an SQL keyword, put together as the code puts them together.

    The parts of an f-string, and literals that stand side by side, are one string: a table's name
    may be in another part than its SELECT.
    """
    keyword = re.compile(r"\b(?:SELECT|INSERT|UPDATE|DELETE|FROM|JOIN|TABLE|LOCK)\b")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    joined = {
        part: node
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
    }
    found = [
        (node.lineno, ast.unparse(joined.get(node, node)))
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return [(line, text) for line, text in found if keyword.search(text)]
