# SPDX-License-Identifier: GPL-2.0-only
"""Sizes and times with their unit, as options take them and as messages show them."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

__all__ = ["parse_size", "parse_time", "size_text", "time_text"]

_SIZES: Dict[str, int] = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIMES: Dict[str, int] = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9}
_MOST_DIGITS = 40  # more than any size or time needs, and none that int() refuses


def parse_size(text: str) -> int:
    """Bytes of ``8M``, ``64K``, ``1.5G``, ``4096B``; powers of 1024, ``8MiB`` means the same.

    :raises ValueError: no number, no unit, another unit, or not a whole number of bytes.
    """
    number, unit = _split(text)
    symbol = unit.upper()
    if len(symbol) == 3 and symbol.endswith("IB"):
        symbol = symbol[0]
    return _scaled(text, number, _SIZES.get(symbol), ("a size", "K, M, G", "8M"))


def parse_time(text: str) -> int:
    """Nanoseconds of ``50us``, ``1.5ms``, ``2s``, ``250ns``, ``1m`` (a minute).

    :raises ValueError: no number, no unit, another unit, or not a whole number of ns.
    """
    number, unit = _split(text)
    return _scaled(text, number, _TIMES.get(unit), ("a time", "ns, us, ms, s, m", "50us"))


def size_text(size_bytes: int) -> str:
    """Bytes in the largest unit that leaves at least 1: ``8 MiB``, ``1.5 KiB``, ``12 bytes``."""
    value = float(size_bytes)
    if value < 1024:
        return f"{size_bytes} bytes"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024 or unit == "TiB":
            break
    return f"{value:.1f}".replace(".0", "") + f" {unit}"


def time_text(ns: int) -> str:
    """A time in the largest unit that leaves at least 1: ``50 us``, ``1.5 ms``, ``250 ns``."""
    for unit in ("s", "ms", "us"):
        if abs(ns) >= _TIMES[unit]:
            return f"{ns / _TIMES[unit]:.3f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{ns} ns"


def _split(text: str) -> Tuple[str, str]:
    at = len(text)
    while at and text[at - 1].isalpha():
        at -= 1
    return text[:at], text[at:]


def _scaled(text: str, number: str, factor: Optional[int], words: Tuple[str, str, str]) -> int:
    what, units, example = words
    whole, dot, part = number.partition(".")
    digits = whole + part
    plain = text.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS
    if not (plain and whole and bool(dot) == bool(part)):
        raise ValueError(f"'{text}' is not {what}; an example is {example}")
    if factor is None:
        raise ValueError(f"'{text}': {what} needs a unit ({units}); an example is {example}")
    value, rest = divmod(int(digits) * factor, int("1" + "0" * len(part)))
    if rest:
        raise ValueError(f"'{text}' is finer than {what} can be")
    return value
