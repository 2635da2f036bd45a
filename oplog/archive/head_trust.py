"""Whose heads are believed, and by which key they are signed.

A head that nobody has signed, or that an unknown key has, may have been written by anybody who can
write to the store. Keys are pinned by readers; a key may sign the one that takes its place. A
publisher pins its own keys, so it never builds on a head that is not its own.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from oplog.archive.format.head import (
    MAX_ENDORSEMENTS,
    Endorsement,
    Head,
    decode_head,
    sign_head,
)
from oplog.crypto.signing import is_successor_signed
from oplog.crypto.signing_keyring import SigningKeyring
from oplog.crypto.trust import Trust
from oplog.errors import (
    ForeignArchiveError,
    HeadUnsignedError,
    ManifestInvalidError,
    RevokedPublisherError,
    SigningKeyMissingError,
    UnknownPublisherError,
)

_logger = logging.getLogger("oplog.archive")

_PIN_IT = (
    "if the publisher has this key, which only its operator can tell you, pin it: "
    "oplog trust add {key}; else the bucket was written by somebody else: bring the original "
    "objects back from its versions"
)


class HeadTrust:
    """What is believed of the heads at `url`. Belongs to one `Archive`."""

    def __init__(
        self,
        *,
        keyring: SigningKeyring | None = None,
        trust: Trust | None = None,
        unsigned: bool = False,
        replace_publisher: bool = False,
    ) -> None:
        """`keyring` signs, and its keys are pinned; `trust` has other keys that are pinned.

        With `unsigned` neither beginning an unsigned archive nor reading one is a reason for a
        warning. `replace_publisher` lets the keyring sign an archive whose newest head it could
        not have signed: readers then have to pin its key.
        """
        self.keyring = keyring
        self.trust = trust or Trust()
        self.unsigned = unsigned
        self.replace_publisher = replace_publisher
        # Also without a key in it: where the only one was revoked, no other is believed for that.
        self.has_pins = keyring is not None or trust is not None
        """Whether only pinned publishers are believed."""
        self._warned = False

    # -- what was read --------------------------------------------------------------------

    def decode(self, data: bytes, *, what: str, url: str) -> Head:
        """A head that is believed.

        Raises `ManifestInvalidError` for bytes that are no head, `SignatureInvalidError`,
        `HeadUnsignedError`, `UnknownPublisherError`, `RevokedPublisherError`, and
        `ForeignArchiveError` for the log of another pin.
        """
        head = decode_head(data, what=what)
        if self.replace_publisher:
            return head
        if head.publisher is None:
            if self.has_pins:
                raise HeadUnsignedError(
                    f"{what} in {url} is not signed, and a publisher is pinned",
                    hint="somebody without the publisher's key wrote it: bring the original back; "
                    "if the archive is to be signed from now on, compare it with the database "
                    "(oplog check), then publish once with --replace-publisher",
                )
            self._warn(f"{url} is not signed: its writers decide what is restored")
            return head
        pin = self._find_pin(head, head.publisher, f"{what} in {url}")
        if pin is None and not self.has_pins:
            self._warn(
                f"{url} is signed by {head.publisher}, and no publisher is pinned: any key is "
                "believed"
            )
        elif pin is None:
            raise UnknownPublisherError(
                f"{what} in {url} is signed by {head.publisher}, which is not pinned, and no key "
                "that is pinned vouches for it",
                hint=_PIN_IT.format(key=head.publisher),
            )
        self._check_log(head, pin, f"{what} in {url}")
        return head

    def _find_pin(self, head: Head, publisher: str, what: str) -> str | None:
        """The pinned key that vouches for `publisher`, or is it; None without."""
        pins = {*self.trust.publishers, *(self.keyring.publishers if self.keyring else ())}
        key: str | None = publisher
        links = {link.publisher: link for link in head.endorsements}
        # As many steps as there are links: a chain may lead in a circle.
        for _ in range(len(links) + 1):
            if key is None:
                return None
            if key in self.trust.revoked:
                raise RevokedPublisherError(
                    f"{what} is signed by {publisher}, and {key} is revoked",
                    hint="pin the key that took its place, once its operator has told you: "
                    "oplog trust add KEY",
                )
            if key in pins:
                return key
            link = links.get(key)
            if link is None or not is_successor_signed(link.by, link.publisher, link.signature):
                return None
            key = link.by
        return None

    def _check_log(self, head: Head, pin: str | None, what: str) -> None:
        log_id = self.trust.publishers.get(pin) if pin else None
        if log_id is not None and log_id != head.log_id:
            raise ForeignArchiveError(
                f"{what} is of the log {head.log_id}, and its publisher is pinned for the log "
                f"{log_id}",
                hint="check the URL; objects of another archive of this publisher may have been "
                "put here",
            )

    def check_successor(self, head: Head, before: bytes, *, what: str) -> None:
        """Raise unless the key of `head` may sign what follows the head in the bytes `before`.

        A signed archive does not become an unsigned one, and a key that was replaced signs no more.
        """
        try:
            old = decode_head(before, what=what)
        except ManifestInvalidError:
            # It was damaged before the head was built on it, which names these very bytes.
            return
        if old.publisher is not None and head.publisher is None:
            raise HeadUnsignedError(
                f"head {head.number} is not signed, and head {old.number} before it is",
                hint="somebody without the publisher's key wrote it: bring the original back",
            )
        if head.publisher in {link.by for link in old.endorsements}:
            raise RevokedPublisherError(
                f"head {head.number} is signed by {head.publisher}, which another key had replaced "
                f"in head {old.number}",
                hint="somebody uses the old key: bring the original head back, pin the newer key "
                "(oplog trust add KEY) and revoke the old one (oplog trust revoke KEY)",
            )

    def _warn(self, message: str) -> None:
        if not self.unsigned and not self._warned:
            self._warned = True
            _logger.warning("%s; see oplog trust --help", message)

    # -- what is written ------------------------------------------------------------------

    def require_key(self, base: Head, *, url: str) -> None:
        """Raise `SigningKeyMissingError` unless what follows `base` can be signed as it must be."""
        keyring = self.keyring
        if keyring is None:
            self._require_unsigned(base, url)
        elif keyring.publisher in self.trust.revoked:
            raise RevokedPublisherError(
                f"the current key of the signing keyring, {keyring.publisher}, is revoked",
                hint="oplog publisher rotate adds a key; say --replace-publisher once",
            )
        elif base.publisher in {*keyring.publishers, None} or self.replace_publisher:
            return
        else:
            raise SigningKeyMissingError(
                f"the newest head of {url} is signed by {base.publisher}, which the signing "
                "keyring does not have",
                hint="give the keyring with that key, or its backup; if that key is lost, publish "
                "once with --replace-publisher, and tell every reader the new key",
            )

    def _require_unsigned(self, base: Head, url: str) -> None:
        if base.publisher is not None or self.has_pins:
            raise SigningKeyMissingError(
                f"{url} is signed, and there is no signing keyring",
                hint="set OPLOG_SIGNING_KEYRING to the keyring's file, or give "
                "--signing-keyring PATH; if its key is lost, make another (oplog publisher "
                "generate --file PATH) and publish once with --replace-publisher",
            )
        if base.number == 0:
            self._warn(
                f"{url} begins unsigned: everybody who can write to it may decide what is restored "
                "from it. Make a key (oplog publisher generate --file PATH) and set "
                "OPLOG_SIGNING_KEYRING to that path, or say --unsigned"
            )

    def wants_head(self, base: Head) -> bool:
        """Whether a head is due for the key alone: another one signs from now on."""
        return self.keyring is not None and base.number > 0 and self._is_other(base)

    def _is_other(self, base: Head) -> bool:
        return self.keyring is not None and base.publisher != self.keyring.publisher

    def sign(self, head: Head, *, base: Head) -> Head:
        """The head as it is published after `base`, signed if there is a key."""
        keyring = self.keyring
        if keyring is None:
            return replace(head, publisher=None, signature=None, endorsements=())
        links = base.endorsements
        if self._is_other(base):
            links = self._extend(base, keyring)
            # Once: a worker that goes on for months must not believe everything for months.
            self.replace_publisher = False
        named = replace(head, endorsements=links)
        return sign_head(named, keyring.publisher, keyring.sign_head)

    def _extend(self, base: Head, keyring: SigningKeyring) -> tuple[Endorsement, ...]:
        """The way from the keys of old to the one that signs now; none if nobody vouches."""
        if base.publisher not in keyring.publishers:
            return ()
        new = Endorsement(base.publisher, keyring.publisher, keyring.endorse(base.publisher))
        return (*base.endorsements, new)[-MAX_ENDORSEMENTS:]
