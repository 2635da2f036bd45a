"""Objects in S3 and stores that speak its protocol, in Google Cloud Storage and in Azure.

This is the only use of obstore, by its synchronous interface: the asynchronous one aborts the
process at exit. obstore's own retries are off for writes. Otherwise it would repeat a request
whose answer was lost, and report a write of this client as refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from oplog.archive.objectstore.client_settings import ClientSettings
from oplog.archive.objectstore.protocol import (
    CreateUnsupportedError,
    ObjectInfo,
    check_path,
    check_prefix,
    is_path,
)
from oplog.archive.objectstore.refusal import Meaning, Refusal, read_refusal
from oplog.archive.objectstore.store_retry import retry
from oplog.backoff import Backoff
from oplog.errors import (
    ConfigurationError,
    ObjectConflictError,
    ObjectTooLargeError,
    StorageConfigError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from obstore import ObjectMeta

Result = TypeVar("Result")
Store = S3Store | GCSStore | AzureStore

PIECE_BYTES = 1 << 20
PROMPT_BYTES = 6 << 20
"""So much of a body may take as long again as a request without one: about 100 KiB a second."""
# A page of a listing is small and may be asked for again without harm.
LIST_RETRIES = 8

MEANINGS: tuple[tuple[type[Exception], Meaning], ...] = (
    (exceptions.NotFoundError, Meaning.ABSENT),
    (FileNotFoundError, Meaning.ABSENT),
    (exceptions.PermissionDeniedError, Meaning.MISCONFIGURED),
    (exceptions.UnauthenticatedError, Meaning.MISCONFIGURED),
    (exceptions.AlreadyExistsError, Meaning.REFUSED),
    (exceptions.PreconditionError, Meaning.REFUSED),
    (exceptions.NotSupportedError, Meaning.UNSUPPORTED),
    (NotImplementedError, Meaning.UNSUPPORTED),
)
ERRORS = (exceptions.BaseError, FileNotFoundError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a cloud: `scheme` is "s3", "gs" or "az"; `prefix` is "" or a path without ends."""

    scheme: str
    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        """The place as people write it."""
        return "/".join(filter(None, (f"{self.scheme}://{self.bucket}", self.prefix)))


