"""Other processes of the demonstration: starts them, talks to them, and kills them.

Every wait has a limit, so that a process that died or hangs cannot block the demonstration, and
no process is left behind.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self

from examples.demo.database import Database
from examples.demo.history import ROOT
from examples.demo.narration import ProofFailedError

PATIENCE_SECONDS = 60.0


class Worker:
    """`python -m examples.demo.<module>`, spoken to in lines of JSON.

    The first line it gets is `job`, with where the database is. Leaving the block kills it.
    """

    def __init__(self, module: str, database: Database, **job: Any) -> None:
        self.name = f"{module}-{job['name']}"
        self._pending = b""
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, a module of our own
            [sys.executable, "-m", f"examples.demo.{module}", str(database.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            bufsize=0,
            # Only the parent handles Ctrl-C; it ends its workers.
            start_new_session=True,
        )
        self.tell(url=database.url, **job)

    def tell(self, **message: Any) -> None:
        """Send one message."""
        if self._process.stdin is None:
            raise ProofFailedError(f"{self.name} cannot be spoken to")
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError as error:
            raise ProofFailedError(f"{self.name} ended before its time") from error

    def hear(self, *, seconds: float = PATIENCE_SECONDS) -> dict[str, Any] | None:
        """The next message; None when none came in time. An ended worker is an error."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._pending:
            ready = select.select([self._output], [], [], max(0.0, deadline - time.monotonic()))
            if not ready[0]:
                return None
            received = os.read(self._output, 65536)
            if not received:
                raise ProofFailedError(f"{self.name} ended with {self._process.wait()}")
            self._pending += received
        line, _, self._pending = self._pending.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def expect(self, kind: str) -> dict[str, Any]:
        """The next message, which has to be of this kind."""
        message = self.hear()
        if message is None or message.get("said") != kind:
            raise ProofFailedError(f"{self.name} was to say {kind!r} and said {message}")
        return message

    def end(self) -> None:
        """Send SIGTERM and wait until the process has ended with exit code 0."""
        self._process.terminate()
        try:
            code = self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ProofFailedError(f"{self.name} was asked to end and does not") from error
        if code:
            raise ProofFailedError(f"{self.name} was asked to end and ended with {code}")

    def kill9(self) -> list[dict[str, Any]]:
        """Send SIGKILL; return the messages that were not read yet."""
        self._process.kill()
        self._process.wait()
        while received := os.read(self._output, 65536):
            self._pending += received
        # The text after the last newline is an incomplete message.
        lines = self._pending.split(b"\n")[:-1]
        self._pending = b""
        return [json.loads(line) for line in lines]

    @property
    def _output(self) -> int:
        if self._process.stdout is None:
            raise ProofFailedError(f"{self.name} cannot be heard")
        return self._process.stdout.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def read_message() -> dict[str, Any]:
    """In a worker: the parent's next message. Ends the process when the parent is gone."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(1)
    message: dict[str, Any] = json.loads(line)
    return message


def send_message(said: str, **message: Any) -> None:
    """In a worker: tell the parent."""
    # One write: a line is whole or, when the process is killed, recognisably cut off.
    os.write(1, json.dumps({"said": said, **message}).encode() + b"\n")
