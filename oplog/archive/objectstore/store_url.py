"""From a URL to a store.

A client library is imported only for a URL that needs it: it is an extra. URLs that could be
read in two ways, such as a relative path or credentials in the URL, are refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from oplog.archive.objectstore.directory import DirectoryStore
from oplog.archive.objectstore.memory import MemoryStore
from oplog.archive.objectstore.protocol import ObjectStore, is_path
from oplog.backoff import Backoff
from oplog.errors import ConfigurationError

FORMS = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///path or memory://"
REQUEST_SECONDS = 60.0


def open_store(
    url: str,
    *,
    options: Mapping[str, str] | None = None,
    timeout_seconds: float = REQUEST_SECONDS,
    backoff: Backoff | None = None,
) -> ObjectStore:
    """Open the store at `url`; nothing is asked of it yet.

    `options` are settings of the client for s3, gs and az, over those of the environment
    (`AWS_*`, `GOOGLE_*`, `AZURE_*`). `timeout_seconds` bounds one request, `backoff` all
    attempts at it. Every opening of `memory://` is a new, empty store.

    Raises `ConfigurationError` for a URL or an option that cannot be meant, and when the client
    is not installed.
    """
    parts = _split(url)
    backoff = backoff or Backoff()
    if parts.scheme in {"s3", "gs", "az"}:
        return _open_remote(
            parts, options=options or {}, timeout_seconds=timeout_seconds, backoff=backoff
        )
    if options:
        raise ConfigurationError(
            f"{parts.scheme}:// takes no options, and got {', '.join(sorted(options))}",
            hint="leave them out",
        )
    if parts.scheme == "memory":
        return MemoryStore(parts.netloc + parts.path)
    return _open_directory(parts)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"not a URL: {error}", hint=f"one of {FORMS}") from error
    if "@" in parts.netloc or parts.query or parts.fragment:
        # Not shown: it may be a secret.
        raise ConfigurationError(
            "the URL of an archive has no user, password, '?' or '#'",
            hint="credentials and settings are given by the environment or by `options`",
        )
    if parts.scheme not in {"s3", "gs", "az", "file", "memory"}:
        raise ConfigurationError(f"{url!r} is not where objects are kept", hint=f"one of {FORMS}")
    return parts


def _open_directory(parts: SplitResult) -> DirectoryStore:
    path = unquote(parts.path)
    if parts.netloc not in {"", "localhost"} or not path.startswith("/") or "\0" in path:
        raise ConfigurationError(
            f"{parts.geturl()!r} is not the URL of a directory",
            hint="file:///absolute/path, with three slashes",
        )
    return DirectoryStore(Path(path))


def _open_remote(
    parts: SplitResult,
    *,
    options: Mapping[str, str],
    timeout_seconds: float,
    backoff: Backoff,
) -> ObjectStore:
    prefix = parts.path.strip("/")
    if not parts.netloc or (prefix and not is_path(prefix)):
        raise ConfigurationError(
            f"{parts.geturl()!r} does not name a bucket and a prefix",
            hint="letters, digits, '_', '.' and '-' in the prefix's parts, joined by '/'",
        )
    if find_spec("obstore") is None:
        raise ConfigurationError(
            f"{parts.scheme}:// needs a client that is not installed",
            hint='pip install "oplog[s3]"',
        )
    # Here, because it is an extra: the rest of the library works without.
    from oplog.archive.objectstore.remote import Place, RemoteStore  # noqa: PLC0415

    return RemoteStore(
        Place(parts.scheme, parts.netloc, prefix),
        options=options,
        environment=os.environ,
        timeout_seconds=min(timeout_seconds, backoff.deadline_seconds),
        backoff=backoff,
    )
