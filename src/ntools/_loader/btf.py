# SPDX-License-Identifier: GPL-2.0-only
"""Types of a BPF object, decoded from its own BTF: the C struct is the only definition.

A struct becomes a :class:`StructType`: one ``struct`` format, flat field names (nested structs as
``outer__inner``), arrays as bytes. Also here: which kernel types the object's CO-RE relocations
need, so that a program that cannot be relocated is not even tried.
"""

import struct
from functools import wraps
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Set,
    Tuple,
    TypeVar,
    cast,
)

__all__ = ["Field", "Relocation", "StructType", "Types"]
__all__ += ["functions", "relocation_roots", "relocations"]

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
_VOLATILE, _CONST, _RESTRICT, _FUNC, _PROTO, _VAR, _DATASEC = 9, 10, 11, 12, 13, 14, 15
_FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = 16, 17, 18, 19
_ALIASES = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)
#: Bytes per element that follow a type record, by kind.
_TAIL_EACH = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _PROTO: 8, _DATASEC: 12, _ENUM64: 12}
_TAIL_FIXED = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_INT_FORMAT = {
    (1, False): "B", (2, False): "H", (4, False): "I", (8, False): "Q",
    (1, True): "b", (2, True): "h", (4, True): "i", (8, True): "q",
}  # fmt: skip
#: CO-RE relocations that need the struct of a field: its offset, size, sign and shifts.
_READS_FIELD = (0, 1, 3, 4, 5)
#: Bounds of a struct shared with Python, so that a damaged file costs no memory to speak of.
_MAX_BYTES, _MAX_FIELDS, _MAX_DEPTH = 1 << 20, 4096, 32

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _damage_is_value_error(method: _Method) -> _Method:
    """What reading outside of the tables raises, as the one error callers know."""

    @wraps(method)
    def call(*args: Any) -> Any:
        try:
            return method(*args)
        except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
            raise ValueError("damaged BTF: {}".format(error)) from None

    return cast(_Method, call)


class Relocation(NamedTuple):
    """One CO-RE relocation: what a program asks of the kernel's type information.

    :ivar section: where the program is; ".text": a function that programs call.
    :ivar type_id: type in the object's BTF.
    :ivar access: path through the type as the compiler writes it, "0:3:1".
    :ivar kind: number of ``enum bpf_core_relo_kind``.
    """

    section: str
    program: str
    type_id: int
    access: str
    kind: int


class Field(NamedTuple):
    """One flat field: name, offset in bytes, ``struct`` format, array element format or ""."""

    name: str
    offset: int
    format: str
    element: str


class StructType:
    """A C struct as seen from Python.

    :ivar name: C name.
    :ivar size: bytes.
    :ivar fields: flat :class:`Field` list in memory order.
    :ivar names: the field names.
    """

    __slots__ = ("name", "size", "fields", "names", "codec")

    def __init__(self, name: str, size: int, fields: List[Field]) -> None:
        self.name = name
        self.size = size
        self.fields = fields
        self.names = [field.name for field in fields]
        layout = "<"
        position = 0
        for field in fields:
            if field.offset > position:
                layout += "{}x".format(field.offset - position)
            layout += field.format
            position = field.offset + struct.calcsize("<" + field.format)
        if size > position:
            layout += "{}x".format(size - position)
        self.codec = struct.Struct(layout)
        if not self.codec.size == size <= _MAX_BYTES:
            raise ValueError("struct '{}' has an impossible layout".format(name))

    def index(self, name: str) -> int:
        """Position of a field in the decoded tuples."""
        return self.names.index(name)

    def pack(self, values: Dict[str, Any]) -> bytes:
        """Bytes of the struct; fields not given are zero.

        :raises KeyError: a name the struct does not have.
        """
        unknown = set(values) - set(self.names)
        if unknown:
            raise KeyError("struct {} has no {}".format(self.name, ", ".join(sorted(unknown))))
        return self.codec.pack(
            *[values.get(f.name, b"" if f.format.endswith("s") else 0) for f in self.fields]
        )


