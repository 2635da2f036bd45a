from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OperationKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_KIND_UNSPECIFIED: _ClassVar[OperationKind]
    OPERATION_KIND_CREATE: _ClassVar[OperationKind]
    OPERATION_KIND_UPDATE: _ClassVar[OperationKind]
    OPERATION_KIND_DELETE: _ClassVar[OperationKind]
OPERATION_KIND_UNSPECIFIED: OperationKind
OPERATION_KIND_CREATE: OperationKind
OPERATION_KIND_UPDATE: OperationKind
OPERATION_KIND_DELETE: OperationKind

class TypeUse(_message.Message):
    __slots__ = ("name", "revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: int
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("kind", "type", "key", "row", "null_fields", "default_fields", "complete", "ordinal", "aggregate")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    NULL_FIELDS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    ORDINAL_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    kind: OperationKind
    type: int
    key: bytes
    row: bytes
    null_fields: _containers.RepeatedScalarFieldContainer[int]
    default_fields: _containers.RepeatedScalarFieldContainer[int]
    complete: bool
    ordinal: int
    aggregate: int
    def __init__(self, kind: _Optional[_Union[OperationKind, str]] = ..., type: _Optional[int] = ..., key: _Optional[bytes] = ..., row: _Optional[bytes] = ..., null_fields: _Optional[_Iterable[int]] = ..., default_fields: _Optional[_Iterable[int]] = ..., complete: bool = ..., ordinal: _Optional[int] = ..., aggregate: _Optional[int] = ...) -> None: ...

class RowBlock(_message.Message):
    __slots__ = ("type", "fields", "row_count", "rows", "first_ordinal", "aggregate", "patch")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FIRST_ORDINAL_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    PATCH_FIELD_NUMBER: _ClassVar[int]
    type: int
    fields: _containers.RepeatedScalarFieldContainer[int]
    row_count: int
    rows: bytes
    first_ordinal: int
    aggregate: int
    patch: bool
    def __init__(self, type: _Optional[int] = ..., fields: _Optional[_Iterable[int]] = ..., row_count: _Optional[int] = ..., rows: _Optional[bytes] = ..., first_ordinal: _Optional[int] = ..., aggregate: _Optional[int] = ..., patch: bool = ...) -> None: ...

class NullRows(_message.Message):
    __slots__ = ("field", "rows")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    field: int
    rows: bytes
    def __init__(self, field: _Optional[int] = ..., rows: _Optional[bytes] = ...) -> None: ...

class RowRun(_message.Message):
    __slots__ = ("kind", "type", "row_count", "complete", "fields", "keys", "values", "nulls", "first_ordinal", "ordinal_steps", "first_aggregate", "one_aggregate", "aggregate_steps")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    NULLS_FIELD_NUMBER: _ClassVar[int]
    FIRST_ORDINAL_FIELD_NUMBER: _ClassVar[int]
    ORDINAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    FIRST_AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    ONE_AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_STEPS_FIELD_NUMBER: _ClassVar[int]
    kind: OperationKind
    type: int
    row_count: int
    complete: bool
    fields: _containers.RepeatedScalarFieldContainer[int]
    keys: bytes
    values: bytes
    nulls: _containers.RepeatedCompositeFieldContainer[NullRows]
    first_ordinal: int
    ordinal_steps: _containers.RepeatedScalarFieldContainer[int]
    first_aggregate: int
    one_aggregate: bool
    aggregate_steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, kind: _Optional[_Union[OperationKind, str]] = ..., type: _Optional[int] = ..., row_count: _Optional[int] = ..., complete: bool = ..., fields: _Optional[_Iterable[int]] = ..., keys: _Optional[bytes] = ..., values: _Optional[bytes] = ..., nulls: _Optional[_Iterable[_Union[NullRows, _Mapping]]] = ..., first_ordinal: _Optional[int] = ..., ordinal_steps: _Optional[_Iterable[int]] = ..., first_aggregate: _Optional[int] = ..., one_aggregate: bool = ..., aggregate_steps: _Optional[_Iterable[int]] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("types", "operations", "blocks", "runs")
    TYPES_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    types: _containers.RepeatedCompositeFieldContainer[TypeUse]
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    blocks: _containers.RepeatedCompositeFieldContainer[RowBlock]
    runs: _containers.RepeatedCompositeFieldContainer[RowRun]
    def __init__(self, types: _Optional[_Iterable[_Union[TypeUse, _Mapping]]] = ..., operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ..., blocks: _Optional[_Iterable[_Union[RowBlock, _Mapping]]] = ..., runs: _Optional[_Iterable[_Union[RowRun, _Mapping]]] = ...) -> None: ...
