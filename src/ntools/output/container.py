# SPDX-License-Identifier: GPL-2.0-only
"""The container of recordings: its first bytes, blocks, frames, and how large each may be.

docs/recording.md describes the format. A file that breaks a bound or a checksum is damaged or
hostile; both end in :class:`Damaged`.
"""

from __future__ import annotations

import sys
import zlib
from math import isfinite
from struct import Struct
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, NoReturn, Tuple, Union

__all__ = [
    "BLOCK_BYTES",
    "BLOCK_HEAD",
    "Damaged",
    "END",
    "END_BYTES",
    "FRAME_HEAD",
    "First",
    "Frame",
    "HEADER",
    "LAST",
    "MAGIC",
    "MAX_BODY_BYTES",
    "MAX_FIRST_BYTES",
    "MAX_PAYLOAD_BYTES",
    "PRELUDE",
    "VERSION",
    "first_json",
    "first_payload",
    "pack_block",
    "parse_first",
    "unpack_block",
]

#: No text in any encoding; a transfer that converts line ends spoils it.
MAGIC = b"\x8fntrec\r\n"
#: Of the container, raised only when an older reader would misread.
VERSION = 1
#: Magic, version.
PRELUDE = Struct("<8sH")
#: Stored length of the payload, checksum, flags.
BLOCK_HEAD = Struct("<IIH")
#: Kind, CPU, length of the body, monotonic nanoseconds; the body follows.
FRAME_HEAD = Struct("<BHIQ")
#: Payload of the last block: frames and blocks before it, whether another part follows.
LAST = Struct("<QQB")

#: Flags of a block.
COMPRESSED = 1
HEADER = 2
END = 4

#: A block takes frames up to this size; one frame alone may be larger.
BLOCK_BYTES = 256 << 10
MAX_PAYLOAD_BYTES = 16 << 20
MAX_BODY_BYTES = MAX_PAYLOAD_BYTES - FRAME_HEAD.size
MAX_FIRST_BYTES = 2 << 20
END_BYTES = BLOCK_HEAD.size + LAST.size
# Number of the block, length and flags: under the checksum, so that a block is taken only where
# it was written.
_PLACE = Struct("<QIH")
_MAX_DEPTH = 32
_MAX_DIGITS = 20  # of 2**64


class Frame(NamedTuple):
    """One thing recorded.

    :ivar kind: what it is; the container does not know.
    :ivar cpu: where it happened, 0 where that means nothing.
    :ivar ts_ns: monotonic time.
    """

    kind: int
    cpu: int
    ts_ns: int
    body: bytes


class First(NamedTuple):
    """What the first block tells."""

    part: int
    byteorder: str
    header: Dict[str, Any]
    layouts: Dict[str, Any]


class Damaged(ValueError):
    """Something that no writer has written; the text says what."""


def pack_block(number: int, payload: Union[bytes, bytearray], flags: int, level: int) -> bytes:
    """A block as it is stored: compressed if that makes it smaller.

    :param number: of the block in its file, from 1.
    """
    if level:
        packed = zlib.compress(payload, level)
        if len(packed) < len(payload):
            payload = packed
            flags |= COMPRESSED
    crc = _checksum(number, flags, payload)
    return b"".join((BLOCK_HEAD.pack(len(payload), crc, flags), payload))


def _checksum(number: int, flags: int, stored: Union[bytes, bytearray]) -> int:
    return zlib.crc32(stored, zlib.crc32(_PLACE.pack(number, len(stored), flags)))


def unpack_block(number: int, head: bytes, stored: bytes, limit: int) -> Tuple[int, bytes]:
    """Flags but for compression, and the payload as it was before it.

    :raises Damaged: the checksum is wrong, flags are unknown, or the payload is larger than
        ``limit`` or no compressed data.
    """
    _, crc, flags = BLOCK_HEAD.unpack(head)
    if _checksum(number, flags, stored) != crc:
        raise Damaged("checksum")
    if flags & ~(COMPRESSED | HEADER | END):
        raise Damaged(f"flags {flags:#x}")
    payload = _inflate(stored, limit) if flags & COMPRESSED else stored
    return flags & ~COMPRESSED, payload


def _inflate(stored: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        payload = inflater.decompress(stored, limit + 1)
    except zlib.error:
        raise Damaged("compressed data") from None
    if len(payload) > limit:
        raise Damaged(f"larger than {limit} bytes")
    if not inflater.eof or inflater.unused_data:
        raise Damaged("compressed data")
    return payload


def first_json(header: Mapping[str, Any], layouts: Mapping[str, Any]) -> str:
    """The content of the first block but for its beginning, see :func:`first_payload`.

    :raises ValueError: it is too large, or :func:`parse_first` would not take it.
    """
    import json

    encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
    text = f'"byteorder":"{sys.byteorder}","header":{encode(dict(header))}'
    text += f',"layouts":{encode(dict(layouts))}}}'
    payload = first_payload(1, text)
    if len(payload) > MAX_FIRST_BYTES - 16:  # the number may become longer
        raise ValueError(f"header and layouts of {len(payload)} bytes are too large")
    parse_first(payload)
    return text


def first_payload(part: int, text: str) -> bytes:
    """The payload of the first block of a part."""
    return f'{{"part":{part},{text}'.encode("ascii")


def parse_first(payload: bytes) -> First:
    """What the first block tells; the content of header and layouts is not looked at.

    :raises Damaged: not JSON, or not of the kind a writer writes: duplicate keys, numbers
        beyond 64 bits, NaN, nesting without end.
    """
    import json

    decoder = json.JSONDecoder(
        object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_constant
    )
    try:
        content = decoder.decode(payload.decode("utf-8"))
        _check_depth(content)
        return _first(content)
    except RecursionError:
        problem = "nested too deeply"
    except UnicodeDecodeError:
        problem = "no UTF-8"
    except ValueError as error:
        problem = str(error)
    raise Damaged(f"header and layouts: {problem}")


def _first(content: Any) -> First:
    """The members of the outermost object, checked as far as they are ours."""
    if not isinstance(content, dict):
        raise ValueError("no object")
    for name, kind in (("part", int), ("byteorder", str), ("header", dict), ("layouts", dict)):
        if type(content.get(name)) is not kind:
            raise ValueError(f"'{name}' is missing or of a wrong type")
    first = First(*[content[name] for name in First._fields])
    if first.part < 1 or first.byteorder not in ("little", "big"):
        raise ValueError("'part' or 'byteorder' has an impossible value")
    return first


def _object(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key twice")
    return members


def _int(text: str) -> int:
    # Long texts first: converting a million digits takes minutes in older versions of Python.
    if len(text) > _MAX_DIGITS or not -(1 << 63) <= int(text) < 1 << 64:
        raise ValueError("a number beyond 64 bits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError("a number that is not finite")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _check_depth(content: Any) -> None:
    """Others walk the content recursively."""
    level: List[Any] = [content]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise ValueError("nested too deeply")


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()
