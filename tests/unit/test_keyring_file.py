"""The keyring's file: replaced whole or not at all, and no key in it is ever lost."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oplog.crypto.keyring import Keyring
from oplog.errors import ConfigurationError, KeyUnavailableError

pytestmark = pytest.mark.unit


def text_with(material: bytes) -> str:
    key = base64.urlsafe_b64encode(material).decode()
    keys = {"k1": {"key": key, "created_at": "2025-01-02T03:04:05Z"}}
    return json.dumps({"format": "oplog-keyring/1", "current": "k1", "keys": keys})


def names_in(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir()]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where files are private that a test writes."""
    mask = os.umask(0o077)
    yield tmp_path / "keyring.json"
    os.umask(mask)


def test_saved_keyring_reads_back_and_is_private(path: Path) -> None:
    keyring = Keyring.generate()
    mask = os.umask(0)
    try:
        keyring.save(path)
    finally:
        os.umask(mask)
    assert Keyring.from_file(path).to_text() == keyring.to_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names_in(path.parent) == [path.name]


def test_rotation_is_in_the_file_when_it_returns(path: Path) -> None:
    path.write_text(text_with(bytes(range(32))))
    path.chmod(0o644)
    new = Keyring.from_file(path, shared=True).rotate()
    again = Keyring.from_file(path)
    assert again.key_ids == ("k1", new)
    assert again.current_key_id == new
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names_in(path.parent) == [path.name]


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_private_file_is_read(path: Path, mode: int) -> None:
    path.write_text(text_with(bytes(range(32))))
    path.chmod(mode)
    assert Keyring.from_file(path).key_ids == ("k1",)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o620, 0o660, 0o644, 0o666, 0o777])
def test_a_file_that_others_have_access_to_is_refused(path: Path, mode: int) -> None:
    path.write_text(text_with(bytes(range(32))))
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"has mode {mode:04o}: others") as refusal:
        Keyring.from_file(path)
    assert f"chmod 600 {path}" in refusal.value.hint
    assert "rotate them" in refusal.value.hint
    keyring = Keyring.from_file(path, shared=True)
    keyring.reload()
    assert keyring.key_ids == ("k1",)


def test_a_file_that_becomes_readable_by_all_is_not_read_again(path: Path) -> None:
    Keyring.generate().save(path)
    keyring = Keyring.from_file(path)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="has mode 0644"):
        keyring.reload()


def test_rotation_after_save_goes_to_the_saved_file(path: Path) -> None:
    keyring = Keyring.generate()
    keyring.save(path)
    assert Keyring.from_file(path).current_key_id != keyring.rotate()
    assert Keyring.from_file(path).current_key_id == keyring.current_key_id


def test_two_keyrings_of_one_file_never_drop_each_others_keys(path: Path) -> None:
    Keyring.generate().save(path)
    one, two = Keyring.from_file(path), Keyring.from_file(path)
    made = [one.rotate(), two.rotate(), one.rotate(), two.rotate()]
    assert set(made) < set(Keyring.from_file(path).key_ids)
    assert len(Keyring.from_file(path).key_ids) == 5


def test_rotating_at_once_loses_no_key_that_was_handed_out(path: Path) -> None:
    Keyring.generate().save(path)

    def rotate(_: int) -> str | None:
        try:
            return Keyring.from_file(path).rotate()
        except ConfigurationError as busy:
            if "being changed by another process" not in str(busy):
                raise
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [key_id for key_id in pool.map(rotate, range(40)) if key_id]
    assert made
    assert set(made) < set(Keyring.from_file(path).key_ids)
    assert names_in(path.parent) == [path.name]


def test_threads_that_rotate_one_keyring_all_succeed(path: Path) -> None:
    keyring = Keyring.generate()
    keyring.save(path)
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: keyring.rotate(), range(20)))
    assert len(made) == 20
    assert made < set(Keyring.from_file(path).key_ids)


