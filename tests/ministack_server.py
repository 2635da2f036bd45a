"""An S3 server in a process of its own, which nothing of the developer's environment reaches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_ATTEMPTS = 150
# Whatever proxy the developer uses knows nothing about this machine's own ports.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class MinistackServer:
    """A server that runs: its endpoint, and its process."""

    endpoint: str
    port: int
    process: subprocess.Popen[bytes]

    def make_bucket(self, name: str) -> None:
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        with _direct.open(request, timeout=30):
            pass


@contextmanager
def run_ministack(place: Path) -> Iterator[MinistackServer]:
    """Run the server with its files in `place`; raises `RuntimeError` if it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"],
            cwd=place,
            env={
                "BIND_HOST": "127.0.0.1",
                # It would look for containers that an earlier run left behind.
                "DOCKER_HOST": f"unix://{place}/none",
                "GATEWAY_PORT": str(port),
                "HOME": str(place),
                "IOT_MTLS_ENABLED": "0",
                "PATH": os.environ["PATH"],
                "SERVICES": "s3",
                "SFTP_ENABLED": "0",
                "TMPDIR": str(place),
            },
            stdout=log,
            stderr=log,
        )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _await_start(process, endpoint, place / "log")
        yield MinistackServer(endpoint, port, process)
    finally:
        process.kill()
        process.wait()


def _await_start(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    for _ in range(START_ATTEMPTS):
        try:
            with _direct.open(f"{endpoint}/_ministack/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            try:
                # Waits a little, and tells at once when there is nothing to wait for.
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
            break
    raise RuntimeError(f"ministack did not start:\n{log.read_text()}")
