"""Prints stored descriptors as .proto text.

The text must decode the stored bytes, so numbers, types and presence are kept. Options and
comments are not: the log does not have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from oplog.payload.shape import Shape

_TYPES = {
    1: "double",
    2: "float",
    3: "int64",
    4: "uint64",
    5: "int32",
    6: "fixed64",
    7: "fixed32",
    8: "bool",
    9: "string",
    12: "bytes",
    13: "uint32",
    15: "sfixed32",
    16: "sfixed64",
    17: "sint32",
    18: "sint64",
}
"""Scalar types by their number in `descriptor.proto`."""
_GOOGLE = "google/protobuf/"


def print_files(shape: Shape, *, retired: Sequence[int] = ()) -> dict[str, str]:
    """Text of each file that the shape's message needs, by name, dependencies first.

    `retired` are field numbers that other revisions used: reserved, lest someone uses them
    again. Files that come with protobuf itself are left out.
    """
    descriptor: Any = shape.message_class.DESCRIPTOR  # type: ignore[attr-defined]
    ordered: dict[str, Any] = {}
    _collect(descriptor.file, ordered)
    return {
        name: "\n".join(_print_file(file, reserved={descriptor.full_name: retired})) + "\n"
        for name, file in ordered.items()
        if not name.startswith(_GOOGLE)
    }


def _collect(file: Any, ordered: dict[str, Any]) -> None:
    if file.name not in ordered:
        for dependency in file.dependencies:
            _collect(dependency, ordered)
        ordered[file.name] = file


def _print_file(file: Any, *, reserved: dict[str, Sequence[int]]) -> Iterator[str]:
    yield 'syntax = "proto3";'
    if file.package:
        yield ""
        yield f"package {file.package};"
    imports = sorted(dependency.name for dependency in file.dependencies)
    if imports:
        yield ""
        yield from (f'import "{name}";' for name in imports)
    for enum in file.enum_types_by_name.values():
        yield ""
        yield from _print_enum(enum)
    for message in file.message_types_by_name.values():
        yield ""
        yield from _print_message(message, reserved=reserved)


def _print_message(message: Any, *, reserved: dict[str, Sequence[int]]) -> Iterator[str]:
    yield f"message {message.name} {{"
    numbers = sorted(reserved.get(message.full_name, ()))
    if numbers:
        yield f"  reserved {', '.join(map(str, numbers))};"
    for enum in message.enum_types:
        yield from _indent(_print_enum(enum))
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            yield from _indent(_print_message(nested, reserved=reserved))
    for oneof in message.oneofs:
        if not _is_presence(oneof):
            yield f"  oneof {oneof.name} {{"
            yield from (f"    {_print_field(field)}" for field in oneof.fields)
            yield "  }"
    for field in sorted(message.fields, key=lambda field: field.number):
        if field.containing_oneof is None or _is_presence(field.containing_oneof):
            yield f"  {_label(field)}{_print_field(field)}"
    yield "}"


def _print_enum(enum: Any) -> Iterator[str]:
    yield f"enum {enum.name} {{"
    if len({value.number for value in enum.values}) < len(enum.values):
        yield "  option allow_alias = true;"
    yield from (f"  {value.name} = {value.number};" for value in enum.values)
    yield "}"


def _print_field(field: Any) -> str:
    return f"{_print_type(field)} {field.name} = {field.number};"


def _print_type(field: Any) -> str:
    message, enum = field.message_type, field.enum_type
    if message is not None and message.GetOptions().map_entry:
        key, value = message.fields_by_name["key"], message.fields_by_name["value"]
        return f"map<{_print_type(key)}, {_print_type(value)}>"
    if message is not None:
        return f".{message.full_name}"
    return _TYPES[field.type] if enum is None else f".{enum.full_name}"


def _label(field: Any) -> str:
    if field.is_repeated:
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        return "" if is_map else "repeated "
    return "optional " if field.has_presence and field.message_type is None else ""


def _is_presence(oneof: Any) -> bool:
    """Whether the oneof is only how proto3 spells `optional`."""
    return len(oneof.fields) == 1 and oneof.name == f"_{oneof.fields[0].name}"


def _indent(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
