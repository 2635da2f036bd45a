"""Object stores for tests: one of each kind, and nothing of the developer's environment.

ministack is a process for each worker of a test run; every test gets a bucket of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest

from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.archive.objectstore.store_url import open_store
from tests.ministack_server import MinistackServer, run_ministack
from tests.s3stub import CREDENTIALS, S3Stub
from tests.timepiece import Timepiece

LEAKING = ("AWS_", "AZURE_", "GOOGLE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


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
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinistackServer]:
    """Run an S3 server."""
    if find_spec("ministack") is None:
        pytest.skip('ministack is not installed (pip install "oplog[test]")')
    with run_ministack(tmp_path_factory.mktemp("ministack")) as server:
        yield server


def open_ministack(server: MinistackServer) -> ObjectStore:
    bucket = f"bucket-{uuid4().hex}"
    server.make_bucket(bucket)
    options = {"endpoint": server.endpoint, **CREDENTIALS}
    return open_store(f"s3://{bucket}/pre/fix", options=options)


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
