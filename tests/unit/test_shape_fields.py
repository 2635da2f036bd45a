"""Field names of derived messages: legal, distinct to every protobuf compiler, and stable."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2

from oplog.payload.derived_shape import DeclaredColumn, derive_shape
from oplog.payload.shape import Shape
from oplog.value import Kind

pytestmark = pytest.mark.unit


def derive(names: list[str], stored: list[Shape]) -> Shape:
    columns = [DeclaredColumn(name, "text", Kind.TEXT, name == names[0]) for name in names]
    return derive_shape(
        "thing",
        columns,
        schema="public",
        table="thing",
        aggregate="thing/{id}",
        excluded={},
        stored=stored,
    )


def list_json_names(shape: Shape) -> list[str]:
    files = descriptor_pb2.FileDescriptorSet.FromString(shape.descriptor)
    found = shape.message_class.DESCRIPTOR  # type: ignore[attr-defined]
    assert len(files.file) == 1
    return [field.json_name for field in found.fields]


@pytest.mark.parametrize(
    "names",
    [
        ["id", "address1", "address_1"],
        ["id", "a_b", "a__b", "ab", "a_b_"],
        ["id", "column_2", "Weird", "column_3"],
        ["id", "Weird", "column_2"],
        ["id", "column_3", "Weird"],
        ["self", "class", "from", "import"],
    ],
)
def test_names_that_would_clash(names: list[str]) -> None:
    shape = derive(names, [])
    fields = [column.field for column in shape.columns]
    assert len(set(fields)) == len(fields)
    json_names = list_json_names(shape)
    assert len(set(json_names)) == len(json_names)
    row = shape.message_class(**{column.field: column.name for column in shape.columns})
    assert [getattr(row, field) for field in fields] == names


def test_a_field_keeps_name_and_number_whatever_comes_and_goes() -> None:
    first = derive(["id", "address1"], [])
    second = derive(["id", "address_1", "address1"], [first])
    third = derive(["id", "address_1"], [first, second])
    fourth = derive(["id", "address1", "address_1"], [first, second, third])
    for shape in (second, third, fourth):
        column = shape.by_name["address_1"]
        assert (column.number, column.field) == (3, "column_3")
    assert fourth.by_name["address1"] == first.by_name["address1"]
    assert [shape.revision for shape in (first, second, third, fourth)] == [1, 2, 3, 4]
