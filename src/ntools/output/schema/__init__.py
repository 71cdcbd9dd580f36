# SPDX-License-Identifier: GPL-2.0-only
"""JSON Schema (draft-07) of the records, major version 1: one file per type.

What several types share (envelope, flow, packet, place...) is written once in ``parts.json``: a
type names under ``parts`` those whose fields are its own, and refers to the others as
``#/definitions/NAME``. :func:`load` puts them together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

__all__ = ["load", "names"]

_PARTS = "parts"


def names() -> List[str]:
    """Types that have a schema."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.json") if path.stem != _PARTS)


def load(type: str, closed: bool = False) -> Dict[str, Any]:
    """The whole schema of a record type.

    :param closed: refuse fields that are not described. For tests of what we write: a reader
        must ignore keys it does not know.
    :raises KeyError: no such type.
    """
    if type not in names():
        raise KeyError(type)
    schema = _read(type)
    shared = _read(_PARTS)
    properties: Dict[str, Any] = {"type": {"const": type, "description": "Type of the record."}}
    required = ["type"]
    for part in schema.pop(_PARTS, []):
        properties.update(shared[part]["properties"])
        required += shared[part].get("required", [])
    properties.update(schema["properties"])
    schema["properties"] = properties
    schema["required"] = required + schema.get("required", [])
    schema["definitions"] = {name: {"type": "object", **part} for name, part in shared.items()}
    if closed:
        _close(schema)
    return schema


def _read(name: str) -> Dict[str, Any]:
    path = Path(__file__).parent / f"{name}.json"
    content: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _close(schema: Any) -> None:
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close(value)
    elif isinstance(schema, list):
        for value in schema:
            _close(value)
