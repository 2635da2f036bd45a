"""Runs the tests of a module against its mutants, each in a forked process.

The parent imports what is slow and is not ours (SQLAlchemy, the driver, pytest), and never the
package itself: a child that was forked imports the package with the mutant in place of one
module. That is a tenth of a second where a new interpreter takes a whole one. The hard thing
is that a mutant may do anything: loop, or end the process. It has a process group of its own
and a deadline.
"""

from __future__ import annotations

import contextlib
import enum
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import CodeType, ModuleType
from typing import TypeVar

import pytest

ROOT = Path(__file__).parents[2]
FIRST_DEADLINE_SECONDS = 600.0
"""For the run without a mutant, which sets the deadline of the others."""

_SLOW_IMPORTS = (
    "alembic",
    "click",
    "cryptography.hazmat.primitives.ciphers.aead",
    "cryptography.hazmat.primitives.kdf.hkdf",
    "google.protobuf.descriptor_pb2",
    "google.protobuf.message_factory",
    "hypothesis.strategies",
    "psycopg",
    "pytest_asyncio",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "zstandard",
)
_NO_TESTS = 5
"""pytest's exit code when it found none: a mistake in the list of tests."""

T = TypeVar("T")


class Verdict(enum.Enum):
    """What became of a mutant."""

    KILLED = "killed"
    TIMED_OUT = "timed out"
    SURVIVED = "survived"


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of tests, with `source` in place of the module's own, or as it is."""

    module: str
    tests: Sequence[str]
    source: str | None = None


def warm_up() -> None:
    """Import what every child needs and no mutant changes."""
    for name in _SLOW_IMPORTS:
        importlib.import_module(name)
    scope = ("-o", "asyncio_default_fixture_loop_scope=function")
    with tempfile.TemporaryDirectory() as empty, contextlib.redirect_stdout(io.StringIO()):
        # Loads pytest's own plugins, which is half of what a short run costs.
        pytest.main(
            ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", empty, *scope, empty]
        )
    loaded = (n for n in sys.modules if n.partition(".")[0] in {"oplog", "tests"})
    # All but this program itself, which no mutant changes.
    ours = sorted(n for n in loaded if n != "tests" and not n.startswith("tests.mutants"))
    if ours:
        raise AssertionError(f"imported before any mutant: {ours}")
    # pytest walks the whole heap at its end; what was there before the fork need not be walked.
    gc.collect()
    gc.freeze()


def measure(trial: Trial, *, show: bool = False) -> float:
    """Seconds that the tests take without a mutant; they must pass."""
    started = time.monotonic()
    ((_, verdict),) = judge([(None, trial)], workers=1, deadline=FIRST_DEADLINE_SECONDS, show=show)
    if verdict is not Verdict.SURVIVED:
        if not show:
            measure(trial, show=True)
        raise SystemExit(f"the tests of {trial.module} do not pass without a mutant")
    return time.monotonic() - started


def judge(
    trials: Iterable[tuple[T, Trial]],
    *,
    workers: int,
    deadline: float,
    show: bool = False,
    on_verdict: Callable[[T, Verdict], None] = lambda _name, _verdict: None,
) -> list[tuple[T, Verdict]]:
    """The verdict on each trial, `workers` at a time, none longer than `deadline` seconds."""
    context = multiprocessing.get_context("fork")
    waiting = deque(trials)
    running: dict[int, tuple[BaseProcess, T, float]] = {}
    verdicts = []
    while waiting or running:
        while waiting and len(running) < workers:
            name, trial = waiting.popleft()
            process: BaseProcess = context.Process(target=_run, args=(trial, show))
            process.start()
            running[process.sentinel] = process, name, time.monotonic() + deadline
        first = min(ends for _, _, ends in running.values())
        done = wait(list(running), timeout=max(0.0, first - time.monotonic()))
        late = [s for s, (_, _, ends) in running.items() if ends <= time.monotonic()]
        for sentinel in {*(s for s in done if isinstance(s, int)), *late}:
            process, name, _ = running.pop(sentinel)
            verdict = _end(process, in_time=sentinel in done)
            verdicts.append((name, verdict))
            on_verdict(name, verdict)
    return verdicts


def _end(process: BaseProcess, *, in_time: bool) -> Verdict:
    if not in_time and process.pid is not None:
        # Not yet waited for, so the number is still this process's.
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    if not in_time:
        return Verdict.TIMED_OUT
    if process.exitcode == _NO_TESTS:
        raise SystemExit("a module's list of tests names none")
    return Verdict.SURVIVED if process.exitcode == 0 else Verdict.KILLED


def _run(trial: Trial, show: bool) -> None:
    os.setpgid(0, 0)
    os.chdir(ROOT)
    if not show:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
    if trial.source is not None:
        sys.meta_path.insert(0, _Finder(trial.module, trial.source))
    code = pytest.main(
        [
            *("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"),
            # Plugins are imported before pytest could rewrite their assertions, not ours.
            *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),
            *trial.tests,
        ]
    )
    # Nothing of the interpreter's own ending: a mutant may have broken it.
    os._exit(int(code))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module: the mutant."""

    def __init__(self, module: str, source: str) -> None:
        self._module = module
        self._source = source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module:
            return None
        file = str(locate(fullname))
        loader = _Loader(fullname, file, self._source)
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, module: str, file: str, source: str) -> None:
        super().__init__(module, file)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        # Not from a cache, and not into one.
        return compile(self._source, self.path, "exec", dont_inherit=True)


def locate(module: str) -> Path:
    """A module's file."""
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")
