# SPDX-License-Identifier: GPL-2.0-only
"""Assertions whose message says what was expected and what was found."""

from __future__ import annotations

from typing import Any, Collection, Dict, Iterable, Mapping, Optional, Sequence, Tuple

__all__ = [
    "all_of",
    "at_least",
    "at_most",
    "between",
    "contains",
    "equal",
    "no_loss",
    "only_pair_slow",
    "pair_name",
    "same_sum",
]

_MS = 1_000_000


def _fail(text: str, facts: Any = None) -> None:
    raise AssertionError(text if facts is None else f"{text}\n  {facts}")


def equal(actual: Any, expected: Any, what: str = "value", facts: Any = None) -> None:
    """Exactly the expected value."""
    if actual != expected:
        _fail(f"{what}: expected {expected!r}, found {actual!r}", facts)


def between(actual: float, low: float, high: float, what: str = "value", facts: Any = None) -> None:
    """``low <= actual <= high``."""
    if actual is None or not low <= actual <= high:
        _fail(f"{what}: expected {low} to {high}, found {actual!r}", facts)


def at_least(actual: float, low: float, what: str = "value", facts: Any = None) -> None:
    """``actual >= low``."""
    if actual is None or actual < low:
        _fail(f"{what}: expected at least {low}, found {actual!r}", facts)


def at_most(actual: float, high: float, what: str = "value", facts: Any = None) -> None:
    """``actual <= high``."""
    if actual is None or actual > high:
        _fail(f"{what}: expected at most {high}, found {actual!r}", facts)


def contains(text: Collection[Any], part: Any, what: str = "text") -> None:
    """The part is in the text or the collection."""
    if part not in text:
        _fail(f"{what}: {part!r} not in {text!r}")


def all_of(items: Sequence[Mapping[str, Any]], what: str = "record", **fields: Any) -> None:
    """There is an item, and every item has these values."""
    if not items:
        _fail(f"{what}: none found")
    for item in items:
        for name, value in fields.items():
            equal(item.get(name), value, f"{what}.{name}", item)


def same_sum(sent: int, what: str, **parts: int) -> None:
    """The accounting adds up: sent = seen + lost + ..."""
    if sent != sum(parts.values()):
        text = " + ".join(f"{name} {value}" for name, value in parts.items())
        _fail(f"{what}: {sent} is not {text} = {sum(parts.values())}")


def no_loss(summary: Mapping[str, Any]) -> None:
    """No cause of loss in a summary record."""
    lost = {cause: count for cause, count in summary.get("lost", {}).items() if count}
    if lost:
        _fail(f"lost: {lost}", summary)


def pair_name(hist: Mapping[str, Any]) -> Tuple[Optional[str], str, str]:
    """(direction, from, to) of a hist record."""
    labels = hist["labels"]
    return labels.get("direction"), labels["from"], labels["to"]


def only_pair_slow(
    hists: Iterable[Mapping[str, Any]],
    pair: Tuple[str, str],
    ms: float,
    direction: Optional[str] = None,
    count: Optional[int] = None,
    whole: Collection[Tuple[str, str]] = (),
) -> Dict[str, Any]:
    """The delay was put between two stages, and shows there and nowhere else.

    Every sample of ``pair`` is at least ``ms``, every sample of every other pair is below half
    of it.

    :param pair: (from, to).
    :param direction: only this direction of the pair is the slow one.
    :param count: exact number of samples of the pair, when the sender knows it.
    :param whole: pairs that contain the slow one, such as a total; not judged.
    :return: the hist record of the pair.
    """
    slow = None
    table = []
    problems = []
    for hist in hists:
        way, first, last = pair_name(hist)
        table.append(
            f"{way} {first} -> {last}: {hist['count']} samples, "
            f"{hist['min'] / _MS:.3f} .. {hist['max'] / _MS:.3f} ms"
            if hist["count"]
            else f"{way} {first} -> {last}: no samples"
        )
        if (first, last) == pair and direction in (None, way):
            slow = dict(hist)
            if not hist["count"] or hist["min"] < ms * _MS:
                problems.append(f"expected every sample of {first} -> {last} at {ms} ms or more")
            if count is not None and hist["count"] != count:
                problems.append(f"{first} -> {last}: expected {count} samples")
        elif (first, last) not in whole and hist["count"] and hist["max"] >= ms * _MS / 2:
            problems.append(f"{way} {first} -> {last} is slow too")
    if slow is None:
        problems.append(f"no hist record of {pair[0]} -> {pair[1]}")
    if problems:
        _fail("; ".join(problems), "\n  ".join(table))
    assert slow is not None
    return slow
