"""Receipts: proof that a transaction wrote an entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from oplog.json_model import make_core_schema, make_json_schema


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of one stored entry; keep it to ask for the outcome of a lost COMMIT.

    A transaction has one for each aggregate that it changed. `entry_id` and `entry_hash` are
    those of its record, which all its receipts share, as they do `versions`: the version of
    each of the record's aggregates, empty if they are not known.

    If the answer to a COMMIT is lost, version and hash may be lost with it: then they are 0
    and empty, and `process_id` is the server process that was to commit. It, `versions` and
    `durability_confirmed`, which is False when the wait for a synchronous standby was cut
    short, are not compared: two receipts are equal if all other fields are.
    """

    entry_id: UUID
    aggregate: str
    version: int
    entry_hash: bytes
    durability_confirmed: bool = field(default=True, compare=False)
    process_id: int = field(default=0, compare=False, repr=False)
    versions: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def record_id(self) -> UUID:
        """The id of the transaction's record: `entry_id`."""
        return self.entry_id

    def to_json(self) -> dict[str, Any]:
        """The receipt as one JSON object."""
        return {
            "entry_id": str(self.entry_id),
            "record_id": str(self.record_id),
            "aggregate": self.aggregate,
            "version": self.version,
            "entry_hash": self.entry_hash.hex(),
        }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        return make_core_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return make_json_schema(
            cls,
            ("entry_id", "record_id", "aggregate", "version", "entry_hash"),
        )


def list_records(receipts: Iterable[Receipt]) -> tuple[UUID, ...]:
    """The ids of the records that these receipts are of, each once."""
    return tuple(dict.fromkeys(receipt.record_id for receipt in receipts))