class Types:
    """The types in one BTF blob (no split BTF).

    :raises ValueError: the blob is not BTF, here or where what is damaged is first used.
    """

    @_damage_is_value_error
    def __init__(self, blob: bytes) -> None:
        magic, _, _, header, type_at, type_len, text_at, text_len = struct.unpack_from(
            "<HBBIIIII", blob
        )
        if magic != 0xEB9F:
            raise ValueError("not BTF")
        self._text = blob[header + text_at : header + text_at + text_len]
        #: (name offset, kind, vlen, kind flag, size or type, offset of what follows)
        self._types: List[Tuple[int, int, int, int, int, int]] = [(0, 0, 0, 0, 0, 0)]
        self._blob = blob
        self._structs: Dict[str, StructType] = {}
        self._by_name: Dict[str, int] = {}
        self._variables: Dict[str, int] = {}
        position = header + type_at
        end = position + type_len
        while position < end:
            name, info, size = struct.unpack_from("<III", blob, position)
            kind, vlen = (info >> 24) & 0x1F, info & 0xFFFF
            position += 12
            if name and kind in (_STRUCT, _UNION, _ENUM, _ENUM64):
                self._by_name.setdefault(self.text(name), len(self._types))
            elif kind == _VAR:
                self._variables[self.text(name)] = len(self._types)
            self._types.append((name, kind, vlen, info >> 31, size, position))
            position += _TAIL_FIXED.get(kind, _TAIL_EACH.get(kind, 0) * vlen)

    @_damage_is_value_error
    def text(self, offset: int) -> str:
        """String at an offset of the string section."""
        return self._text[offset : self._text.index(b"\0", offset)].decode()

    @_damage_is_value_error
    def struct(self, name: str) -> StructType:
        """Layout of ``struct name``.

        :raises KeyError: no such struct; :raises ValueError: it has bit fields or a union.
        """
        if name not in self._structs:
            self._structs[name] = self._layout(self._by_name[name])
        return self._structs[name]

    @_damage_is_value_error
    def enum(self, name: str) -> Dict[str, int]:
        """Enumerator name -> value."""
        _, kind, vlen, _, _, position = self._types[self._by_name[name]]
        if kind != _ENUM:
            raise KeyError(name)
        members = (struct.unpack_from("<Ii", self._blob, position + 8 * i) for i in range(vlen))
        return {self.text(label): value for label, value in members}

    @_damage_is_value_error
    def named(self, start: str) -> Tuple[List[StructType], Dict[str, Dict[str, int]]]:
        """Structs and enums whose names begin so; those that cannot be decoded are left out."""
        structs, enums = [], {}
        for name, type_id in self._by_name.items():
            kind = self._types[type_id][1]
            if not name.startswith(start):
                continue
            if kind == _ENUM:
                enums[name] = self.enum(name)
            elif kind == _STRUCT:
                try:
                    structs.append(self.struct(name))
                except ValueError:  # a union or bit field inside: not for user space
                    continue
        return structs, enums

    @_damage_is_value_error
    def manifest(self) -> Dict[str, Tuple[str, str]]:
        """Members of ``nt_manifest``: name -> ("struct" or "enum", type name)."""
        found = {}
        for label, type_id, _ in self._members(self._by_name["nt_manifest"]):
            name, kind = self._types[self._resolve(type_id)][:2]
            if kind in (_STRUCT, _ENUM):
                found[label] = ("struct" if kind == _STRUCT else "enum", self.text(name))
        return found

    @_damage_is_value_error
    def map_types(self, map_name: str) -> Tuple[Optional[StructType], Optional[StructType]]:
        """Key and value type of a map, from its BTF definition; None for what it leaves out.

        A scalar becomes a struct of one field named "value".
        """
        variable = self._types[self._variables[map_name]]
        sides: Dict[str, Optional[StructType]] = {"key": None, "value": None}
        for label, type_id, _ in self._members(self._resolve(variable[4])):
            if label in sides:
                pointer = self._types[self._resolve(type_id)]
                sides[label] = self._side(pointer[4])
        return sides["key"], sides["value"]

    def functions(self) -> List[str]:
        """Names of the functions, in the order of the source."""
        return [self.text(name) for name, kind, _, _, _, _ in self._types if kind == _FUNC]

    @_damage_is_value_error
    def name(self, type_id: int) -> str:
        """Name of a type by id, "" if it has none."""
        return self.text(self._types[type_id][0])

    @_damage_is_value_error
    def root_name(self, type_id: int) -> str:
        """Name of a struct or union by id, without its ``___flavour``; "" for other kinds."""
        name, kind = self._types[self._resolve(type_id)][:2]
        return self.text(name).split("___")[0] if kind in (_STRUCT, _UNION) else ""

    def _side(self, type_id: int) -> StructType:
        resolved = self._resolve(type_id)
        name, kind = self._types[resolved][:2]
        if kind == _STRUCT:
            return self.struct(self.text(name)) if name else self._layout(resolved)
        text, element = self._scalar(resolved)
        return StructType("", struct.calcsize("<" + text), [Field("value", 0, text, element)])

    def _resolve(self, type_id: int) -> int:
        for _ in self._types:
            if self._types[type_id][1] not in _ALIASES:
                return type_id
            type_id = self._types[type_id][4]
        raise ValueError("damaged BTF: a type is an alias of itself")

    def _members(self, type_id: int) -> List[Tuple[str, int, int]]:
        """(name, type id, bit offset) of a struct or union."""
        _, _, vlen, flag, _, position = self._types[type_id]
        members = []
        for index in range(vlen):
            name, member, offset = struct.unpack_from("<III", self._blob, position + 12 * index)
            if flag and offset >> 24:
                raise ValueError("bit field '{}' in a shared struct".format(self.text(name)))
            members.append((self.text(name), member, offset & 0xFFFFFF if flag else offset))
        return members

    def _layout(self, type_id: int, depth: int = 0) -> StructType:
        name, kind, _, _, size, _ = self._types[type_id]
        if depth > _MAX_DEPTH:
            raise ValueError("struct '{}' is nested too deep".format(self.text(name)))
        if kind != _STRUCT:
            raise ValueError("'{}' is not a struct".format(self.text(name)))
        fields: List[Field] = []
        for label, member, bits in self._members(type_id):
            member = self._resolve(member)
            if self._types[member][1] == _STRUCT:
                for inner in self._layout(member, depth + 1).fields:
                    fields.append(
                        inner._replace(
                            name="{}__{}".format(label, inner.name),
                            offset=inner.offset + bits // 8,
                        )
                    )
            else:
                text, element = self._scalar(member)
                fields.append(Field(label, bits // 8, text, element))
            if len(fields) > _MAX_FIELDS:
                raise ValueError("struct '{}' has too many fields".format(self.text(name)))
        return StructType(self.text(name), size, fields)

    def _scalar(self, type_id: int, depth: int = 0) -> Tuple[str, str]:
        """(format, element format) of a number, enum, pointer or array."""
        _, kind, _, flag, size, position = self._types[type_id]
        if kind == _INT:
            encoding = struct.unpack_from("<I", self._blob, position)[0]
            return _int_format(size, bool(encoding >> 24 & 1)), ""
        if kind == _PTR:
            return "Q", ""
        if kind in (_ENUM, _ENUM64):
            return _int_format(size, bool(flag)), ""
        if kind == _ARRAY and depth <= _MAX_DEPTH:
            element, _, count = struct.unpack_from("<III", self._blob, position)
            element = self._resolve(element)
            if self._types[element][1] == _STRUCT:
                return "{}s".format(self._types[element][4] * count), ""
            text, _ = self._scalar(element, depth + 1)
            return "{}s".format(struct.calcsize("<" + text) * count), text
        raise ValueError("type of kind {} in a shared struct".format(kind))


def _int_format(size: int, signed: bool) -> str:
    try:
        return _INT_FORMAT[size, signed]
    except KeyError:
        raise ValueError("number of {} bytes in a shared struct".format(size)) from None


@_damage_is_value_error
def relocation_roots(types: Types, ext: bytes) -> Dict[str, Set[str]]:
    """Kernel structs each program reads fields of, from ``.BTF.ext``.

    :return: program -> struct names; programs that read none may be left out.
    :raises ValueError: the tables are damaged.
    """
    roots: Dict[str, Set[str]] = {}
    for _, program, type_id, _, kind in _relocations(types, ext):
        if kind in _READS_FIELD:
            roots.setdefault(program, set()).add(types.root_name(type_id))
    for needed in roots.values():
        needed.discard("")
    return roots


@_damage_is_value_error
def relocations(types: Types, ext: bytes) -> List[Relocation]:
    """All CO-RE relocations of an object, from ``.BTF.ext``, in the order of the code.

    :raises ValueError: the tables are damaged.
    """
    return [
        Relocation(types.text(section), program, type_id, types.text(access), kind)
        for section, program, type_id, access, kind in _relocations(types, ext)
    ]


@_damage_is_value_error
def functions(types: Types, ext: bytes) -> List[Tuple[str, str]]:
    """(section, name) of every function, from ``.BTF.ext``.

    :raises ValueError: the tables are damaged.
    """
    if len(ext) < 24:
        return []
    return [
        (types.text(section), types.name(record[1]))
        for section, records in _ext_records(ext, 8, "<II")
        for record in records
    ]


def _relocations(types: Types, ext: bytes) -> Iterator[Tuple[int, str, int, int, int]]:
    """Section (as string offset), program, type id, access (as string offset), kind."""
    if (
        len(ext) < 32 or struct.unpack_from("<HBBI", ext)[3] < 32
    ):  # no CO-RE relocations in this file
        return
    starts = {
        section: sorted((record[0], types.name(record[1])) for record in records)
        for section, records in _ext_records(ext, 8, "<II")
    }
    for section, records in _ext_records(ext, 24, "<IIII"):
        for place, type_id, access, kind in records:
            program = [name for start, name in starts.get(section, ()) if start <= place][-1]
            yield section, program, type_id, access, kind


def _ext_records(ext: bytes, at: int, form: str) -> Iterator[Tuple[int, List[Tuple[int, ...]]]]:
    """(section name offset, records) of the table whose place the header of ``.BTF.ext`` has at."""
    header = struct.unpack_from("<I", ext, 4)[0]
    start, length = struct.unpack_from("<II", ext, at)
    position = header + start
    end = position + length
    size = struct.unpack_from("<I", ext, position)[0]
    position += 4
    if size < struct.calcsize(form):
        raise ValueError("damaged BTF: records of {} bytes".format(size))
    while position < end:
        section, count = struct.unpack_from("<II", ext, position)
        position += 8
        yield (
            section,
            [struct.unpack_from(form, ext, position + size * index) for index in range(count)],
        )
        position += size * count
