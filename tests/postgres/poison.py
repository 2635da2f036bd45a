"""Records that nobody can read, or that fit nothing: as a role that may append can add them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from uuid import UUID, uuid4

from sqlalchemy.engine import Connection

from oplog._proto.oplog.v1 import record_pb2
from oplog.crypto.seal import FORMAT_PLAIN, FORMAT_SEALED, Sealer, name_part
from oplog.entry import OpType
from oplog.payload.codec import PayloadCodec
from oplog.payload.effect import Effect
from oplog.payload.shape import Shape
from oplog.store import StoredRecord
from oplog.store.records import read_records
from oplog.store.rows import Part, compute_hash
from tests.postgres.appending import append, make_record
from tests.postgres.replay_models import Bench

AGGREGATES = ("account/1",)
"""The aggregates of a bad record: a row that is there."""

Forge = Callable[["Forger"], int]


class Forger:
    """Appends records past the library, with the keys of a bench where they are needed."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.sealer: Sealer = bench.log._log.sealer
        with bench.engine.connect() as connection:
            self.log_id = bench.log.store.read_log_id(connection)
            self.shapes: Mapping[str, Shape] = {
                shape.type_name: shape for shape in bench.log.store.list_types(connection)
            }

    def append(
        self,
        data: bytes | Callable[[UUID], bytes],
        *,
        aggregates: Sequence[str] = AGGREGATES,
        form: int = FORMAT_SEALED,
        key_id: str | None = None,
    ) -> int:
        """Append a record with these bytes; its position."""
        record_id = uuid4()
        part = data if isinstance(data, bytes) else data(record_id)
        with self.bench.engine.connect() as connection:
            if key_id:
                # Known to the log, as a role that may append makes it.
                self.bench.log.store.register_key(connection, key_id, check_value=bytes(32))
            record = make_record(
                aggregates,
                record_id=record_id,
                parts=[Part(0, part)],
                format=form,
                key_id=self.sealer.key_id if key_id is None else key_id,
            )
            append(connection, record)
            connection.commit()
        return self.bench.last_position()

    def seal(self, payload: bytes) -> int:
        """Append a record that opens as these bytes."""
        return self.append(
            lambda record_id: self.sealer.seal(payload, name_part(self.log_id, record_id, 0))
        )

    def seal_effects(self, *effects: Effect) -> int:
        """Append a record with these effects."""
        return self.seal(PayloadCodec().encode(effects))

    def make_account(self, kind: OpType = OpType.CREATE, **values: object) -> Effect:
        """An effect on the account 1."""
        whole: dict[str, object] = {
            "id": 1,
            "owner_id": 1,
            "balance": "10.00",
            "opened": "2025-01-01 00:00:00+00",
        }
        complete = kind is OpType.CREATE
        written = whole | values if complete else values
        names = self.shapes["account"].names
        return Effect(
            kind,
            self.shapes["account"],
            (1,),
            {name: written[name] for name in names if name in written},  # type: ignore[misc]
            complete=complete,
            ordinal=0,
        )


def _misplace(forger: Forger) -> int:
    """Sealed bytes of another record."""
    with forger.bench.engine.connect() as connection:
        (data,) = connection.exec_driver_sql("SELECT data FROM oplog.oplog_record LIMIT 1").one()
    return forger.append(bytes(data))


def _name_unknown_type(forger: Forger) -> int:
    payload = record_pb2.Payload()
    payload.types.add(name="nowhere", revision=1)
    return forger.seal(payload.SerializeToString())


def _name_unknown_aggregate(forger: Forger) -> int:
    return forger.seal_effects(replace(forger.make_account(), place=7))


def _write_plain(forger: Forger) -> int:
    payload = PayloadCodec().encode([forger.make_account()])
    return forger.append(Sealer(None).seal(payload, None), form=FORMAT_PLAIN, key_id="")  # type: ignore[arg-type]


UNREADABLE: Mapping[str, Forge] = {
    "garbage": lambda forger: forger.append(b"\0" * 200),
    "cut short": lambda forger: forger.append(b"x"),
    "of another record": _misplace,
    "under a key that nobody has": lambda forger: forger.append(b"\0" * 200, key_id="lost"),
    "no payload": lambda forger: forger.seal(b"\xff\xff\xff"),
    "an unknown type": _name_unknown_type,
    "an aggregate beyond the record": _name_unknown_aggregate,
    "plaintext in a sealed log": _write_plain,
}
"""Records that no reader opens."""
ODD: Mapping[str, Forge] = {
    "a value that is none": lambda forger: forger.seal_effects(
        forger.make_account(OpType.UPDATE, balance="many")
    ),
    "a row that is there": lambda forger: forger.seal_effects(forger.make_account()),
}
"""Records that open, and do not fit."""


def spoil(connection: Connection, position: int, *, data: bytes) -> StoredRecord:
    """Put other bytes into a record, with the hash that they give: its content is lost."""
    (record,) = read_records(connection, "oplog", [position])
    spoilt = record._replace(parts=(Part(0, data),))
    spoilt = spoilt._replace(record_hash=compute_hash(spoilt) or b"")
    connection.exec_driver_sql("ALTER TABLE oplog.oplog_record DISABLE TRIGGER ALL")
    connection.exec_driver_sql(
        "UPDATE oplog.oplog_record SET data = %b, record_hash = %b WHERE position = %s",
        (data, spoilt.record_hash, position),
    )
    connection.exec_driver_sql("ALTER TABLE oplog.oplog_record ENABLE TRIGGER ALL")
    return spoilt
