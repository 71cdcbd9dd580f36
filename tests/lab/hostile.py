# SPDX-License-Identifier: GPL-2.0-only
"""Names made to break a terminal, a line or a record, and the judge of what came out."""

from __future__ import annotations

import unicodedata
from typing import List

__all__ = ["COMMS", "DEVICES", "flaws", "shown"]

#: Interface names the kernel takes: 1 to 15 bytes, no NUL, no '/', no ':', no white space. Escape
#: sequences, BEL, C1 bytes alone and in UTF-8, bidi overrides, what Python takes for white space,
#: bytes that are no UTF-8, a backslash that looks like the escape of another name, a comma.
DEVICES: List[bytes] = [
    b"\x1b[2J\x1b[1;1H\x07",
    b"\x1b]0;owned\x07",
    b"a\x1b[31mb",
    b"\x9b31m\x90q",
    "\u202egnp.exe".encode(),
    "\u2066a\u2069\u200b".encode(),
    "n\u0085l\u2028p\u2029".encode(),
    b"a\x1cb\x1dc\x1ed\x1f",
    b"\xff\xfe\xc3(",
    b"\\xff\\xfe\\xc3(",
    b"a,b",
    b'"},[{"a"',
    b"{0}{a!r}$(id)",
    b"\x7f\x08\x08\x08",
]

#: Process names: any 1 to 15 bytes but NUL.
COMMS: List[bytes] = [
    b"\x1b[2J\x1b[1;1H\x07",
    b"a\nready: 9\r\n",
    b'"}\n{"type":"x',
    "\u202egnp.exe".encode(),
    b"\x9b31m\xff\xfe",
    b"\t\\x1b\\\\",
    b"qemu (deleted)",
    b") R 1 1 (",
]


def flaws(text: str) -> List[str]:
    """What in a line of output is not safe to show: controls, format and bidi characters,
    separators other than the space, surrogates, private and unassigned code points."""
    return [
        f"U+{ord(char):04X} at {at}"
        for at, char in enumerate(text)
        if char != " " and unicodedata.category(char)[0] in "CZ"
    ]


def shown(name: bytes) -> str:
    """A name as records have it: what is not safe, and what is no UTF-8, byte by byte as \\xNN."""
    text = ""
    for char in name.decode("utf-8", "surrogateescape"):
        data = char.encode("utf-8", "surrogateescape")
        text += "".join(f"\\x{byte:02x}" for byte in data) if flaws(char) else char
    return text
