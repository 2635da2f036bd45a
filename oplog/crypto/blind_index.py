"""Tokens by which a sealed value is found without being opened: keyed hashes of whole values.

A token is the beginning of HMAC-SHA-256 under a key that is derived from a data key for one column
of one log. Who has no key can tell that two records have the same value in a column, and nothing
about the value; tokens of two columns, or of one under two data keys, have nothing in common.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from oplog.crypto.keyring import Keyring
from oplog.crypto.secret import Secret
from oplog.entry import SEARCH_KEY

_LABEL = b"oplog/v1/blind-index\0"
_TOKEN_BYTES = 12
"""A token only chooses records, which are opened and compared: 96 bits choose none in vain."""
_VALUE, _PRESENT, _MANY = b"v", b"p", b"m"


class IndexedColumn(NamedTuple):
    """A column in the log's terms: its type's name, and its number, which a new name keeps."""

    type_name: str
    number: int


class BlindIndex:
    """Makes the tokens of one log with the keys of one keyring."""

    def __init__(self, keyring: Keyring, log_id: UUID) -> None:
        self._keyring = keyring
        self._log_id = log_id

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The keys that there may be tokens of."""
        return self._keyring.key_ids

    def name_value(self, key_id: str, column: IndexedColumn, value: bytes) -> str:
        """The token of a value, as `name_value` names it."""
        return self._make(key_id, column, _VALUE + value)

    def name_column(self, key_id: str, column: IndexedColumn) -> str:
        """The token of every record that has tokens of the column."""
        return self._make(key_id, column, _PRESENT)

    def name_many(self, key_id: str, column: IndexedColumn) -> str:
        """The token of a record with more values than it has tokens for: it may have any."""
        return self._make(key_id, column, _MANY)

    def _make(self, key_id: str, column: IndexedColumn, what: bytes) -> str:
        name = column.type_name.encode()
        context = b"".join(
            (
                _LABEL,
                self._log_id.bytes,
                len(name).to_bytes(4),
                name,
                column.number.to_bytes(4),
            )
        )
        key = Secret(hmac.digest(self._keyring.data_key(key_id), context, "sha256"))
        digest = hmac.digest(key, what, "sha256")[:_TOKEN_BYTES]
        return base64.b64encode(digest).decode()


def tag_pairs(tokens: Iterable[str]) -> list[tuple[str, str]]:
    """The metadata that holds these tokens, in an order that says nothing."""
    return [(SEARCH_KEY, token) for token in sorted(set(tokens))]
