"""Running a page's blocks, in order, as a reader would.

A page has a directory, a database and a Python namespace of its own. What a block prints is
compared with the block after it, where that shows output.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine

from oplog import Keyring
from oplog.cli import main
from tests.docs.pages import ROOT, Block, find_beginning, list_blocks, list_commands

RUN = {"python", "console", "sql"}
OUTPUT = {"text", "json"}
NOT_RUN = {
    "ini": "written to the file that its first line names",
    "proto": "compared with the file in protos/",
    "diagram": "a picture for people",
    "bytes": "a layout for people; a python block beside it computes the same",
}
"""Languages of blocks that are not executed, and what happens to them instead."""

PROGRAMS = {
    "alembic": "-m alembic",
    "oplog": "-P -m oplog",
    "pytest": "-P -m pytest -p no:cacheprovider",
    "python": "",
}
"""Programs that console blocks may run, as arguments of the interpreter that runs the tests."""
STARTED = {"README.md", "docs/how-to/find-an-unlogged-write.md", "docs/tutorial/first-log.md"}
"""Pages whose every command is started by a shell; on others `oplog` runs in this process."""
CHECKED = {
    "make": "takes minutes; its target must be in the Makefile",
    "pip": "changes the environment; the extra must be in pyproject.toml",
}
"""Programs that are not executed, and why."""

_VARIABLE = (
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "<uuid>"),
    (re.compile(r"\b20\d{6}-[0-9a-f]{8}\b"), "<key id>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<hash>"),
    (re.compile(r"\b[0-9a-f]{12,63}(?:\.{3}|…)"), "<hash>"),
    (
        re.compile(
            r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d(?::?\d\d)?)?"
        ),
        "<time>",
    ),
    (re.compile(r"\b\d+(?:\.\d+)? ?(?:s|ms|seconds|milliseconds)\b"), "<duration>"),
    (re.compile(r"\b\d+(?:\.\d+)? ?(?:bytes|B|KiB|MiB|kB|MB)\b"), "<size>"),
)


def normalise(text: str) -> str:
    """`text` without what differs from run to run, and without blanks at the ends of lines."""
    for pattern, word in _VARIABLE:
        text = pattern.sub(word, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


class PageRun:
    """Everything that the blocks of one page share."""

    def __init__(self, directory: Path, url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.url = url
        self.output = ""
        self.status = 0
        self._patch = monkeypatch
        self._module = types.ModuleType("documented")
        # SQLAlchemy resolves annotations of mapped classes through the module's name.
        monkeypatch.setitem(sys.modules, "documented", self._module)
        monkeypatch.chdir(directory)
        monkeypatch.syspath_prepend(str(directory))
        programs = directory / ".bin"
        programs.mkdir()
        for program, arguments in PROGRAMS.items():
            shim = programs / program
            shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
            shim.chmod(0o755)
        shown = url.render_as_string(hide_password=False)
        for variable, value in {
            "DATABASE_URL": shown,
            "OPLOG_DATABASE_URL": shown,
            "PWD": str(directory),
            "OPLOG_KEYRING": Keyring.generate().to_text(),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            # Nobody installs the package for a test run from a checkout.
            "PYTHONPATH": str(ROOT),
        }.items():
            monkeypatch.setenv(variable, value)

    def begin(self, page: Path) -> None:
        """Bring directory and database to where the page says that it begins."""
        beginning = find_beginning(page)
        if beginning is None:
            return
        source, first = beginning
        for block in list_blocks(source):
            if block.file_name is not None:
                self._write(block)
        self._shell(f"python {first}")
        assert self.status == 0, self.output

    def run(self, block: Block) -> None:
        """Run, compare or write down one block; an unknown language fails."""
        if block.file_name is not None:
            self._write(block)
        elif block.language == "python":
            self._run_python(block)
        elif block.language == "console":
            self._run_console(block)
        elif block.language == "sql":
            self._run_sql(block)
        elif block.language in OUTPUT:
            self._compare(block)
        elif block.language == "proto":
            files = sorted((ROOT / "protos/oplog/v1").glob("*.proto"))
            source = "\n".join(file.read_text(encoding="utf-8") for file in files)
            assert block.text.strip() in source, f"{block.where}: not what the file says"
        else:
            assert block.language in NOT_RUN, f"{block.where}: language {block.language!r}"
            assert block.language != "ini", f"{block.where}: names no file in its first line"

    def close(self) -> None:
        """Leave neither connections nor modules of the page behind."""
        self._dispose([self._module, *self._take_modules().values()])

    def _write(self, block: Block) -> None:
        assert block.file_name is not None
        path = self.directory / block.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text + "\n", encoding="utf-8")
        if block.language == "python":
            compile(block.text, block.where, "exec")

    def _run_python(self, block: Block) -> None:
        # Blank lines in front give tracebacks the page's line numbers.
        code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, vars(self._module))
        self.output = printed.getvalue()

    def _run_console(self, block: Block) -> None:
        commands = list_commands(block)
        for place, command in enumerate(commands):
            program, *arguments = shlex.split(command.text.replace("\\\n", ""))
            if program in CHECKED:
                check_command(program, arguments)
                continue
            if program == "export":
                self._export(command.text)
                continue
            if command.text == "echo $?":
                self.output = str(self.status)
            else:
                assert program in PROGRAMS, f"{block.where}: {program} is not run by this test"
                self._start(command.text, block)
            told = commands[place + 1 : place + 2]
            if not told or told[0].text != "echo $?":
                assert command.text == "echo $?" or self.status == 0, self.output
            if command.output:
                expect_same(block, self.output, shown=command.output)

    def _start(self, command: str, block: Block) -> None:
        program, *arguments = shlex.split(os.path.expandvars(command.replace("\\\n", "")))
        if program == "oplog" and str(block.page.relative_to(ROOT)) not in STARTED:
            self._call(arguments)
        else:
            self._shell(command)

    def _call(self, arguments: list[str]) -> None:
        """The command in this process, which saves a second; it imports the page's files anew."""
        known = self._take_modules()
        out, err = io.StringIO(), io.StringIO()
        try:
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("default")
                self.status = main(arguments)
        finally:
            self._dispose(self._take_modules().values())
            sys.modules.update(known)
        self.output = out.getvalue() or err.getvalue()
        if self.status and out.getvalue():
            self.output += err.getvalue()

    def _take_modules(self) -> dict[str, types.ModuleType]:
        """Modules of the page's directory, which are imported no more."""
        found = {
            name: module
            for name, module in sys.modules.items()
            if str(getattr(module, "__file__", "") or "").startswith(str(self.directory))
        }
        for module in found:
            del sys.modules[module]
        # A file written in the same second as its predecessor looks the same to the import system.
        for cache in self.directory.rglob("__pycache__"):
            shutil.rmtree(cache)
        importlib.invalidate_caches()
        return found

    def _dispose(self, modules: Iterable[types.ModuleType]) -> None:
        for module in modules:
            for value in vars(module).copy().values():
                if isinstance(value, Engine):
                    value.dispose()

    def _shell(self, command: str) -> None:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.directory,
            check=False,
            text=True,
            capture_output=True,
        )
        self.status = done.returncode
        self.output = done.stdout or done.stderr
        if done.returncode:
            self.output += done.stderr if done.stdout else ""

    def _export(self, command: str) -> None:
        variable, _, value = command.removeprefix("export ").partition("=")
        if variable == "DATABASE_URL":
            return  # the page's database is the test's
        if "$(" in value:
            self._shell(f"printf %s {value}")
            assert self.status == 0, self.output
        else:
            self.output = os.path.expandvars(value).strip('"')
        self._patch.setenv(variable, self.output)

    def _run_sql(self, block: Block) -> None:
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                self.output = _format_result(
                    connection.exec_driver_sql(
                        block.text, execution_options={"no_parameters": True}
                    )
                )
        except sa.exc.DBAPIError as error:
            diagnosis: Any = error.orig
            self.output = f"ERROR:  {diagnosis.diag.message_primary}"
            self.status = 1
        else:
            self.status = 0
        finally:
            engine.dispose()

    def _compare(self, block: Block) -> None:
        if block.language == "json":
            real = _pretty(json.loads(self.output))
            expect_same(block, real, shown=_pretty(json.loads(block.text)))
        else:
            expect_same(block, self.output, shown=block.text)


