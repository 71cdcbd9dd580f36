# SPDX-License-Identifier: GPL-2.0-only
"""Type information from a file: whose it is, and whether it is the running kernel's.

``ntools-btf`` leaves a note in the strings of what it makes; no type uses it and libbpf reads over
it. A file without a note is compared with the kernel's own type information, where there is one.
Everything is found by searching bytes, as in :mod:`kernel`: this is on the start path.
"""

import struct
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

__all__ = [
    "Layout",
    "Note",
    "difference",
    "find_name",
    "find_text",
    "layouts",
    "records",
    "text_section",
]

_STRUCT = 4
_HEADER_BYTES = 24
_MARK = b"\0ntools-btf "


class Note(NamedTuple):
    """What ``ntools-btf`` wrote into a file.

    :ivar release: of the kernel, "" if it could not be told.
    :ivar arch: "x86" or "arm64".
    :ivar builds: object -> fingerprint, for a file reduced to what these objects need.
    """

    release: str
    arch: str
    builds: Dict[str, str]

    @property
    def text(self) -> str:
        """The note as it stands in the file."""
        words = ["ntools-btf", "release=" + self.release, "arch=" + self.arch]
        words += ["object={}:{}".format(*row) for row in sorted(self.builds.items())]
        return " ".join(words)

    @classmethod
    def from_btf(cls, blob: bytes) -> "Optional[Note]":
        """The newest note of a file, None if it has none."""
        start = blob.rfind(_MARK)
        end = blob.find(b"\0", start + 1)
        if start < 0 or end < 0:
            return None
        words = blob[start + 1 : end].decode("utf-8", "replace").split(" ")[1:]
        fields: Dict[str, List[str]] = {}
        for word in words:
            key, _, value = word.partition("=")
            fields.setdefault(key, []).append(value)
        builds = dict(row.partition(":")[::2] for row in fields.get("object", ()))
        return cls(fields.get("release", [""])[0], fields.get("arch", [""])[0], builds)


class Layout(NamedTuple):
    """Size of a struct in bytes and the bit offset of its named members."""

    size: int
    members: Dict[str, int]

    def agrees(self, other: "Layout") -> bool:
        """Whether both can be the same struct; reduced files leave out members."""
        common = set(self.members) & set(other.members)
        return self.size == other.size and all(
            self.members[name] == other.members[name] for name in common
        )


def difference(one: bytes, other: bytes, structs: Iterable[str]) -> Optional[str]:
    """First of the structs that both files describe and differently; None if there is none."""
    for name in structs:
        mine, theirs = layouts(one, name), layouts(other, name)
        if mine and theirs and not any(a.agrees(b) for a in mine for b in theirs):
            return name
    return None


def text_section(blob: bytes) -> Tuple[int, int]:
    """(start, end) of the string section."""
    header = struct.unpack_from("<I", blob, 4)[0]
    offset, length = struct.unpack_from("<II", blob, 16)
    return header + offset, header + offset + length


def find_text(blob: bytes, name: str) -> int:
    """Where a whole string lies in BTF, -1 if nowhere."""
    if len(blob) < _HEADER_BYTES:
        return -1
    return find_name(blob, name, *text_section(blob))


def find_name(text: bytes, name: str, start: int = 0, end: Optional[int] = None) -> int:
    """Where a whole string lies among strings that end in zeros, -1 if nowhere.

    Searched without its terminators: a needle that ends in the commonest byte is several times
    slower to find.
    """
    needle = name.encode()
    at = text.find(needle, start, end)
    while at >= 0:
        if text[at - 1] == 0 and text[at + len(needle) : at + len(needle) + 1] == b"\0":
            return at
        at = text.find(needle, at + 1, end)
    return -1


def layouts(blob: bytes, name: str) -> List[Layout]:
    """Every struct of a name."""
    place = find_text(blob, name)
    return list(_layouts_at(blob, place)) if place >= text_section(blob)[0] else []


def records(blob: bytes, name: int) -> Iterator[int]:
    """Where records of BTF with that name may begin; a field of another record can look the same.

    Found by their bytes: walking the types record by record takes Python a tenth of a second.

    :param name: offset of a string, as records have it.
    """
    header, first = struct.unpack_from("<II", blob, 4)
    first += header
    end = min(text_section(blob)[0], len(blob))
    pattern = struct.pack("<I", name & 0xFFFFFFFF)
    at = blob.find(pattern, first, end)
    while at >= 0:
        if (at - first) % 4 == 0 and at + 12 <= end:
            yield at
        at = blob.find(pattern, at + 1, end)


def _layouts_at(blob: bytes, place: int) -> Iterator[Layout]:
    zero, end = text_section(blob)
    for at in records(blob, place - zero):
        info, size = struct.unpack_from("<II", blob, at + 4)
        count = info & 0xFFFF
        if info >> 24 & 0x1F == _STRUCT and count and at + 12 + 12 * count <= zero:
            members = {}
            for row in range(count):
                text, _, offset = struct.unpack_from("<III", blob, at + 12 + 12 * row)
                if 0 < text < end - zero:
                    label = blob[zero + text : blob.find(b"\0", zero + text)]
                    members[label.decode("utf-8", "replace")] = (
                        offset & 0xFFFFFF if info >> 31 else offset
                    )
            yield Layout(size, members)
