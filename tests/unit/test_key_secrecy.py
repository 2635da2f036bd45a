"""No key gets out by accident: not in a traceback with locals, a log line, a copy or an exception.

Besides errors, any line may be interrupted by Ctrl-C, a signal's handler or a lack of memory, and
error trackers record the local variables of every frame then. So each line is interrupted here.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import errno
import gc
import json
import logging
import os
import pickle
import pprint
import reprlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any
from uuid import UUID

import pytest

from oplog import Keyring
from oplog.crypto import keyfile
from oplog.crypto.seal import Packing, Sealer, name_part
from oplog.crypto.secret import Secret
from oplog.errors import ConfigurationError, OplogError

pytestmark = pytest.mark.unit

KEY = bytes(range(100, 132))
CONTEXT = name_part(UUID(int=1), UUID(int=2), 0)
CRYPTO = Path(keyfile.__file__).parent
FORMS = (
    base64.urlsafe_b64encode(KEY).decode()[:12],
    base64.b64encode(KEY).decode()[:12],
    KEY.hex()[:16],
    repr(KEY)[2:18],
    repr(list(KEY))[1:20],
)


def write(path: Path, **changes: object) -> Path:
    """A keyring file with the key, or one that is malformed."""
    record = {"key": base64.urlsafe_b64encode(KEY).decode(), "created_at": "2025-01-02T03:04:05Z"}
    document = {"format": "oplog-keyring/1", "current": "k1", "keys": {"k1": record}, **changes}
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return path


def show(value: object) -> str:
    """As error trackers do: what has no representation is left out."""
    try:
        return repr(value)
    except Exception as failure:  # noqa: BLE001 - whatever a half-made object raises
        return type(failure).__name__


def find_leaks(error: BaseException) -> list[str]:
    """Where an exception, or one that it came from, shows the key."""
    found, seen = [], [error]
    for one in seen:
        seen += [e for e in (one.__cause__, one.__context__) if e is not None and e not in seen]
        told = {"args": one.args, "text": str(one), "notes": getattr(one, "__notes__", ())}
        found += [name for name, value in {**vars(one), **told}.items() if leaks(show(value))]
        for frame, _ in traceback.walk_tb(one.__traceback__):
            # The tests' own frames have the key.
            if frame.f_code.co_filename != __file__:
                found += [
                    f"{frame.f_code.co_qualname}: {name}"
                    for name, value in frame.f_locals.items()
                    if leaks(show(value))
                ]
    return found


def leaks(text: str) -> bool:
    return any(form in text for form in FORMS)


def test_what_finds_leaks_finds_them() -> None:
    def fail(key: object) -> None:
        json.loads(f"[{key}")

    for value in (KEY, base64.urlsafe_b64encode(KEY).decode(), list(KEY)):
        with pytest.raises(ValueError) as failure:  # noqa: PT011 - its document has the key
            fail(value)
        assert find_leaks(failure.value)
    assert not leaks(show(Secret(KEY)))


# -- every line is interrupted ------------------------------------------------------------------


class InterruptedHereError(BaseException):
    """What a signal's handler raises."""


def interrupt(work: Callable[[], object], number: int) -> BaseException | None:
    """Raise at a line of `oplog.crypto` that `work` comes to; None if it has not so many.

    In a thread of its own: what is raised at the end of an `except` block leaves its error behind
    as that which the thread is handling, for whatever comes after.
    """
    failures: list[BaseException] = []
    thread = Thread(target=_interrupt_here, args=(work, number, failures))
    thread.start()
    thread.join()
    return failures[0] if failures else None


def _interrupt_here(work: Callable[[], object], number: int, failures: list[BaseException]) -> None:
    counted = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal counted
        if Path(frame.f_code.co_filename).parent != CRYPTO:
            return None
        if event == "line":
            counted += 1
            if counted == number:
                raise InterruptedHereError
        return trace

    sys.settrace(trace)
    try:
        work()
    except BaseException as failure:  # noqa: BLE001 - the interruption, and what was made of it
        failures.append(failure)
    finally:
        sys.settrace(None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keyring.json"


Work = Callable[[Path], object]


def seal(path: Path) -> bytes:
    sealer = Sealer(Keyring.from_file(path))
    return sealer.seal(b"x" * 300, CONTEXT, packing=Packing.PADDED)


def seal_and_open(path: Path) -> bytes:
    keyring = Keyring.from_file(path)
    return Sealer(keyring).open(
        seal(path), CONTEXT, format=1, key_id="k1", check_value=keyring.check_value("k1")
    )


WORK: dict[str, Work] = {
    "from_file": Keyring.from_file,
    "from_env": lambda _: Keyring.from_env(),
    "rotate": lambda path: Keyring.from_file(path).rotate(),
    "save": lambda path: Keyring.from_file(path).save(path),
    "save elsewhere": lambda path: Keyring.from_file(path).save(path.with_suffix(".copy")),
    "reload": lambda path: Keyring.from_file(path).reload(),
    "renew": lambda path: Keyring.from_file(path).renew("k1"),
    "to_text": lambda path: Keyring.from_file(path).to_text(),
    "unknown": lambda path: Keyring.from_file(path).data_key("k2"),
    "seal": seal,
    "open": seal_and_open,
}


# A `with` that is interrupted in its last step leaves its file to the collector, which has to come
# by before the test ends: elsewhere it would fail a test that has nothing to do with it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_an_interruption_shows_no_key(
    path: Path, monkeypatch: pytest.MonkeyPatch, work: Work
) -> None:
    monkeypatch.setenv("OPLOG_KEYRING", write(path).read_text())
    number = 0
    while True:
        number += 1
        write(path)
        path.with_name(path.stem + ".copy.lock").unlink(missing_ok=True)
        failure = interrupt(lambda: work(path), number)
        if not isinstance(failure, InterruptedHereError):
            break
        assert find_leaks(failure) == [], number
    assert number > 20
    failure = None
    gc.collect()