class RemoteStore:
    """A store in a bucket, below a prefix.

    `options` are obstore's settings for the kind of store, by name (`endpoint`, `region`,
    `virtual_hosted_style_request`, ...), over those of the environment. `timeout_seconds` bounds
    one request, with a body of a few MiB; a larger one has longer, in proportion. In an answer it
    bounds the time in which nothing comes. `backoff` bounds all attempts together.
    """

    def __init__(
        self,
        place: Place,
        *,
        options: Mapping[str, str],
        environment: Mapping[str, str],
        timeout_seconds: float,
        backoff: Backoff,
    ) -> None:
        self.url = place.url
        self._backoff = backoff
        self._place = place
        self._seconds = timeout_seconds
        self._settings = settings = ClientSettings(place.scheme, options, environment)
        once: dict[str, Any] = {"max_retries": 0}
        brief = settings.limit_request(timeout_seconds)
        self._store = self._open(brief, once)
        # What comes in is waited for as long as it comes.
        self._reading = self._open(settings.limit_silence(timeout_seconds), once)
        self._large: dict[int, Store] = {}
        self._listing = self._open(
            brief,
            {
                "max_retries": LIST_RETRIES,
                "retry_timeout": timedelta(seconds=backoff.deadline_seconds),
                "backoff": {
                    "init_backoff": timedelta(seconds=backoff.first_seconds),
                    "max_backoff": timedelta(seconds=backoff.longest_seconds),
                },
            },
        )

    def get(self, path: str, *, most: int) -> bytes | None:
        """Return the object at `path`, or None."""
        check_path(path)
        return self._ask(lambda: self._read(path, most), path, missing_ok=True)

    def head(self, path: str) -> ObjectInfo | None:
        """Return size and age of the object at `path`, or None."""
        check_path(path)
        return self._ask(lambda: _describe(self._store.head(path)), path, missing_ok=True)

    def create(self, path: str, data: bytes, *, once: bool = False) -> bool:
        """Write an object if there is none; see the protocol for what False means."""
        check_path(path)

        def attempt() -> bool:
            try:
                self._find_store(data).put(path, data, mode="create", use_multipart=False)
            except ERRORS as error:
                refusal = _read(error)
                if refusal.meaning in {Meaning.REFUSED, Meaning.LOCKED}:
                    return False
                if refusal.meaning is Meaning.UNSUPPORTED:
                    raise CreateUnsupportedError(
                        f"{self.url}: {path}: {refusal.message}",
                        hint="this store can serve one writer only: `single_writer=True`",
                    ) from error
                self._fail(path, refusal, error)
            return True

        return attempt() if once else retry(attempt, backoff=self._backoff)

    def put(self, path: str, data: bytes) -> None:
        """Write an object, whatever is there."""
        check_path(path)
        self._ask(lambda: self._find_store(data).put(path, data, use_multipart=False), path)

    def delete(self, path: str) -> None:
        """Remove an object, if there is one."""
        check_path(path)
        self._ask(lambda: self._store.delete(path), path, missing_ok=True)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below `prefix`, as the store lists them."""
        check_prefix(prefix)
        # The client refuses folders as offsets and folders with an end; the server gets neither.
        pages = self._listing.list(prefix or None, offset=after or None)
        while True:
            try:
                page = next(pages, None)
            except ERRORS as error:
                self._fail(prefix or "listing", _read(error), error)
            if page is None:
                return
            for found in page:
                path = found["path"]
                # Not every server knows where to start, and not everything there is ours.
                if path > after and path.startswith(prefix) and is_path(path):
                    yield _describe(found)

    # -- inside ---------------------------------------------------------------------------

    def _find_store(self, data: bytes) -> Store:
        """The client for a body of this size, which a slow line takes longer for."""
        pieces = len(data) // PROMPT_BYTES
        if not pieces:
            return self._store
        if pieces not in self._large:
            limits = self._settings.limit_request(self._seconds * (2 + pieces))
            self._large[pieces] = self._open(limits, {"max_retries": 0})
        return self._large[pieces]

    def _open(self, client: Mapping[str, Any], retries: Mapping[str, Any]) -> Store:
        """Open obstore's store; raise `ConfigurationError` for settings that it does not know."""
        kinds: dict[str, Callable[..., Store]] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
        try:
            return kinds[self._place.scheme](
                self._place.bucket,
                prefix=self._place.prefix or None,
                client_options=client,
                retry_config=retries,
                **self._settings.own,
            )
        except (exceptions.BaseError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{self._place.url}: {_read(error).message}",
                hint="options are named as in obstore's documentation of the store",
            ) from error

    def _ask(
        self, request: Callable[[], Result], path: str, *, missing_ok: bool = False
    ) -> Result | None:
        """Carry out a request, again where that may help; None for no object, if `missing_ok`."""

        def attempt() -> Result | None:
            try:
                return request()
            except ERRORS as error:
                refusal = _read(error)
                if refusal.meaning is Meaning.ABSENT and missing_ok:
                    return None
                self._fail(path, refusal, error)

        return retry(attempt, backoff=self._backoff)

    def _read(self, path: str, most: int) -> bytes:
        found = self._reading.get(path)
        data = bytearray()
        size = found.meta["size"]
        if size <= most:
            for piece in found.stream(min_chunk_size=PIECE_BYTES):
                data += memoryview(piece)
                size = max(size, len(data))
                if size > most:
                    break
        if size > most:
            raise ObjectTooLargeError(
                f"{path} has {size} bytes, at most {most} are expected",
                hint="nothing of this size is ever written there: it was altered",
            )
        return bytes(data)

    def _fail(self, path: str, refusal: Refusal, error: Exception) -> NoReturn:
        message = f"{self.url}: {path}: {refusal.message}"
        # The client's own error may show a signed URL: then it stays out of the traceback.
        cause = None if "sig=" in str(error) else error
        match refusal.meaning:
            case Meaning.BUSY:
                raise StoreUnavailableError(message, hint=refusal.hint) from cause
            case Meaning.REFUSED | Meaning.LOCKED:
                raise ObjectConflictError(
                    message, hint="the store does not let this be overwritten or deleted"
                ) from cause
        raise StorageConfigError(
            message, hint=refusal.hint or "see that bucket and endpoint are right"
        ) from cause


def _read(error: Exception) -> Refusal:
    named = next((meaning for kind, meaning in MEANINGS if isinstance(error, kind)), None)
    return read_refusal(str(error), named=named)


def _describe(found: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(found["path"], found["size"], found["last_modified"])
