"""The keyring: where keys come from, that none is ever lost, and that none gets out."""

from __future__ import annotations

import base64
import copy
import json
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from oplog.crypto.keyfile import KeyRecord
from oplog.crypto.keyring import Keyring
from oplog.crypto.seal import Sealer, name_part
from oplog.crypto.secret import Secret
from oplog.errors import ConfigurationError, KeyUnavailableError, SealError

pytestmark = pytest.mark.unit

KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
CREATED = "2025-01-02T03:04:05Z"


def document(**changes: object) -> dict[str, Any]:
    keys = {"k1": {"key": KEY, "created_at": CREATED}}
    return {"format": "oplog-keyring/1", "current": "k1", "keys": keys, **changes}


def record(**changes: object) -> dict[str, Any]:
    return document(keys={"k1": {"key": KEY, "created_at": CREATED, **changes}})


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where files are private that a test writes."""
    mask = os.umask(0o077)
    yield tmp_path / "keyring.json"
    os.umask(mask)


# -- sources ------------------------------------------------------------------------------


def test_generated_keyring_has_one_current_key_of_32_bytes() -> None:
    keyring = Keyring.generate()
    assert keyring.key_ids == (keyring.current_key_id,)
    assert len(keyring.data_key(keyring.current_key_id)) == 32


def test_generated_keys_and_ids_differ() -> None:
    keyrings = [Keyring.generate() for _ in range(20)]
    assert len({keyring.current_key_id for keyring in keyrings}) == 20
    assert len({keyring.data_key(keyring.current_key_id) for keyring in keyrings}) == 20


def test_text_is_one_line_and_reads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = Keyring.generate()
    keyring.rotate()
    text = keyring.to_text()
    assert "\n" not in text
    monkeypatch.setenv("OPLOG_KEYRING", text)
    again = Keyring.from_env()
    assert again.to_text() == text
    assert again.key_ids == keyring.key_ids


def test_another_variable_may_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", json.dumps(document()))
    assert Keyring.from_env("OTHER").current_key_id == "k1"


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_missing_variable_says_how_to_make_one(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("OPLOG_KEYRING", raising=False)
    if value is not None:
        monkeypatch.setenv("OPLOG_KEYRING", value)
    with pytest.raises(ConfigurationError, match="OPLOG_KEYRING holds no keyring") as refusal:
        Keyring.from_env()
    assert "export OPLOG_KEYRING=" in refusal.value.hint
    assert "Keyring.generate().to_text()" in refusal.value.hint


def test_path_in_the_variable_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPLOG_KEYRING", "/etc/keyring.json")
    with pytest.raises(ConfigurationError, match="does not hold a keyring") as refusal:
        Keyring.from_env()
    assert "from_file" in refusal.value.hint


def test_a_file_in_the_variable_is_read(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    keyring = Keyring.generate()
    keyring.save(path)
    monkeypatch.setenv("OPLOG_KEYRING", str(path))
    again = Keyring.from_env()
    assert again.key_ids == keyring.key_ids
    again.rotate()
    assert Keyring.from_file(path).current_key_id == again.current_key_id
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="others have access"):
        Keyring.from_env()


def test_what_arrived_is_told_without_telling_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = Keyring.generate().to_text()
    eaten = text.replace('"', "")
    monkeypatch.setenv("OPLOG_KEYRING", eaten)
    with pytest.raises(ConfigurationError, match="without its quotation marks") as refusal:
        Keyring.from_env()
    assert f"it has {len(eaten)} characters, begins with '{{'" in str(refusal.value)
    assert "single quotes" in refusal.value.hint
    bare = next(iter(json.loads(text)["keys"].values()))["key"]
    for value, begins in ((f"'{text}'", repr("'")), (f"A{bare}", "a letter or digit")):
        monkeypatch.setenv("OPLOG_KEYRING", value)
        with pytest.raises(ConfigurationError, match=f"begins with {begins}") as refusal:
            Keyring.from_env()
        assert bare[:8] not in str(refusal.value)


def test_missing_file_says_how_to_make_one(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no keyring file at") as refusal:
        Keyring.from_file(path)
    assert "Keyring.generate().save(" in refusal.value.hint


def test_directory_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Keyring.from_file(tmp_path)


def test_oversized_file_is_not_read_whole(path: Path) -> None:
    path.write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(ConfigurationError, match="over 1048576 bytes"):
        Keyring.from_file(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON, at line 1 column 1"),
        ("{", "not JSON, at line 1"),
        ("[" * 100_000, "JSON that cannot be parsed"),
        ("\ufeff{}", "not JSON"),
        ("[]", "the keyring is not an object"),
        ("{}", "exactly format, current, keys"),
        (json.dumps(document(format="oplog-keyring/2")), "its format is not"),
        (json.dumps(document(more=1)), "exactly format, current, keys"),
        (json.dumps(document(keys={})), "at least one key"),
        (json.dumps(document(keys=[])), "at least one key"),
        (json.dumps(document(current="k2")), '"current" is not'),
        (json.dumps(document(current=["k1"])), '"current" is not'),
        (json.dumps(document(keys={"": {}})), "key number 1 has an id"),
        (json.dumps(document(keys={"a b": {}})), "key number 1 has an id"),
        (json.dumps(document(keys={"k" * 65: {}})), "key number 1 has an id"),
        (json.dumps(document(keys={"k1": None})), "key 'k1' is not an object"),
        (json.dumps(record(more=1)), "exactly key, created_at"),
        (json.dumps(record(key=7)), "not a string"),
        (json.dumps(record(created_at="yesterday")), "ISO 8601"),
        (json.dumps(record(key=KEY[:-1])), "not base64url"),
        (json.dumps(record(key=KEY[:8] + "\u00e9" + KEY[9:])), "not base64url"),
        (json.dumps(record(key="!!" + KEY)), "not base64url"),
        (json.dumps(record(key=KEY[:-4])), "has 30 bytes, not 32"),
        (json.dumps(record(key="")), "has 0 bytes, not 32"),
        (json.dumps(record(key=KEY[:-2] + "9=")), "not canonical"),
        (json.dumps(document())[:-1] + ',"current":"k1"}', "one field twice"),
    ],
)
def test_malformed_keyring_says_where(path: Path, text: str, problem: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="malformed") as refusal:
        Keyring.from_file(path)
    assert problem in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert refusal.value.hint


def test_bytes_that_are_not_text_are_refused(path: Path) -> None:
    path.write_bytes(b"\xff\xfe" + json.dumps(document()).encode())
    with pytest.raises(ConfigurationError, match="not JSON"):
        Keyring.from_file(path)


# -- nothing gets out ---------------------------------------------------------------------


def test_repr_and_str_show_ids_only() -> None:
    keyring = Keyring.generate()
    key_id = keyring.current_key_id
    material = keyring.data_key(key_id)
    encoded = base64.urlsafe_b64encode(material).decode()
    for shown in (repr(keyring), str(keyring), f"{keyring}"):
        assert key_id in shown
        assert encoded not in shown
        assert repr(material)[2:-1] not in shown
    assert not hasattr(keyring, "__dict__")
    assert repr(material)[2:-1] not in repr(KeyRecord(Secret(material), CREATED))


@pytest.mark.parametrize("carry", [pickle.dumps, copy.copy, copy.deepcopy])
def test_keyring_does_not_travel_by_accident(carry: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be pickled"):
        carry(Keyring.generate())


@pytest.mark.parametrize("spoil", [lambda text: text[:-1], lambda text: text + "x"])
def test_no_part_of_a_key_is_in_an_error(path: Path, spoil: Any) -> None:
    path.write_text(spoil(json.dumps(document())))
    with pytest.raises(ConfigurationError) as refusal:
        Keyring.from_file(path)
    error: BaseException | None = refusal.value
    # A JSON decoder's exception keeps the document: it must not hang on in the chain.
    assert error is not None
    assert error.__cause__ is None
    assert error.__context__ is None
    assert KEY[:8] not in "".join(traceback.format_exception(error))
    assert KEY[:8] not in repr(vars(error))


def show_with_locals(error: BaseException) -> str:
    """A traceback as error trackers record it: with the local variables of every frame."""
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(found.format())


def assert_hidden(text: str, *keys: bytes) -> None:
    for key in keys:
        for form in (base64.urlsafe_b64encode(key).decode()[:16], repr(key)[2:-1], key.hex()):
            assert form not in text


SPOILED = [
    json.dumps(document())[:-1],
    json.dumps(document()) + "x",
    json.dumps(document(format="oplog-keyring/2")),
    json.dumps(record(created_at="yesterday")),
    json.dumps(record(key=KEY[:-2] + "9=")),
    json.dumps(document(current="k2")),
    KEY,
]


@pytest.mark.parametrize("text", SPOILED)
def test_no_key_is_in_a_frame_of_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path.write_text(text)
    monkeypatch.setenv("OPLOG_KEYRING", text)
    # In functions of their own: this test's frame would show the text.
    for read in (lambda: Keyring.from_file(path), Keyring.from_env):
        shown = _catch(read)
        assert "ConfigurationError" in shown
        assert_hidden(shown, bytes(range(32)))


def _catch(read: Callable[[], object]) -> str:
    try:
        read()
    except ConfigurationError as error:
        return show_with_locals(error)
    return ""


def test_an_oversized_file_is_in_no_frame(path: Path) -> None:
    path.write_text(json.dumps(document()) + " " * (1 << 20))
    assert_hidden(_catch(lambda: Keyring.from_file(path)), bytes(range(32)))


@pytest.mark.parametrize("source", ["generated", "read"])
def test_no_key_is_in_a_frame_of_a_part_that_does_not_open(path: Path, source: str) -> None:
    keyring = Keyring.generate()
    if source == "read":
        keyring.save(path)
        keyring = Keyring.from_file(path)
    sealer, context = Sealer(keyring), name_part(UUID(int=1), UUID(int=2), 0)
    data = sealer.seal(b"x" * 50, context)
    known = keyring.check_value(keyring.current_key_id)
    key = keyring.data_key(keyring.current_key_id)
    derived: list[bytes] = []
    for altered in (data[:-1] + bytes([data[-1] ^ 1]), b"\0" + data[1:]):
        try:
            sealer.open(
                altered, context, format=1, key_id=keyring.current_key_id, check_value=known
            )
        except SealError as error:
            shown = show_with_locals(error)
            frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
            derived += [f.f_locals["key"] for f in frames if f.f_code.co_name == "_open_sealed"]
        assert_hidden(shown, bytes(key), *map(bytes, derived))
    assert len(derived) == 2


def test_a_key_prints_as_a_secret() -> None:
    secret = Secret(b"0" * 32)
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r:>9}", "{}".format(secret)):  # noqa: UP032
        assert "0" not in shown
    for carry in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(ConfigurationError, match="cannot be pickled"):
            carry(Secret(b"0" * 32))


def test_unknown_key_id_is_a_key_error_that_lists_ids() -> None:
    keyring = Keyring.generate()
    for ask in (keyring.data_key, keyring.check_value):
        with pytest.raises(KeyUnavailableError, match="no key 'elsewhere'") as refusal:
            ask("elsewhere")
        assert keyring.current_key_id in refusal.value.hint
        assert refusal.value.exit_code == 12


def test_check_value_is_hkdf_expand_with_its_own_label() -> None:
    keyring = Keyring.generate()
    key_id = keyring.current_key_id
    info = b"oplog/v1/key-check\0" + key_id.encode()
    expected = HKDFExpand(SHA512(), 32, info).derive(keyring.data_key(key_id))
    assert keyring.check_value(key_id) == expected


def test_check_values_tell_keys_apart(path: Path) -> None:
    path.write_text(json.dumps(document()))
    keyring = Keyring.from_file(path)
    first = keyring.check_value("k1")
    second = keyring.check_value(keyring.rotate())
    assert first != second
    assert first == keyring.check_value("k1")
    assert first != keyring.data_key("k1")


# -- rotation in memory --------------------------------------------------------------------


def test_rotation_in_memory_keeps_the_older_keys() -> None:
    keyring = Keyring.generate()
    old = keyring.current_key_id
    material = keyring.data_key(old)
    new = keyring.rotate()
    assert keyring.current_key_id == new != old
    assert keyring.key_ids == (old, new)
    assert keyring.data_key(old) == material != keyring.data_key(new)
