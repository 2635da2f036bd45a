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

class ArchivedPart(_message.Message):
    __slots__ = ("first", "data")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    first: int
    data: bytes
    def __init__(self, first: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class PreviousHash(_message.Message):
    __slots__ = ("aggregate", "hash")
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    aggregate: int
    hash: bytes
    def __init__(self, aggregate: _Optional[int] = ..., hash: _Optional[bytes] = ...) -> None: ...

class ArchivedRecord(_message.Message):
    __slots__ = ("position_step", "record_id", "transaction_id", "format", "key_id", "recorded_step", "metadata", "idempotency_key", "aggregates", "versions", "prev_hashes", "parts", "record_hash")
    POSITION_STEP_FIELD_NUMBER: _ClassVar[int]
    RECORD_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    RECORDED_STEP_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    AGGREGATES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PREV_HASHES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    RECORD_HASH_FIELD_NUMBER: _ClassVar[int]
    position_step: int
    record_id: bytes
    transaction_id: int
    format: int
    key_id: str
    recorded_step: int
    metadata: _containers.RepeatedCompositeFieldContainer[MetadataPair]
    idempotency_key: str
    aggregates: _containers.RepeatedScalarFieldContainer[str]
    versions: _containers.RepeatedScalarFieldContainer[int]
    prev_hashes: _containers.RepeatedCompositeFieldContainer[PreviousHash]
    parts: _containers.RepeatedCompositeFieldContainer[ArchivedPart]
    record_hash: bytes
    def __init__(self, position_step: _Optional[int] = ..., record_id: _Optional[bytes] = ..., transaction_id: _Optional[int] = ..., format: _Optional[int] = ..., key_id: _Optional[str] = ..., recorded_step: _Optional[int] = ..., metadata: _Optional[_Iterable[_Union[MetadataPair, _Mapping]]] = ..., idempotency_key: _Optional[str] = ..., aggregates: _Optional[_Iterable[str]] = ..., versions: _Optional[_Iterable[int]] = ..., prev_hashes: _Optional[_Iterable[_Union[PreviousHash, _Mapping]]] = ..., parts: _Optional[_Iterable[_Union[ArchivedPart, _Mapping]]] = ..., record_hash: _Optional[bytes] = ...) -> None: ...
