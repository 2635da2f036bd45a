"""From a URL to a store, and what is refused on the way."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oplog.archive.objectstore.directory import DirectoryStore
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.refusal import Meaning, read_refusal
from oplog.archive.objectstore.store_url import open_store
from oplog.errors import ConfigurationError

pytestmark = pytest.mark.unit

KEYS = {"access_key_id": "nobody", "secret_access_key": "nothing"}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my-bucket.x/a/b_c/", "s3://my-bucket.x/a/b_c"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("file:///tmp/a%20b", "file:///tmp/a%20b"),
        ("file://localhost/tmp/a", "file:///tmp/a"),
        ("memory://", "memory://"),
        ("memory://name", "memory://name"),
    ],
)
def test_forms(url: str, shown: str) -> None:
    assert open_store(url).url == shown


def test_azure_needs_an_account() -> None:
    with pytest.raises(ConfigurationError, match="Account"):
        open_store("az://container/a")
    options = {"account_name": "me", "account_key": "a2V5"}
    assert open_store("az://container/a", options=options).url == "az://container/a"


def test_memory_is_new_every_time() -> None:
    first, second = open_store("memory://x"), open_store("memory://x")
    assert isinstance(first, MemoryStore)
    first.put("LATEST", b"")
    assert second.get("LATEST", most=1) is None


def test_directory_is_not_made_by_opening(tmp_path: Path) -> None:
    store = open_store((tmp_path / "a b").as_uri())
    assert isinstance(store, DirectoryStore)
    assert not (tmp_path / "a b").exists()
    store.put("LATEST", b"x")
    assert (tmp_path / "a b" / "LATEST").read_bytes() == b"x"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/tmp/archive",
        "archive",
        "http://host/bucket",
        "s3:bucket",
        "s3://",
        "s3:///prefix",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "s3://bucket/a b",
        "s3://bucket/%2e%2e",
        "file://relative/path",
        "file:relative",
        "file:///a%00b",
        "s3://[bucket",
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        open_store(url)
    assert raised.value.hint


@pytest.mark.parametrize(
    "url", ["s3://key:secret@bucket/a", "s3://bucket/a?token=secret", "s3://bucket/a#secret"]
)
def test_secrets_in_urls_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        open_store(url)
    assert "secret" not in str(raised.value)


def test_unknown_options() -> None:
    with pytest.raises(ConfigurationError, match="nonsense"):
        open_store("s3://bucket", options={"nonsense": "1"})
    with pytest.raises(ConfigurationError, match="boolean"):
        open_store("s3://bucket", options={"virtual_hosted_style_request": "maybe"})
    with pytest.raises(ConfigurationError, match="takes no options, and got endpoint"):
        open_store("file:///tmp/a", options={"endpoint": "x"})


def test_known_options() -> None:
    options = {
        "endpoint": "http://127.0.0.1:1",
        "region": "eu-west-1",
        "virtual_hosted_style_request": "false",
        "allow_invalid_certificates": "false",
        "proxy_url": "http://127.0.0.1:2",
        "checksum_algorithm": "",
        **KEYS,
    }
    store = open_store("s3://bucket/a", options=options)
    assert "nothing" not in store.url


def test_client_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "oplog.archive.objectstore.store_url.find_spec",
        lambda name: None if name == "obstore" else real(name),
    )
    with pytest.raises(ConfigurationError) as raised:
        open_store("s3://bucket")
    assert raised.value.hint == 'pip install "oplog[s3]"'
    assert open_store("memory://").url == "memory://"


def test_client_is_imported_only_when_needed() -> None:
    code = (
        "import sys; from oplog.archive.objectstore.store_url import open_store;"
        "open_store('file:///tmp/x'); print('obstore' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


# -- what the client's errors say ------------------------------------------------------------


def test_signed_urls_are_not_shown() -> None:
    text = (
        "Generic MicrosoftAzure error: Error performing PUT https://x.net/c/a?sv=1&sig=SECRET in"
        " 2ms - HTTP error: error sending request\n\nDebug source:\n sig=SECRET"
    )
    refusal = read_refusal(text, named=None)
    assert refusal.meaning is Meaning.BUSY
    assert "SECRET" not in refusal.message
    assert "error sending request" in refusal.message


def test_missing_credentials_are_told() -> None:
    text = (
        "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 2ms -"
        " Server returned non-2xx status code: 403 Forbidden: no"
    )
    refusal = read_refusal(text, named=None)
    assert refusal.meaning is Meaning.MISCONFIGURED
    assert "no credentials were found" in refusal.message
    assert "AWS_ACCESS_KEY_ID" in refusal.hint


@pytest.mark.parametrize(
    ("code", "named", "meaning"),
    [
        ("BlobAlreadyExists", Meaning.REFUSED, Meaning.REFUSED),
        ("ContainerNotFound", Meaning.ABSENT, Meaning.MISCONFIGURED),
        ("BlobNotFound", Meaning.ABSENT, Meaning.ABSENT),
        ("BlobImmutableDueToPolicy", Meaning.REFUSED, Meaning.LOCKED),
        ("RetentionPolicyNotMet", Meaning.MISCONFIGURED, Meaning.LOCKED),
        ("ServerBusy", None, Meaning.BUSY),
        ("ConditionalRequestConflict", Meaning.REFUSED, Meaning.BUSY),
        ("OperationAborted", Meaning.REFUSED, Meaning.BUSY),
    ],
)
def test_words_of_other_clouds(code: str, named: Meaning | None, meaning: Meaning) -> None:
    text = f"status code: 409 Conflict: <Error><Code>{code}</Code></Error>"
    assert read_refusal(text, named=named).meaning is meaning


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (400, Meaning.MISCONFIGURED),
        (401, Meaning.MISCONFIGURED),
        (403, Meaning.MISCONFIGURED),
        (404, Meaning.ABSENT),
        (405, Meaning.MISCONFIGURED),
        (408, Meaning.BUSY),
        (409, Meaning.REFUSED),
        (412, Meaning.REFUSED),
        (429, Meaning.BUSY),
        (500, Meaning.BUSY),
        (501, Meaning.UNSUPPORTED),
        (502, Meaning.BUSY),
        (503, Meaning.BUSY),
        (504, Meaning.BUSY),
    ],
)
def test_statuses_without_words(status: int, meaning: Meaning) -> None:
    assert read_refusal(f"status code: {status} X: ", named=None).meaning is meaning
