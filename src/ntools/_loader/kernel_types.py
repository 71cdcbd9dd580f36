# SPDX-License-Identifier: GPL-2.0-only
"""The types of a kernel, from raw BTF of any origin: validated first, then looked up.

For the commands that make and check type information. Reading a kernel's BTF record by record
takes Python half a second, so no run of a BPF object does it; :mod:`kernel` searches bytes.
"""

import struct
from array import array
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

__all__ = ["ENUMS", "RECORDS", "TYPEDEFS", "KernelTypes", "Member", "Place"]

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
_VOLATILE, _CONST, _RESTRICT, _FUNC, _PROTO, _VAR, _DATASEC = 9, 10, 11, 12, 13, 14, 15
_FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = 16, 17, 18, 19
_ALIASES = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)
#: Kinds by name, for :meth:`KernelTypes.find`.
RECORDS = (_STRUCT, _UNION)
ENUMS = (_ENUM, _ENUM64)
TYPEDEFS = (_TYPEDEF,)
#: Bytes that follow the 12 of a type, and bytes per element of its list.
_TAIL = {
    _INT: (4, 0), _PTR: (0, 0), _ARRAY: (12, 0), _STRUCT: (0, 12), _UNION: (0, 12),
    _ENUM: (0, 8), _FWD: (0, 0), _TYPEDEF: (0, 0), _VOLATILE: (0, 0), _CONST: (0, 0),
    _RESTRICT: (0, 0), _FUNC: (0, 0), _PROTO: (0, 8), _VAR: (4, 0), _DATASEC: (0, 12),
    _FLOAT: (0, 0), _DECL_TAG: (4, 0), _TYPE_TAG: (0, 0), _ENUM64: (0, 12),
}  # fmt: skip
#: Kinds whose third word is a type.
_REFERS = _ALIASES + (_PTR, _FUNC, _PROTO, _VAR, _DECL_TAG)
#: Kinds that are looked up by name.
_NAMED = frozenset((_STRUCT, _UNION, _ENUM, _ENUM64, _TYPEDEF))
_HEAD = struct.Struct("<III")
#: Aliases behind one another, arrays of arrays; real ones have a handful.
_DEPTH = 64
#: Nameless parts of one struct; real ones have dozens.
_PARTS = 4096

Step = Union[str, int]


class Member(NamedTuple):
    """A member of a struct or union, those of its nameless parts included."""

    name: str
    type_id: int
    bit_offset: int


class Place(NamedTuple):
    """Where a path through a type leads."""

    type_id: int
    bit_offset: int


