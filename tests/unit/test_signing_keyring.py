"""The keyring of the publisher and the trust file of a reader: private, whole, not confused."""

from __future__ import annotations

import json
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from oplog.cli import main
from oplog.crypto.keyring import Keyring
from oplog.crypto.signing_keyring import SIGNING_KEYRING, SigningKeyring
from oplog.crypto.trust import TRUST, Trust, change_trust_file
from oplog.errors import ConfigurationError

pytestmark = pytest.mark.unit

KEY = "ab" * 32
LOG = UUID("0191e0a0-7f5c-7000-8000-0123456789ab")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    mask = os.umask(0)
    yield tmp_path / "signing.json"
    os.umask(mask)


def test_a_saved_keyring_reads_back_and_is_private(path: Path) -> None:
    keyring = SigningKeyring.generate()
    keyring.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKeyring.from_file(path).to_text() == keyring.to_text()
    assert SigningKeyring.from_file(path).sign_head(b"x") == keyring.sign_head(b"x")


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o620, 0o601])
def test_one_that_others_have_access_to_is_refused(path: Path, mode: int) -> None:
    SigningKeyring.generate().save(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="others have access to its keys"):
        SigningKeyring.from_file(path)
    assert SigningKeyring.from_file(path, shared=True).publishers


def test_a_new_key_is_in_the_file_before_it_signs(path: Path) -> None:
    SigningKeyring.generate().save(path)
    keyring = SigningKeyring.from_file(path)
    old, new = keyring.publisher, keyring.rotate()
    assert SigningKeyring.from_file(path).publishers == (old, new) == keyring.publishers
    assert SigningKeyring.from_file(path).publisher == new


def test_a_keyring_is_never_overwritten(path: Path) -> None:
    SigningKeyring.generate().save(path)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="there is a signing keyring at"):
        SigningKeyring.generate().save(path)
    assert path.read_bytes() == before


def test_the_two_kinds_of_keyring_are_not_taken_for_each_other(path: Path) -> None:
    Keyring.generate().save(path)
    with pytest.raises(ConfigurationError, match="its format is not 'oplog-signing-keyring/1'"):
        SigningKeyring.from_file(path)
    path.unlink()
    SigningKeyring.generate().save(path)
    with pytest.raises(ConfigurationError, match="its format is not 'oplog-keyring/1'"):
        Keyring.from_file(path)


def test_a_key_stands_under_its_public_key(path: Path) -> None:
    keyring = SigningKeyring.generate()
    text = keyring.to_text().replace(keyring.publisher, KEY)
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="not its public key") as caught:
        SigningKeyring.from_file(path)
    assert json.loads(text)["keys"][KEY]["key"] not in str(caught.value)


def test_no_key_shows_itself() -> None:
    keyring = SigningKeyring.generate()
    (record,) = json.loads(keyring.to_text())["keys"].values()
    assert record["key"] not in repr(keyring)
    with pytest.raises(ConfigurationError, match="cannot be pickled"):
        pickle.dumps(keyring)


def test_the_environment_names_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SIGNING_KEYRING, raising=False)
    assert SigningKeyring.from_env() is None
    keyring = SigningKeyring.generate()
    keyring.save(path)
    for value in (str(path), keyring.to_text()):
        monkeypatch.setenv(SIGNING_KEYRING, value)
        found = SigningKeyring.from_env()
        assert found is not None
        assert found.publisher == keyring.publisher
    for value in (str(path.parent / "none"), '{"x": 1}'):
        monkeypatch.setenv(SIGNING_KEYRING, value)
        with pytest.raises(ConfigurationError, match="signing keyring"):
            SigningKeyring.from_env()


# -- the trust file -----------------------------------------------------------------------


