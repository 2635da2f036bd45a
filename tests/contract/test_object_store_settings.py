"""Which endpoint, region and credentials a store uses, and what it sends because of them."""

from __future__ import annotations

import pytest

from oplog.archive.objectstore.probe import Verdict, probe_store
from oplog.archive.objectstore.protocol import CreateUnsupportedError
from oplog.archive.objectstore.store_url import open_store
from tests.s3stub import S3Stub

pytestmark = pytest.mark.contract


PATH = "HEAD/0000000000000001"


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
def test_environment_is_enough(stub: S3Stub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, stub.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "for-now")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert open_store("s3://stub/p").create(PATH, b"mine")
    (request,) = stub.requests
    assert request.path == f"/stub/p/{PATH}"
    assert "Credential=somebody/" in request.headers["authorization"]
    assert "/eu-west-1/s3/" in request.headers["authorization"]
    assert request.headers["x-amz-security-token"] == "for-now"


def test_options_win_over_the_environment(stub: S3Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert stub.open().create(PATH, b"mine")
    assert "Credential=nobody/" in stub.requests[0].headers["authorization"]
    assert "/us-east-1/s3/" in stub.requests[0].headers["authorization"]


def test_server_without_checksums(stub: S3Stub) -> None:
    stub.wants_checksums = False
    stub.open(checksum_algorithm="").put(PATH, b"mine")
    assert "x-amz-checksum-sha256" not in stub.requests[0].headers


def test_condition_that_the_user_turned_off(stub: S3Stub) -> None:
    store = stub.open(conditional_put="disabled")
    with pytest.raises(CreateUnsupportedError):
        store.create(PATH, b"mine")
    assert probe_store(store) is Verdict.REFUSES


def test_no_prefix(stub: S3Stub) -> None:
    store = stub.open("")
    store.put(PATH, b"mine")
    assert stub.objects == {PATH: b"mine"}
    assert [info.path for info in store.list("")] == [PATH]
