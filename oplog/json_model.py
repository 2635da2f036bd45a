"""How values with `to_json` are models to pydantic, and so to web frameworks that build on it.

A core schema of pydantic is a dict: it is made here without pydantic, which need not be installed.
Left to itself, pydantic would take bytes for UTF-8 and floats that are no numbers for null.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_TEXT: Mapping[str, Any] = MappingProxyType({"type": "string"})
_NUMBER: Mapping[str, Any] = MappingProxyType({"type": "integer"})
_OBJECT: Mapping[str, Any] = MappingProxyType({"type": "object", "additionalProperties": True})
_KNOWN: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "position": _NUMBER,
        "sequence": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "version": _NUMBER,
        "transaction_id": _NUMBER,
        "recorded_at": {"type": "string", "format": "date-time"},
        "entry_id": {"type": "string", "format": "uuid"},
        "record_id": {"type": "string", "format": "uuid"},
        "kind": {"type": "string", "enum": ["create", "update", "delete"]},
        "metadata": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "string"}},
        },
        "key": _OBJECT,
        "fields": _OBJECT,
        "before": _OBJECT,
        "quarantined": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "operations": {"type": "array", "items": {"type": "object"}},
    }
)


def make_core_schema(cls: type) -> dict[str, Any]:
    """A schema that takes instances as they are, and gives their `to_json` as JSON."""
    return {
        "type": "is-instance",
        "cls": cls,
        "serialization": {
            "type": "function-plain",
            "function": _write_json,
            "when_used": "json",
        },
    }


def make_json_schema(cls: type, names: tuple[str, ...]) -> dict[str, Any]:
    """The JSON schema of what `to_json` gives, which has these names; others are texts."""
    return {
        "title": cls.__name__,
        "type": "object",
        "properties": {name: dict(_KNOWN.get(name, _TEXT)) for name in names},
        "required": list(names),
    }


def _write_json(value: Any) -> Any:
    return value.to_json()
