"""What is durable in a directory, what a crash leaves there, and what may have been planted."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oplog.archive.objectstore.directory import DirectoryStore
from oplog.errors import ArchiveError, StorageConfigError, StoreUnavailableError
from tests.faulty_store import Killed
from tests.sampling import Sample

pytestmark = pytest.mark.contract

ROOT = Path(__file__).parents[2]
CHANGING = ("fsync", "link", "mkdir", "replace", "unlink")
HEAD = "HEAD/0000000000000001"


class Disk:
    """What a power failure would leave: names of synchronised directories, synchronised bytes.

    Stands between the store and the system's calls. `budget` calls are carried out; at the next
    one the process is dead, and stays so.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.calls: list[str] = []
        self.budget = budget
        self._names: dict[Path, dict[str, int]] = {}
        self._bytes: dict[int, bytes] = {}

    def call(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            if self.budget is not None and len(self.calls) >= self.budget:
                raise Killed(name)
            self.calls.append(name)
            result = real(*arguments, **options)
            if name == "fsync":
                self._synchronise(arguments[0])
            return result

        return called

    def _synchronise(self, opened: int) -> None:
        place = Path(f"/proc/self/fd/{opened}").readlink()
        found = os.fstat(opened)
        if stat.S_ISDIR(found.st_mode):
            self._names[place] = {entry.name: entry.inode() for entry in os.scandir(place)}
        else:
            self._bytes[found.st_ino] = place.read_bytes()

    def list_survivors(self, folder: Path) -> dict[str, bytes]:
        """Objects below a directory after the power failed."""
        survivors: dict[str, bytes] = {}
        for name, inode in self._names.get(folder, {}).items():
            place = folder / name
            if place.is_dir():
                inner = self.list_survivors(place)
                survivors |= {f"{name}/{path}": data for path, data in inner.items()}
            elif not name.startswith("."):
                survivors[name] = self._bytes.get(inode, b"torn")
        return survivors


@pytest.fixture
def insert(monkeypatch: pytest.MonkeyPatch) -> Callable[[Disk], Disk]:
    real = {name: getattr(os, name) for name in CHANGING}

    def insert(disk: Disk) -> Disk:
        for name in CHANGING:
            monkeypatch.setattr(os, name, disk.call(name, real[name]))
        return disk

    return insert


def write_everything(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield objects as soon as they are said to be there."""
    store = DirectoryStore(root)
    for number in range(2):
        assert store.create(f"LOG/{number}", b"%d" % number * 100)
        yield f"LOG/{number}", b"%d" % number * 100
    for text in (b"first", b"second"):
        store.put("LATEST", text)
        yield "LATEST", text
    assert not store.create("LOG/1", b"other")
    assert store.create(HEAD, b"head")
    yield HEAD, b"head"


def test_what_is_said_to_be_there_survives(tmp_path: Path, insert: Callable[[Disk], Disk]) -> None:
    disk, root = insert(Disk()), tmp_path / "a" / "b"
    told = {}
    for path, data in write_everything(root):
        told[path] = data
        survivors = disk.list_survivors(tmp_path)
        assert survivors == {f"a/b/{name}": kept for name, kept in told.items()}


def test_bytes_before_name_before_directory(tmp_path: Path, insert: Callable[[Disk], Disk]) -> None:
    store = DirectoryStore(tmp_path)
    store.put("HEAD/0", b"")
    disk = insert(Disk())
    store.create("HEAD/1", b"x")
    store.put("HEAD/1", b"y")
    assert [call for call in disk.calls if call != "mkdir"] == [
        *("fsync", "link", "unlink", "fsync"),
        *("fsync", "replace", "unlink", "fsync"),
    ]


def test_what_is_said_to_be_gone_is_gone(tmp_path: Path, insert: Callable[[Disk], Disk]) -> None:
    """Also when somebody who was killed had removed it, without making that durable."""
    disk, store = insert(Disk()), DirectoryStore(tmp_path)
    store.put("HEAD/1", b"x")
    store.put("HEAD/2", b"x")
    store.delete("HEAD/1")
    assert disk.list_survivors(tmp_path) == {"HEAD/2": b"x"}
    (tmp_path / "HEAD" / "2").unlink()
    store.delete("HEAD/2")
    assert disk.list_survivors(tmp_path) == {}


@pytest.mark.sampled
def test_killed_at_every_call(
    tmp_path: Path, insert: Callable[[Disk], Disk], sample: Sample
) -> None:
    """Nothing torn is ever listed, and what was said to be there survives even the power."""
    insert(whole := Disk())
    list(write_everything(tmp_path / "whole"))
    assert len(whole.calls) > 30
    for budget in sample(range(len(whole.calls)), 12):
        root = tmp_path / str(budget) / "deep"
        root.parent.mkdir()
        disk = insert(Disk(budget))
        told = write_until_killed(root)
        insert(after := Disk())
        check_whole(DirectoryStore(root), told)
        assert set(disk.list_survivors(root.parent)) >= {f"deep/{path}" for path in told}
        assert b"torn" not in disk.list_survivors(root.parent).values()
        list_again(root)
        assert after.list_survivors(root.parent)


def write_until_killed(root: Path) -> dict[str, bytes]:
    told: dict[str, bytes] = {}
    writing = write_everything(root)
    try:
        while True:
            path, data = next(writing)
            told[path] = data
    except Killed:
        return told


def check_whole(store: DirectoryStore, told: dict[str, bytes]) -> None:
    possible = {"LATEST": {b"first", b"second"}, HEAD: {b"head"}}
    listed = {info.path: info.size for info in store.list("")}
    assert set(listed) >= set(told)
    for path, size in listed.items():
        data = store.get(path, most=1000)
        assert data is not None
        assert len(data) == size
        assert data in possible.get(path, {path[-1].encode() * 100})


def list_again(root: Path) -> None:
    """A fresh process finishes the work of the dead one."""
    store = DirectoryStore(root)
    for number in range(2):
        store.create(f"LOG/{number}", b"%d" % number * 100)
    store.put("LATEST", b"second")
    store.create(HEAD, b"head")
    assert {info.path for info in store.list("")} == {"LATEST", "LOG/0", "LOG/1", HEAD}


def test_name_of_somebody_who_was_killed_becomes_durable(
    tmp_path: Path, insert: Callable[[Disk], Disk]
) -> None:
    """Killed between link and fsync: whoever goes on from that object relies on it."""
    store = DirectoryStore(tmp_path)
    store.create("HEAD/0", b"")
    insert(dying := Disk())
    store.create("HEAD/1", b"dry run")
    link = dying.calls.index("link")
    insert(Disk(link + 1))
    with pytest.raises(Killed):
        store.create("HEAD/2", b"unsure")

    disk = insert(Disk())
    assert DirectoryStore(tmp_path).get("HEAD/2", most=10) == b"unsure"
    assert "HEAD/2" in disk.list_survivors(tmp_path)
    disk = insert(Disk())
    assert not store.create("HEAD/2", b"other")
    assert str(tmp_path / "HEAD") in map(str, disk._names)


WRITER = """
import hashlib, sys
from pathlib import Path
from oplog.archive.objectstore.directory import DirectoryStore
store = DirectoryStore(Path(sys.argv[1]))
for number in range(1000):
    data = b"%d" % number * 300_000
    path = "LOG/" + hashlib.sha256(data).hexdigest()
    (store.create if number % 2 else store.put)(path, data)
    print(path, flush=True)
"""


@pytest.mark.parametrize("writes", [0, 1, 4, 9])
def test_killed_for_real(tmp_path: Path, writes: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "store")], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline().decode().strip() for _ in range(writes)]
        process.send_signal(signal.SIGKILL)
    store = DirectoryStore(tmp_path / "store")
    listed = [info.path for info in store.list("")]
    assert set(listed) >= set(told)
    for path in listed:
        data = store.get(path, most=1 << 24)
        assert data is not None
        assert path == f"LOG/{hashlib.sha256(data).hexdigest()}"


def test_leftovers_are_nobodys_object(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.create("LOG/1", b"x")
    (tmp_path / "LOG" / ".0123.draft").write_bytes(b"half")
    (tmp_path / "LOG" / "has space").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_bytes(b"")
    assert [info.path for info in store.list("")] == ["LOG/1"]


# -- what may have been planted --------------------------------------------------------------


@pytest.fixture
def planted(tmp_path: Path) -> DirectoryStore:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "LOG").mkdir(parents=True)
    (root / "HEAD").symlink_to(outside)
    (root / "LOG" / "link").symlink_to(outside / "secret")
    (root / "LOG" / "folder").mkdir()
    os.mkfifo(root / "LOG" / "pipe")
    return DirectoryStore(root)


@pytest.mark.parametrize("path", ["HEAD/secret", "LOG/link", "LOG/pipe", "LOG/folder"])
def test_only_plain_files_are_read(planted: DirectoryStore, path: str) -> None:
    with pytest.raises(StorageConfigError):
        planted.get(path, most=100)
    with pytest.raises(StorageConfigError):
        planted.head(path)


def test_links_are_not_written_through(planted: DirectoryStore, tmp_path: Path) -> None:
    with pytest.raises(StorageConfigError):
        planted.create("HEAD/1", b"mine")
    with pytest.raises(StorageConfigError):
        planted.delete("HEAD/secret")
    assert not planted.create("LOG/link", b"mine")
    planted.put("LOG/link", b"mine")
    assert planted.get("LOG/link", most=10) == b"mine"
    assert {entry.name for entry in (tmp_path / "outside").iterdir()} == {"secret"}
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"


def test_links_are_not_listed(planted: DirectoryStore) -> None:
    planted.create("LOG/1", b"x")
    assert [info.path for info in planted.list("")] == ["LOG/1"]
    with pytest.raises(StorageConfigError):
        list(planted.list("HEAD/"))


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    DirectoryStore(tmp_path / "link").create("LOG/1", b"x")
    assert (tmp_path / "real" / "LOG" / "1").read_bytes() == b"x"


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageConfigError):
        DirectoryStore(tmp_path / "file").create("LOG/1", b"x")
    with pytest.raises(StorageConfigError):
        DirectoryStore(tmp_path / "file").get("LOG/1", most=1)


# -- what the system refuses -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code", "kind"),
    [
        ("fsync", errno.ENOSPC, StoreUnavailableError),
        ("fsync", errno.EIO, StoreUnavailableError),
        ("link", errno.EPERM, StorageConfigError),
        ("open", errno.EACCES, StorageConfigError),
        ("open", errno.EROFS, StorageConfigError),
    ],
)
def test_refusals_of_the_system(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
    kind: type[ArchiveError],
) -> None:
    store = DirectoryStore(tmp_path)
    store.create("LOG/1", b"x")

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, refuse)
        with pytest.raises(kind, match=os.strerror(code)) as raised:
            store.create("LOG/2", b"y")
    assert raised.value.hint
    assert [info.path for info in store.list("")] == ["LOG/1"]
    assert [entry.name for entry in (tmp_path / "LOG").iterdir()] == ["1"]


def read_modes(root: Path) -> set[str]:
    return {
        f"{'folder' if path.is_dir() else 'file'} {stat.S_IMODE(path.stat().st_mode):04o}"
        for path in [root, *root.rglob("*")]
    }


@pytest.fixture
def open_umask() -> Iterator[None]:
    mask = os.umask(0)
    yield
    os.umask(mask)


@pytest.mark.usefixtures("open_umask")
def test_a_root_that_is_made_is_its_owners_alone(tmp_path: Path) -> None:
    root = tmp_path / "backups" / "archive"
    store = DirectoryStore(root)
    assert store.create("log/1/a", b"a")
    store.put("LATEST", b"b")
    assert read_modes(tmp_path / "backups") == {"folder 0700", "file 0600"}


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize(
    ("mode", "found"),
    [
        (0o750, {"folder 0750", "file 0640"}),
        (0o770, {"folder 0770", "file 0660"}),
        (0o755, {"folder 0755", "file 0644"}),
    ],
)
def test_in_a_root_that_was_there_objects_are_as_private_as_it_is(
    tmp_path: Path, mode: int, found: set[str]
) -> None:
    root = tmp_path / "archive"
    root.mkdir(mode)
    store = DirectoryStore(root)
    assert store.create("log/1/a", b"a")
    store.put("LATEST", b"b")
    store.put("LATEST", b"c")
    assert read_modes(root) == found