def test_key_rotated_in_by_another_process_is_found(path: Path) -> None:
    Keyring.generate().save(path)
    reader = Keyring.from_file(path)
    writer = Keyring.from_file(path)
    new = writer.rotate()
    assert reader.data_key(new) == writer.data_key(new)
    assert reader.check_value(new) == writer.check_value(new)
    assert reader.current_key_id == new


def test_reload_takes_over_the_current_key(path: Path) -> None:
    Keyring.generate().save(path)
    reader = Keyring.from_file(path)
    new = Keyring.from_file(path).rotate()
    assert reader.current_key_id != new
    reader.reload()
    assert reader.current_key_id == new


def test_unknown_key_and_unreadable_file_are_both_named(path: Path) -> None:
    keyring = Keyring.generate()
    keyring.save(path)
    path.unlink()
    with pytest.raises(KeyUnavailableError, match="reading it again failed: there is no keyring"):
        keyring.data_key("elsewhere")
    assert keyring.data_key(keyring.current_key_id)


def test_stale_lock_stops_a_rotation_and_says_what_to_do(path: Path) -> None:
    keyring = Keyring.generate()
    keyring.save(path)
    before = path.read_bytes()
    lock = path.with_name("keyring.json.lock")
    lock.touch()
    current = keyring.current_key_id
    with pytest.raises(ConfigurationError, match="being changed") as refusal:
        keyring.rotate()
    assert str(lock) in refusal.value.hint
    assert lock.exists()
    assert (path.read_bytes(), keyring.current_key_id) == (before, current)


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_rotation_that_fails_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    keyring = Keyring.generate()
    keyring.save(path)
    before, current = path.read_bytes(), keyring.current_key_id

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "write":
        monkeypatch.setattr("oplog.crypto.keyfile.format_keyring", fail)
    elif step == "fsync":
        monkeypatch.setattr("os.fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ConfigurationError, match="No space left"):
        keyring.rotate()
    assert (path.read_bytes(), keyring.current_key_id) == (before, current)
    assert names_in(path.parent) == [path.name]


def test_file_and_directory_are_synced_around_the_rename(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(handle: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def record_replace(source: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(source, target)

    monkeypatch.setattr("os.fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    Keyring.generate().save(path)
    assert steps == ["file", "rename", "directory"]


def test_rotation_of_a_vanished_file_does_not_make_a_new_one(path: Path) -> None:
    keyring = Keyring.generate()
    keyring.save(path)
    path.unlink()
    with pytest.raises(ConfigurationError, match="is gone"):
        keyring.rotate()
    assert names_in(path.parent) == []


def test_save_never_overwrites_keys_it_lacks(path: Path) -> None:
    first = Keyring.generate()
    first.save(path)
    with pytest.raises(ConfigurationError, match=first.current_key_id):
        Keyring.generate().save(path)
    assert Keyring.from_file(path).key_ids == first.key_ids


def test_save_never_overwrites_what_is_no_keyring(path: Path) -> None:
    path.write_text("notes")
    with pytest.raises(ConfigurationError, match="malformed"):
        Keyring.generate().save(path)
    assert path.read_text() == "notes"
    assert names_in(path.parent) == [path.name]


def test_two_keys_under_one_id_are_refused(path: Path, tmp_path: Path) -> None:
    path.write_text(text_with(bytes(range(32))))
    keyring = Keyring.from_file(path)
    path.write_text(text_with(bytes(32)))
    for attempt in (keyring.rotate, keyring.reload, lambda: keyring.save(path)):
        with pytest.raises(ConfigurationError, match="another key under the id 'k1'"):
            attempt()
    keyring.save(tmp_path / "elsewhere.json")


def test_save_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be replaced"):
        Keyring.generate().save(tmp_path / "missing" / "keyring.json")


def test_symbolic_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    Keyring.generate().save(real)
    link.symlink_to(real)
    new = Keyring.from_file(link).rotate()
    assert link.is_symlink()
    assert Keyring.from_file(real).current_key_id == new
