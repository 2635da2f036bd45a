"""A store behind a private CA: trusted when it is named, and refused at once when it is not."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from oplog.archive.objectstore.protocol import ObjectStore
from oplog.archive.objectstore.store_url import open_store
from oplog.backoff import Backoff
from oplog.errors import ConfigurationError, StorageConfigError
from tests.s3stub import BUCKET, CREDENTIALS, S3Stub

Key = ec.EllipticCurvePrivateKey


def sign(name: str, key: Key, issuer: str, issuer_key: Key, *, ca: bool) -> bytes:
    """A certificate in PEM."""
    at = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1))
        .not_valid_after(datetime(2090, 1, 1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(at), critical=False)
    )
    signed = builder.sign(issuer_key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "ca.pem"


@pytest.fixture
def stub(tmp_path: Path, bundle: Path) -> Iterator[S3Stub]:
    """A server whose certificate a CA has signed that nobody knows."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    bundle.write_bytes(sign("Some CA", ca_key, "Some CA", ca_key, ca=True))
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    server = tmp_path / "server.pem"
    server.write_bytes(sign("store", key, "Some CA", ca_key, ca=False) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server)
    with S3Stub(context) as stub:
        yield stub


def open_there(stub: S3Stub, **options: str) -> ObjectStore:
    def sleep(seconds: float) -> None:
        pytest.fail(f"it tries again in {seconds} s: no other attempt ends otherwise")

    return open_store(
        f"s3://{BUCKET}/private",
        options={"endpoint": stub.endpoint, **CREDENTIALS, **options},
        timeout_seconds=10.0,
        backoff=Backoff(sleep=sleep),
    )


@pytest.fixture(autouse=True)
def no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_an_unknown_ca_is_told_at_once(stub: S3Stub) -> None:
    store = open_there(stub)
    for ask in (
        lambda: store.get("a", most=10),
        lambda: store.create("a", b"x"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StorageConfigError, match="certificate is not trusted") as caught:
            ask()
        assert "AWS_CA_BUNDLE" in str(caught.value.hint)
        assert "network" not in str(caught.value)


def test_a_bundle_is_named_by_the_usual_variable(
    stub: S3Stub, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    check(open_there(stub))


def test_a_bundle_is_named_by_an_option(stub: S3Stub, bundle: Path) -> None:
    check(open_there(stub, ca_bundle=str(bundle)))
    check(open_there(stub, root_certificate=bundle.read_text()))


def test_the_system_variable_goes_on_working(
    stub: S3Stub, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    check(open_there(stub))


def check(store: ObjectStore) -> None:
    store.put("a", b"x")
    assert store.get("a", most=10) == b"x"
    assert [info.path for info in store.list("")] == ["a"]
    store.delete("a")


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_a_bundle_that_is_none_is_told_before_any_request(
    stub: S3Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "there.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(path))
    with pytest.raises(ConfigurationError, match=r"AWS_CA_BUNDLE names .*there\.pem"):
        open_there(stub)
    with pytest.raises(ConfigurationError, match="the option ca_bundle names"):
        open_there(stub, ca_bundle=str(path))
    assert stub.requests == []