def test_a_trust_file_reads_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = change_trust_file(path, lambda trust: trust.add(KEY, log=LOG).add("cd" * 32))
    assert made == Trust.from_file(path) == Trust({KEY: LOG, "cd" * 32: None})
    assert change_trust_file(path, lambda trust: trust.revoke(KEY)).revoked == {KEY}
    assert Trust.from_file(path) == Trust({"cd" * 32: None}, frozenset({KEY}))
    monkeypatch.setenv(TRUST, str(path))
    assert Trust.from_env() == Trust.from_file(path)
    monkeypatch.delenv(TRUST)
    assert Trust.from_env() is None


@pytest.mark.parametrize("mode", [0o622, 0o664, 0o646])
def test_one_that_others_can_write_is_refused(path: Path, mode: int) -> None:
    change_trust_file(path, lambda trust: trust.add(KEY))
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="others could add a key"):
        Trust.from_file(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format":"oplog-trust/2","publishers":{},"revoked":[]}',
        '{"format":"oplog-trust/1","publishers":{"x":null},"revoked":[]}',
        '{"format":"oplog-trust/1","publishers":{"KEY":"x"},"revoked":[]}',
        '{"format":"oplog-trust/1","publishers":{"KEY":null},"revoked":["KEY"]}',
        '{"format":"oplog-trust/1","publishers":[],"revoked":[]}',
        '{"format":"oplog-trust/1","publishers":{},"revoked":[7]}',
        '{"format":"oplog-trust/1","publishers":{},"revoked":[],"more":1}',
    ],
)
def test_anything_else_is_no_trust_file(path: Path, text: str) -> None:
    path.write_text(text.replace("KEY", KEY))
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="is malformed"):
        Trust.from_file(path)


def test_a_revoked_key_is_not_pinned_again() -> None:
    revoked = Trust().add(KEY).revoke(KEY)
    with pytest.raises(ConfigurationError, match="was revoked here"):
        revoked.add(KEY)
    with pytest.raises(ConfigurationError, match="is not pinned"):
        revoked.remove(KEY)
    for wrong in ("", "AB" * 32, "ab" * 31, KEY + "\n"):
        with pytest.raises(ConfigurationError, match="64 hexadecimal digits"):
            Trust().add(wrong)
        with pytest.raises(ConfigurationError, match="64 hexadecimal digits"):
            Trust().revoke(wrong)


# -- the commands -------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    shown = capsys.readouterr()
    return code, shown.out or shown.err


def test_commands_make_list_and_rotate_the_key(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, made = run(capsys, "publisher", "generate", "--file", str(path))
    key = SigningKeyring.from_file(path).publisher
    assert (code, made) == (0, f"{key}  current\n")
    code, told = run(capsys, "publisher", "generate", "--file", str(path))
    assert code == 2
    assert "oplog publisher rotate" in told
    run(capsys, "--signing-keyring", str(path), "publisher", "rotate")
    _, shown = run(capsys, "publisher", "list", "--file", str(path), "--json")
    document = json.loads(shown)
    assert document["publishers"][0] == key
    assert document["current"] == SigningKeyring.from_file(path).publisher != key
    assert json.loads(SigningKeyring.from_file(path).to_text())["keys"][key]["key"] not in shown


def test_commands_pin_and_revoke(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRUST, raising=False)
    assert run(capsys, "trust", "add", KEY)[0] == 2
    file = ("--file", str(path))
    assert run(capsys, "trust", "list", *file)[0] == 2
    assert run(capsys, "trust", "add", KEY, "--log", str(LOG), *file) == (
        0,
        f"{KEY}  pinned for the log {LOG}\n",
    )
    monkeypatch.setenv(TRUST, str(path))
    run(capsys, "trust", "add", "cd" * 32)
    assert run(capsys, "trust", "revoke", KEY)[0] == 0
    assert run(capsys, "trust", "remove", "cd" * 32) == (0, f"{KEY}  revoked\n")
    assert run(capsys, "trust", "add", KEY)[0] == 2
    _, shown = run(capsys, "--json", "trust", "list")
    assert json.loads(shown) == {"publishers": [], "revoked": [KEY]}