def expect_same(block: Block, real: str, *, shown: str) -> None:
    """Fail with both texts unless they are the same after `normalise`."""
    if normalise(real) != normalise(shown):
        pytest.fail(f"{block.where} shows\n\n{shown}\n\nand what came is\n\n{real}", pytrace=False)


def check_command(program: str, arguments: list[str]) -> None:
    """Fail for a target or an extra that does not exist."""
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = {a for a in arguments if "=" not in a}
        assert targets
        for target in targets:
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
        return
    assert arguments[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in arguments[1:]:
        matched = re.fullmatch(r"(\w+)(?:\[([\w,]+)\])?", requirement)
        assert matched, requirement
        assert matched[1] == project["name"], requirement
        extras = matched[2].split(",") if matched[2] else []
        assert set(extras) <= set(project["optional-dependencies"]), requirement


def must_show_an_error(block: Block) -> bool:
    """Whether an sql block is followed by the error that it is refused with."""
    blocks = list_blocks(block.page)
    after = blocks[blocks.index(block) + 1 :]
    return bool(after) and after[0].language == "text" and after[0].text.startswith("ERROR:")


def _format_result(result: sa.CursorResult[Any]) -> str:
    if not result.returns_rows:
        return ""
    lines = [" | ".join(result.keys())]
    lines += [" | ".join("" if v is None else str(v) for v in row) for row in result]
    return "\n".join(lines)


def _pretty(document: object) -> str:
    return json.dumps(document, indent=1, sort_keys=True)
