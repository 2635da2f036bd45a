"""Time limits of requests: larger bodies have longer, and an answer lasts as long as it comes."""

from __future__ import annotations

import pytest

from oplog.archive.objectstore.client_settings import ClientSettings
from oplog.archive.objectstore.remote import PROMPT_BYTES, RemoteStore
from oplog.archive.objectstore.store_url import open_store
from tests.s3stub import BUCKET, CREDENTIALS, S3Stub


def test_the_limit_grows_with_the_body() -> None:
    """And never is it less than what a small request has."""
    limits: list[float] = []

    class Watched(ClientSettings):
        def limit_request(self, seconds: float) -> dict[str, object]:
            limits.append(seconds)
            return super().limit_request(seconds)

    with S3Stub() as stub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("oplog.archive.objectstore.remote.ClientSettings", Watched)
        store = open_store(
            f"s3://{BUCKET}/line",
            options={"endpoint": stub.endpoint, **CREDENTIALS},
            timeout_seconds=10.0,
        )
        assert isinstance(store, RemoteStore)
        opened = len(limits)
        for number, size in enumerate((1, PROMPT_BYTES - 1, PROMPT_BYTES, 2 * PROMPT_BYTES + 5)):
            assert store.create(f"a/{number}", bytes(size))
        assert limits[opened:] == [30.0, 40.0]
        assert store.get("a/3", most=1 << 30) == bytes(2 * PROMPT_BYTES + 5)


def test_what_comes_in_is_bounded_by_silence() -> None:
    settings = ClientSettings("s3", {}, {})
    limits = settings.limit_silence(7.0)
    assert limits["read_timeout"].total_seconds() == 7.0
    assert limits["timeout"].total_seconds() >= 3600.0
    assert limits["connect_timeout"].total_seconds() == 5.0
