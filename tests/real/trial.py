"""The course of one program: its work with a log, then its own tests without and with one."""

from __future__ import annotations

import json
import os
import subprocess
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from tests.histories.cluster import Cluster
from tests.histories.installation import ROOT
from tests.real.judgement import Judge
from tests.real.program_environment import (
    UnavailableError,
    fetch_source,
    prepare_environment,
    read_version,
)
from tests.real.programs import Program, Shipped
from tests.real.shipped_outcomes import Outcomes, compare_outcomes, count_outcomes, read_outcomes
from tests.real.tried import Tried

PLUGIN = Path(__file__).with_name("plugin")
TEST_SECONDS = "300"
"""After which one test is given up."""


@dataclass
class Trial:
    """One program on a server whose new databases have a log."""

    program: Program
    cluster: Cluster
    directory: Path
    tested: bool = True
    selected: tuple[str, ...] = ()
    """Arguments for pytest in place of the program's."""

    def run(self) -> Tried:
        """Work, then test. What goes wrong is in what is returned."""
        tried = Tried(self.program.name)
        try:
            self.python = prepare_environment(self.program)
            tried.version = read_version(self.python, self.program.distribution)
            if self.program.work:
                self.work(tried)
            if self.program.shipped and self.tested:
                self.test(self.program.shipped, tried)
        except UnavailableError as error:
            if tried.records:
                tried.notes.append(str(error))
            else:
                tried.skipped = str(error)
        except Exception:  # noqa: BLE001 - the report says so
            tried.broken = traceback.format_exc()[-1500:]
        return tried

    def work(self, tried: Tried) -> None:
        """Make the tables, guard them, let the program do its work, and judge."""
        tried.work = self.program.work
        url = self.cluster.create(f"{self.program.name}_work")
        self._run_step("prepare", url)
        judge = Judge(url)
        judge.track(tried)
        self._run_step("work", url.update_query_dict({"plugin": "oplog"}))
        judge.judge(tried)

    def _run_step(self, step: str, url: sa.URL) -> None:
        text = url.render_as_string(hide_password=False)
        command = [str(self.python), "-m", "tests.real.working", self.program.name, step, text]
        variables = {**self._make_variables(url), **self.program.variables}
        code = self._run(command, f"{step}.log", self.directory, variables)
        if code:
            raise AssertionError(f"{step} of {self.program.name} ends with {code}")

    def test(self, shipped: Shipped, tried: Tried) -> None:
        """Run the shipped tests without and with the log, and compare."""
        source = fetch_source(self.program, self.python, tried.version)
        for name, texts in shipped.replaced.items():
            self._replace(source / name, texts)
        without = self.run_tests(shipped, source, "")
        attached = self.run_tests(shipped, source, "tables")
        tried.selected = " ".join(self.selected or shipped.paths)
        tried.without, tried.attached = count_outcomes(without), count_outcomes(attached)
        for line in compare_outcomes(without, attached):
            noticing = any(f"::{name}:" in line for name in shipped.noticing)
            (tried.notes if noticing else tried.differing).append(line)
        found = json.loads(self._findings("tables").read_text(encoding="utf-8"))
        tried.looks, tried.differences = found["verified"], found["differences"]
        if not tried.work:
            tried.tables, tried.records = found["tracked"], found["records"]
        tried.differences += [f"cannot be verified: {one}" for one in found["unverified"]]
        for reason, times in sorted(found["untracked"].items()):
            tried.notes.append(f"without a guard in tests, {times} times: {reason}")

    def run_tests(self, shipped: Shipped, source: Path, attaching: str) -> Outcomes:
        """One run of the shipped tests, in a database of its own."""
        url = self.cluster.create(f"{self.program.name}_tests_{attaching or 'without'}")
        self._furnish(url, shipped)
        report = self.directory / f"{self.program.name}-{attaching or 'without'}.xml"
        report.unlink(missing_ok=True)
        text = url.render_as_string(hide_password=False)
        variables = {name: value.format(url=text) for name, value in shipped.variables.items()}
        variables |= {**self._make_variables(url), **self.program.variables}
        # Not the checkout: its `tests` would hide the package of that name in the source.
        variables |= {"PYTHONPATH": str(PLUGIN)}
        variables |= {"OPLOG_REAL_FINDINGS": str(self._findings(attaching))}
        variables |= {"OPLOG_REAL_ATTACHING": attaching, "OPLOG_REAL_URL": text}
        if shipped.moved:
            variables["OPLOG_REAL_MOVED"] = "1"
        command = [str(self.python), "-s", "-m", "pytest", "-p", "attaching", "-q"]
        command += ["-p", "no:cacheprovider", f"--junitxml={report}", f"--timeout={TEST_SECONDS}"]
        # Warnings that a project makes errors are about SQLite's driver, and the Python of its day.
        command += ["-o", "filterwarnings=", "--tb=short"]
        command += ["--dburi", text] if shipped.dburi else []
        command += self.selected or shipped.paths
        self._run(command, f"{attaching or 'without'}.log", source, variables)
        return read_outcomes(report)

    def _furnish(self, url: sa.URL, shipped: Shipped) -> None:
        own = Cluster(url)
        own.run(*(f'CREATE EXTENSION IF NOT EXISTS "{one}"' for one in shipped.extensions))
        own.run(*(f'CREATE SCHEMA IF NOT EXISTS "{one}"' for one in shipped.schemas))

    def _findings(self, attaching: str) -> Path:
        return self.directory / f"{self.program.name}-{attaching or 'without'}.json"

    def _replace(self, path: Path, texts: Mapping[str, str]) -> None:
        host = quote(str(self.cluster.url.query.get("host", "")), safe="")
        text = path.read_text(encoding="utf-8")
        for old, new in texts.items():
            if old not in text:
                raise AssertionError(f"{path} has no {old!r}")
            text = text.replace(old, new.replace("{host}", host))
        path.write_text(text, encoding="utf-8")

    def _make_variables(self, url: sa.URL) -> dict[str, str]:
        home = self.directory / f"{self.program.name}-home"
        home.mkdir(exist_ok=True)
        return {
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "PGHOST": str(url.query.get("host", "")),
            "PGUSER": url.username or "",
        }

    def _run(self, command: list[str], log: str, place: Path, more: Mapping[str, str]) -> int:
        path = self.directory / f"{self.program.name}-{log}"
        with path.open("w", encoding="utf-8") as output:
            done = subprocess.run(
                command,
                env={**os.environ, **more},
                cwd=place,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        return done.returncode
