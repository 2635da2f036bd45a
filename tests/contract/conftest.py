"""Object stores for tests: one of each kind, and nothing of the developer's environment.

ministack is a process for each worker of a test run; every test gets a bucket of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest

from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.archive.objectstore.store_url import open_store
from tests.s3stub import CREDENTIALS, S3Stub
from tests.timepiece import Timepiece

LEAKING = ("AWS_", "AZURE_", "GOOGLE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
START_ATTEMPTS = 150


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(LEAKING):
            monkeypatch.delenv(name)


@pytest.fixture
def stub() -> Iterator[S3Stub]:
    with S3Stub() as stub:
        yield stub


@pytest.fixture
def timepiece() -> Timepiece:
    return Timepiece()


@pytest.fixture
def remote(stub: S3Stub, timepiece: Timepiece) -> ObjectStore:
    return stub.open(backoff=timepiece.backoff())


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an S3 server; the endpoint."""
    if find_spec("ministack") is None:
        pytest.skip('ministack is not installed (pip install "oplog[test]")')
    place = tmp_path_factory.mktemp("ministack")
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
        yield endpoint
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
    pytest.fail(f"ministack did not start:\n{log.read_text()}")


# Whatever proxy the developer uses knows nothing about this machine's own ports.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def open_ministack(endpoint: str) -> ObjectStore:
    bucket = f"bucket-{uuid4().hex}"
    with _direct.open(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT"), timeout=30):
        pass
    return open_store(f"s3://{bucket}/pre/fix", options={"endpoint": endpoint, **CREDENTIALS})


@pytest.fixture(params=["memory", "directory", "stub", "ministack"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """Open an empty store of each kind."""
    makers: dict[str, Callable[[], ObjectStore]] = {
        "memory": MemoryStore,
        "directory": lambda: open_store((tmp_path / "a" / "b c").as_uri()),
        "stub": lambda: request.getfixturevalue("stub").open(),
        "ministack": lambda: open_ministack(request.getfixturevalue("ministack")),
    }
    return makers[request.param]()
