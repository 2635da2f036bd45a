"""Objects as files of a directory, as durable as the file system makes them.

A name is durable only when its directory was synchronised after the name was made. So the order
is: file first, then link or rename, then directory. What a crash leaves behind starts with a
dot; no path of an object does.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from oplog.archive.objectstore.protocol import ObjectInfo, check_path, check_prefix, is_path
from oplog.errors import ObjectTooLargeError, StorageConfigError, StoreUnavailableError

# Names that only POSIX has: the module is imported everywhere, and used where they mean something.
_DIRECTORY = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
# Not through symbolic links: what lies in the directory may have been planted there.
FOLDER_FLAGS = os.O_RDONLY | _DIRECTORY | _PLAIN
# Not blocking: a pipe in the place of an object must not stop the reader for ever.
READ_FLAGS = os.O_RDONLY | _PLAIN | getattr(os, "O_NONBLOCK", 0)
WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN
# What the operator has to mend; everything else (no space, broken disk) may pass.
REFUSALS = {
    errno.EACCES,
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMLINK,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EROFS,
}


_OWN_FOLDER = 0o700
_NOT_RUN = 0o666


class DirectoryStore:
    """A store in the directory `root`, which is made with the first object if it is not there.

    Works on file systems that have hard links. Readers need permission to read only. A root that
    is made here is its owner's alone; in any other, objects and folders are as private as it is.
    """

    def __init__(self, root: Path) -> None:
        """Raises `StorageConfigError` where files are not opened relative to a directory."""
        if os.open not in os.supports_dir_fd:
            raise StorageConfigError(
                "an archive in a directory needs a POSIX system: elsewhere a link in the path "
                "could lead out of it",
                hint="use an object store: s3://, gs:// or az://",
            )
        self.url = root.absolute().as_uri()
        self._root = root.absolute()
        self._lock = threading.Lock()
        self._synced: set[tuple[str, ...]] = set()

    def get(self, path: str, *, most: int) -> bytes | None:
        """Return the object at `path`, or None."""
        with self._explained(path), self._opened(path) as opened:
            if opened is None:
                return None
            size = _measure(opened, path).st_size
            data = bytearray()
            while size <= most and (piece := os.read(opened, most + 1 - len(data))):
                data += piece
                # The file may grow while it is read, which no correct program makes it do.
                size = max(size, len(data))
        if size > most:
            raise ObjectTooLargeError(
                f"{path} has {size} bytes, at most {most} are expected",
                hint="nothing of this size is ever written there: it was altered",
            )
        return bytes(data)

    def head(self, path: str) -> ObjectInfo | None:
        """Return size and age of the object at `path`, or None."""
        with self._explained(path), self._opened(path) as opened:
            return None if opened is None else _describe(path, _measure(opened, path))

    def create(self, path: str, data: bytes, *, once: bool = False) -> bool:
        """Write an object if there is none; durable when this returns. Always one request."""
        del once
        with self._explained(path), self._folder(path, make=True) as (folder, name):
            with self._written(folder, data) as draft:
                try:
                    os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
                    created = True
                except FileExistsError:
                    created = False
            # Also when refused: the process that made what is there may have been killed before
            # this, and this one is going to rely on it.
            os.fsync(folder)
        return created

    def put(self, path: str, data: bytes) -> None:
        """Write an object, whatever is there; durable when this returns."""
        with self._explained(path), self._folder(path, make=True) as (folder, name):
            with self._written(folder, data) as draft:
                os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)

    def delete(self, path: str) -> None:
        """Remove an object, if there is one; gone for good when this returns."""
        with self._explained(path), ExitStack() as stack:
            try:
                folder, name = stack.enter_context(self._folder(path, make=False))
            except FileNotFoundError:
                return
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            # Also when it was gone already: that may not be durable yet.
            os.fsync(folder)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below `prefix`, as the file system has them."""
        check_prefix(prefix)
        parts = tuple(prefix.split("/")[:-1])
        with self._explained(prefix):
            found = [info for info in self._walk(parts) if info.path > after]
        yield from found

    # -- inside ---------------------------------------------------------------------------

    def _walk(self, parts: tuple[str, ...]) -> Iterator[ObjectInfo]:
        folders = [parts]
        while folders:
            parts = folders.pop()
            # Whatever goes away meanwhile was deleted: it is not listed.
            with suppress(FileNotFoundError), self._opened_folder(parts, make=False) as folder:
                with os.scandir(folder) as entries:
                    names = [entry.name for entry in entries]
                for name in names:
                    place = "/".join((*parts, name))
                    if not is_path(place):
                        continue
                    with suppress(FileNotFoundError):
                        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                        if stat.S_ISDIR(found.st_mode):
                            folders.append((*parts, name))
                        elif stat.S_ISREG(found.st_mode):
                            yield _describe(place, found)

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"{self.url}: {path or 'listing'}: {error.strerror}"
            if error.errno in REFUSALS:
                raise StorageConfigError(
                    where,
                    hint="see that the directory holds plain files that this process may read and"
                    " write, on a file system with hard links",
                ) from error
            raise StoreUnavailableError(where, hint="see the disk") from error

    @contextmanager
    def _opened(self, path: str) -> Iterator[int | None]:
        with ExitStack() as stack:
            try:
                folder, name = stack.enter_context(self._folder(path, make=False))
                opened = os.open(name, READ_FLAGS, dir_fd=folder)
            except FileNotFoundError:
                yield None
                return
            stack.callback(os.close, opened)
            yield opened

    @contextmanager
    def _folder(self, path: str, *, make: bool) -> Iterator[tuple[int, str]]:
        *parts, name = check_path(path).split("/")
        with self._opened_folder(tuple(parts), make=make) as folder:
            yield folder, name

    @contextmanager
    def _opened_folder(self, parts: tuple[str, ...], *, make: bool) -> Iterator[int]:
        """Open a folder step by step, so that no symbolic link below the root is followed."""
        with ExitStack() as stack:
            if make and () not in self._synced:
                _make_root(self._root)
            folder = os.open(self._root, os.O_RDONLY | _DIRECTORY)
            stack.callback(os.close, folder)
            self._sync_folders((), folder)
            for depth, part in enumerate(parts, start=1):
                parent = folder
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, _read_mode(parent) | _OWN_FOLDER, dir_fd=parent)
                folder = os.open(part, FOLDER_FLAGS, dir_fd=parent)
                stack.callback(os.close, folder)
                self._sync_folders(parts[:depth], parent, folder)
            yield folder

    def _sync_folders(self, parts: tuple[str, ...], *folders: int) -> None:
        """Make durable, once: a folder, its name, and the names in it.

        A process that was killed may have left them half done: they would be seen after a
        restart, and be gone after a power failure.
        """
        with self._lock:
            if parts not in self._synced:
                for folder in folders:
                    os.fsync(folder)
                self._synced.add(parts)

    @contextmanager
    def _written(self, folder: int, data: bytes) -> Iterator[str]:
        """Write a durable file under a name that no list shows, and remove that name again."""
        name = f".{secrets.token_hex(16)}.draft"
        opened = os.open(name, WRITE_FLAGS, _read_mode(folder) & _NOT_RUN, dir_fd=folder)
        try:
            with closing(os.fdopen(opened, "wb", buffering=0)) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(opened)
            yield name
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)


def _read_mode(folder: int) -> int:
    """Who may do what in an open folder: what is put into it is for the same people."""
    return os.fstat(folder).st_mode & 0o777


def _make_root(root: Path) -> None:
    """Make the directory and its missing parents, each durable in its own parent."""
    missing = []
    while not root.is_dir():
        missing.append(root)
        root = root.parent
    # A process may have been killed between making this one and making it durable. One that may
    # not read the parent did not make it.
    with suppress(PermissionError):
        _synchronise(root.parent)
    for place in reversed(missing):
        place.mkdir(_OWN_FOLDER, exist_ok=True)
        _synchronise(place.parent)


def _synchronise(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | _DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _measure(opened: int, path: str) -> os.stat_result:
    found = os.fstat(opened)
    if not stat.S_ISREG(found.st_mode):
        raise StorageConfigError(f"{path} is not a plain file", hint="remove what is there")
    return found


def _describe(path: str, found: os.stat_result) -> ObjectInfo:
    modified = datetime.fromtimestamp(found.st_mtime, tz=UTC)
    return ObjectInfo(path, found.st_size, modified)