class KernelTypes:
    """All types of one BTF blob (no split BTF).

    :ivar count: number of types.
    :raises ValueError: this is no BTF, or damaged; says where.
    """

    def __init__(self, blob: bytes) -> None:
        start, end, self._text = _sections(blob)
        self._blob = blob
        self._at = array("I", [0])
        self._names: Dict[bytes, List[int]] = {}
        self._index(start, end)
        self.count = len(self._at) - 1
        self._validate()

    def find(self, name: str, kinds: Sequence[int]) -> List[int]:
        """Ids of all types of that name and one of the kinds; a joined file may have several."""
        return [i for i in self._names.get(name.encode(), ()) if self._head(i)[1] in kinds]

    def has(self, name: str) -> bool:
        """Whether a struct, union, enum or typedef of this name is described."""
        return name.encode() in self._names

    def name(self, type_id: int) -> str:
        """Name of a type, "" if it has none."""
        return self._string(self._head(type_id)[0])

    def kind(self, type_id: int) -> int:
        """Kind of the type itself, an alias included."""
        return self._head(type_id)[1]

    def resolve(self, type_id: int) -> int:
        """The type behind typedefs and qualifiers.

        :raises ValueError: they go in a circle.
        """
        for _ in range(_DEPTH):
            kind, target = self._head(type_id)[1::3]
            if kind not in _ALIASES:
                return type_id
            type_id = target
        raise ValueError("type {} is an alias of itself".format(type_id))

    def size(self, type_id: int) -> int:
        """Bytes of a struct, union or enum."""
        return self._head(type_id)[4]

    def member(self, type_id: int, index: int) -> Member:
        """The member at a position, a nameless one too.

        :raises ValueError: there is none.
        """
        _, kind, count, flag, _ = self._head(type_id)
        if kind not in RECORDS or not 0 <= index < count:
            raise ValueError("type {} has no member {}".format(type_id, index))
        name, inner, place = _HEAD.unpack_from(self._blob, self._at[type_id] + 12 + 12 * index)
        return Member(self._string(name), inner, place & 0xFFFFFF if flag else place)

    def members(self, type_id: int) -> Iterator[Member]:
        """Named members of a struct or union with their offset from its beginning.

        :raises ValueError: nameless parts contain each other.
        """
        parts = [(type_id, 0)]
        for _ in range(_PARTS):
            if not parts:
                return
            part, base = parts.pop()
            _, kind, count, _, _ = self._head(part)
            for index in range(count if kind in RECORDS else 0):
                found = self.member(part, index)
                offset = base + found.bit_offset
                if found.name:
                    yield found._replace(bit_offset=offset)
                else:
                    parts.append((self.resolve(found.type_id), offset))
        if parts:
            raise ValueError("type {} contains itself".format(type_id))

    def element(self, type_id: int) -> Tuple[int, int]:
        """(type, count) of an array's elements.

        :raises ValueError: it is no array.
        """
        if self._head(type_id)[1] != _ARRAY:
            raise ValueError("type {} is no array".format(type_id))
        inner, _, count = _HEAD.unpack_from(self._blob, self._at[type_id] + 12)
        return inner, count

    def bits(self, type_id: int, depth: int = _DEPTH) -> int:
        """Width of a type.

        :raises ValueError: arrays of one another.
        """
        type_id = self.resolve(type_id)
        kind, size = self._head(type_id)[1::3]
        if kind == _PTR:
            return 64
        if kind == _ARRAY:
            if not depth:
                raise ValueError("type {} contains itself".format(type_id))
            inner, count = self.element(type_id)
            return self.bits(inner, depth - 1) * count
        return size * 8 if kind in (_INT, _FLOAT) + RECORDS + ENUMS else 0

    def follow(self, type_id: int, path: Sequence[Step]) -> Optional[Place]:
        """Where a path of member names and array indices leads; None: there is no such path."""
        at = Place(self.resolve(type_id), 0)
        for step in path:
            if isinstance(step, int):
                if self.kind(at.type_id) != _ARRAY:
                    return None
                inner = self.element(at.type_id)[0]
                offset = at.bit_offset + step * self.bits(inner)
            else:
                found = [m for m in self.members(at.type_id) if m.name == step]
                if not found:
                    return None
                inner, offset = found[0].type_id, at.bit_offset + found[0].bit_offset
            at = Place(self.resolve(inner), offset)
        return at

    def enumerators(self, type_id: int) -> List[str]:
        """Names of an enum, in order; empty for other kinds."""
        _, kind, count, _, _ = self._head(type_id)
        if kind not in ENUMS:
            return []
        each = _TAIL[kind][1]
        start = self._at[type_id] + 12
        names = struct.Struct("<I{}x".format(each - 4))
        rows = names.iter_unpack(self._blob[start : start + each * count])
        return [self._string(name) for (name,) in rows]

    def _head(self, type_id: int) -> Tuple[int, int, int, int, int]:
        """Name, kind, number of elements, flag, size or type; void is id 0."""
        if not type_id:
            return 0, 0, 0, 0, 0
        name, info, size = _HEAD.unpack_from(self._blob, self._at[type_id])
        return name, info >> 24 & 0x1F, info & 0xFFFF, info >> 31, size

    def _string(self, offset: int) -> str:
        return self._text[offset : self._text.index(b"\0", offset)].decode("utf-8", "replace")

    def _index(self, position: int, end: int) -> None:
        text, blob, at, names = self._text, self._blob, self._at, self._names
        unpack = _HEAD.unpack_from
        while position < end:
            if position + 12 > end:
                raise ValueError("type {} is cut short".format(len(at)))
            name, info, _ = unpack(blob, position)
            kind = info >> 24 & 0x1F
            if kind not in _TAIL:
                raise ValueError("type {} is of the unknown kind {}".format(len(at), kind))
            if name >= len(text):
                raise ValueError("type {} has no name in the file".format(len(at)))
            if name and kind in _NAMED:
                names.setdefault(text[name : text.index(b"\0", name)], []).append(len(at))
            at.append(position)
            fixed, each = _TAIL[kind]
            position += 12 + fixed + each * (info & 0xFFFF)
        if position != end:
            raise ValueError("type {} is cut short".format(len(at) - 1))

    def _validate(self) -> None:
        """Every id and name a type uses is in the file: libbpf does not look in every version."""
        blob, limit, unpack = self._blob, len(self._at), _HEAD.unpack_from
        for type_id in range(1, limit):
            position = self._at[type_id]
            _, info, target = unpack(blob, position)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            good = target < limit if kind in _REFERS else True
            if kind == _ARRAY:
                good = max(unpack(blob, position + 12)[:2]) < limit
            elif kind in _LISTS and count:
                form, name_at, type_at = _LISTS[kind]
                rows = zip(
                    *form.iter_unpack(blob[position + 12 : position + 12 + form.size * count])
                )
                columns = list(rows)
                good = good and (name_at < 0 or max(columns[name_at]) < len(self._text))
                good = good and (type_at < 0 or max(columns[type_at]) < limit)
            if not good:
                raise ValueError("type {} refers to what is not in the file".format(type_id))


#: Kind -> form of its elements, the columns with a name and with a type (-1: none).
_LISTS = {
    _STRUCT: (struct.Struct("<II4x"), 0, 1),
    _UNION: (struct.Struct("<II4x"), 0, 1),
    _ENUM: (struct.Struct("<I4x"), 0, -1),
    _ENUM64: (struct.Struct("<I8x"), 0, -1),
    _PROTO: (struct.Struct("<II"), 0, 1),
    _DATASEC: (struct.Struct("<I8x"), -1, 0),
}


def _sections(blob: bytes) -> Tuple[int, int, bytes]:
    """(start, end) of the types, and the strings."""
    if blob[:2] != b"\x9f\xeb":
        raise ValueError("not a BTF file")
    if len(blob) < 24:
        raise ValueError("the header is cut short")
    version, header, type_at, type_len, text_at, text_len = struct.unpack_from("<2xBxIIIII", blob)
    if version != 1 or header < 24:
        raise ValueError("version {} of BTF is not known".format(version))
    start, first = header + type_at, header + text_at
    if max(start + type_len, first + text_len) > len(blob):
        raise ValueError("the file is cut short")
    if start % 4:
        raise ValueError("the types are not aligned")
    text = blob[first : first + text_len]
    if text[:1] != b"\0" or text[-1:] != b"\0":
        raise ValueError("the strings are damaged")
    return start, start + type_len, text
