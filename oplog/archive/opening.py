"""From a URL to an archive.

Opening makes no request. Whether the store can be written safely is tried before the first
write, so that readers need no permission to write.
"""

from __future__ import annotations

from collections.abc import Mapping

from oplog.archive.archive import Archive
from oplog.archive.expectation import Expectation
from oplog.archive.head_trust import HeadTrust
from oplog.archive.objectstore.store_url import REQUEST_SECONDS, open_store
from oplog.backoff import Backoff
from oplog.crypto.signing_keyring import SigningKeyring
from oplog.crypto.trust import Trust

DEADLINE_SECONDS = Backoff().deadline_seconds
"""For all attempts at one request to a store."""


def open_archive(
    url: str,
    *,
    single_writer: bool = False,
    options: Mapping[str, str] | None = None,
    timeout_seconds: float = REQUEST_SECONDS,
    accept_older: bool = False,
    deadline_seconds: float = DEADLINE_SECONDS,
    signing_keyring: SigningKeyring | None = None,
    trust: Trust | None = None,
    unsigned: bool = False,
    replace_publisher: bool = False,
    expect_at_least: str = "",
) -> Archive:
    """The archive at `url`: s3://bucket/prefix, gs://, az://, file:///path or memory://.

    Credentials, region and endpoint are found as the store's client finds them (`AWS_*` and the
    like); `options` go before those. `single_writer` promises that one worker at a time writes
    here, for stores that cannot create an object on condition that there is none. `accept_older`
    goes on although the archive says itself that newer heads are gone, which is otherwise
    `HeadRolledBackError`. `timeout_seconds` bounds one request, and `deadline_seconds` all
    attempts at it, after which it is `StoreUnavailableError`.

    `signing_keyring` signs what is published, `trust` says whose signatures are believed; left
    out, they are those that OPLOG_SIGNING_KEYRING and OPLOG_TRUST name. `unsigned` begins and
    reads an unsigned archive without a warning. `replace_publisher` signs an archive with a key
    that its newest head does not vouch for, and believes that head. `expect_at_least`, a text
    SEQUENCE:HASH that `sync` gave, refuses an older state of the archive with
    `OlderArchiveError`. Raises `ConfigurationError` for a URL that cannot be meant.
    """
    backoff = Backoff(deadline_seconds=deadline_seconds)
    store = open_store(url, options=options, timeout_seconds=timeout_seconds, backoff=backoff)
    return Archive(
        store,
        single_writer=single_writer,
        accept_older=accept_older,
        trust=HeadTrust(
            keyring=signing_keyring or SigningKeyring.from_env(),
            trust=trust or Trust.from_env(),
            unsigned=unsigned,
            replace_publisher=replace_publisher,
        ),
        demand=Expectation.parse(expect_at_least).require if expect_at_least else None,
    )