# -- public failures ----------------------------------------------------------------------------


def spoil_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, name, fail)


FAILURES: dict[str, Work] = {
    "another format": lambda path: Keyring.from_file(write(path, format="oplog-keyring/9")),
    "no current key": lambda path: Keyring.from_file(write(path, current="k7")),
    "not for all": lambda path: Keyring.from_file(_open_up(write(path))),
    "another key": lambda path: _replace(path, lambda keyring: keyring.reload()),
    "another key, saved": lambda path: _replace(path, lambda keyring: keyring.save(path)),
    "another key, rotated": lambda path: _replace(path, lambda keyring: keyring.rotate()),
    "locked": lambda path: Keyring.from_file(_lock(write(path))).rotate(),
    "gone": lambda path: _remove(path, Keyring.from_file(write(path))).rotate(),
    "no such key": lambda path: Keyring.from_file(write(path)).check_value("k2"),
    "pickled": lambda path: pickle.dumps(Keyring.from_file(write(path))),
    "altered": lambda path: _open(path, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "moved": lambda path: _open(path, lambda data: bytes(24) + data[24:]),
    "cut": lambda path: _open(path, lambda data: data[:50]),
    "too large": lambda path: Sealer(Keyring.from_file(write(path))).seal(
        bytes((1 << 24) + 1), CONTEXT
    ),
}


def _open_up(path: Path) -> Path:
    path.chmod(0o644)
    return path


def _lock(path: Path) -> Path:
    path.with_name(path.name + ".lock").touch()
    return path


def _remove(path: Path, keyring: Keyring) -> Keyring:
    path.unlink()
    return keyring


def _replace(path: Path, then: Callable[[Keyring], object]) -> object:
    keyring = Keyring.from_file(write(path))
    other = {"key": base64.urlsafe_b64encode(bytes(32)).decode(), "created_at": "2025-01-02"}
    write(path, keys={"k1": other})
    return then(keyring)


def _open(path: Path, spoil: Callable[[bytes], bytes]) -> object:
    keyring = Keyring.from_file(write(path))
    data = spoil(Sealer(keyring).seal(b"x" * 40, CONTEXT))
    known = keyring.check_value("k1")
    return Sealer(keyring).open(data, CONTEXT, format=1, key_id="k1", check_value=known)


@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_shows_no_key(path: Path, fail: Work) -> None:
    with pytest.raises(OplogError) as failure:
        fail(path)
    assert find_leaks(failure.value) == []


@pytest.mark.parametrize("name", ["fsync", "fchmod", "open"])
def test_a_full_disk_shows_no_key(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    keyring = Keyring.from_file(write(path))
    spoil_disk(monkeypatch, name)
    with pytest.raises(ConfigurationError, match="cannot be replaced") as failure:
        keyring.rotate()
    monkeypatch.undo()
    assert find_leaks(failure.value) == []
    # The key that was made for it is nowhere either.
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["keyring.json"]


# -- what prints, copies and stores objects -----------------------------------------------------


@pytest.fixture
def objects(path: Path) -> list[object]:
    keyring = Keyring.from_file(write(path))
    text = keyring._keys.text
    return [
        keyring,
        keyring.data_key("k1"),
        text,
        text.keys,
        text.keys["k1"],
        keyring._keys,
        Sealer(keyring),
        {"nested": [keyring.data_key("k1")]},
    ]


PRINTERS: dict[str, Callable[[Any], str]] = {
    "repr": repr,
    "str": str,
    "format": "{}".format,
    "percent": lambda value: "%s %r %a" % ((value,) * 3),
    "pprint": pprint.pformat,
    "reprlib": reprlib.repr,
    "ascii": ascii,
    # As rich's tracebacks and others shorten long values.
    "shortened": lambda value: repr(value[:20]) if isinstance(value, bytes) else "",
    "vars": lambda value: repr(getattr(value, "__dict__", "")),
}


@pytest.mark.parametrize("printer", PRINTERS.values(), ids=PRINTERS.keys())
def test_nothing_prints_a_key(objects: list[object], printer: Callable[[Any], str]) -> None:
    for value in objects:
        assert not leaks(printer(value)), type(value)


def test_a_slice_of_a_key_is_as_secret_and_still_the_bytes() -> None:
    secret = Secret(KEY)
    assert (secret[3], secret[4:8]) == (KEY[3], KEY[4:8])
    assert repr(secret[4:8]) == repr(secret[::-1]) == "<secret>"


def test_no_log_line_has_a_key(objects: list[object], caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("application")
    for value in objects:
        logger.warning("keyring %s, %r", value, value, extra={"value": value})
        logger.warning(value)
    assert not leaks(caplog.text)


def copy_fields(value: object) -> object:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise TypeError
    return dataclasses.asdict(value)


@pytest.mark.parametrize("carry", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, copy_fields])
def test_a_key_is_not_carried_away(path: Path, carry: Callable[[Any], object]) -> None:
    keyring = Keyring.from_file(write(path))
    text = keyring._keys.text
    for value in (keyring, keyring.data_key("k1"), text.keys["k1"], Sealer(keyring)):
        refused: BaseException | None = None
        carried: object = None
        try:
            carried = carry(value)
        except (ConfigurationError, TypeError) as failure:
            refused = failure
        # A shallow copy shares the key, and hides it as before; all others are refused.
        assert refused is not None or carry is copy.copy
        assert not leaks(show(carried))
        assert refused is None or find_leaks(refused) == []
