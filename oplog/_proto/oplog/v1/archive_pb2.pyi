from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MetadataPair(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class ArchivedEntry(_message.Message):
    __slots__ = ("entry_id", "position_step", "aggregate", "version", "format", "key_id", "recorded_step", "data", "prev_hash", "entry_hash", "metadata_hash", "idempotency_key")
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_STEP_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    RECORDED_STEP_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PREV_HASH_FIELD_NUMBER: _ClassVar[int]
    ENTRY_HASH_FIELD_NUMBER: _ClassVar[int]
    METADATA_HASH_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    entry_id: bytes
    position_step: int
    aggregate: str
    version: int
    format: int
    key_id: str
    recorded_step: int
    data: bytes
    prev_hash: bytes
    entry_hash: bytes
    metadata_hash: bytes
    idempotency_key: str
    def __init__(self, entry_id: _Optional[bytes] = ..., position_step: _Optional[int] = ..., aggregate: _Optional[str] = ..., version: _Optional[int] = ..., format: _Optional[int] = ..., key_id: _Optional[str] = ..., recorded_step: _Optional[int] = ..., data: _Optional[bytes] = ..., prev_hash: _Optional[bytes] = ..., entry_hash: _Optional[bytes] = ..., metadata_hash: _Optional[bytes] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class ArchivedTransaction(_message.Message):
    __slots__ = ("transaction_id", "transaction_position", "transaction_size", "metadata", "entries", "metadata_hash")
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_POSITION_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_SIZE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    METADATA_HASH_FIELD_NUMBER: _ClassVar[int]
    transaction_id: int
    transaction_position: int
    transaction_size: int
    metadata: _containers.RepeatedCompositeFieldContainer[MetadataPair]
    entries: _containers.RepeatedCompositeFieldContainer[ArchivedEntry]
    metadata_hash: bytes
    def __init__(self, transaction_id: _Optional[int] = ..., transaction_position: _Optional[int] = ..., transaction_size: _Optional[int] = ..., metadata: _Optional[_Iterable[_Union[MetadataPair, _Mapping]]] = ..., entries: _Optional[_Iterable[_Union[ArchivedEntry, _Mapping]]] = ..., metadata_hash: _Optional[bytes] = ...) -> None: ...
