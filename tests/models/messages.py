"""Compiled protobuf messages, as an application with its own .proto files would have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_TYPES = {
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "double": descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
}


def make_message(name: str, fields: Mapping[str, tuple[int, str]]) -> type[Message]:
    """A proto3 message whose fields have no presence, which is what protoc gives by default."""
    package, _, short = name.rpartition(".")
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.{len(fields)}.proto", package=package, syntax="proto3"
    )
    described = file.message_type.add(name=short)
    for field, (number, kind) in fields.items():
        described.field.add(
            name=field,
            number=number,
            type=_TYPES[kind],
            label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    found: type[Message] = made
    return found
