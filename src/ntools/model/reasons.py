# SPDX-License-Identifier: GPL-2.0-only
"""Drop reasons: names, what they mean and what to look at next, normal classes, derived reasons.

The tables are data files: names of kernel functions and enumerators are data here. They are read
when first needed. Reasons are written in lower case, those of a subsystem with its name in front:
``netfilter_drop``, ``openvswitch:meter``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import (
    AbstractSet,
    Any,
    Callable,
    Dict,
    FrozenSet,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

__all__ = [
    "CLASSES",
    "FACTS",
    "Derived",
    "DropClass",
    "Explanation",
    "ReasonNames",
    "classify",
    "derive",
    "explain",
    "free_functions",
    "place",
]

#: What can be known of a freed packet besides reason and function.
FACTS: Dict[str, str] = {
    "other_host": "its MAC address is not one of ours",
    "bad_checksum": "a checksum is wrong",
    "ttl_expired": "TTL or hop limit is 1 or less",
    "longer_than_mtu": "it does not fit the MTU of the next device",
    "has_socket": "it belongs to a socket",
    "syn": "a TCP segment that opens a connection",
    "echo_request": "an ICMP or ICMPv6 echo request",
    "echo_reply": "an ICMP or ICMPv6 echo reply",
    "delivered": "a clone was put on the queue of a socket just before",
    "not_delivered": "such a clone was looked for, and there was none",
    "no_protocol": "it has no EtherType",
    "no_device": "it belongs to no device",
}

#: Names of the classes; all but ``drop`` are normal to some degree.
CLASSES: Tuple[str, ...] = (
    "fraglist-part",
    "icmp-delivered",
    "purge",
    "qdisc-reset",
    "local-ipc",
    "tap-clone",
    "not-for-us",
    "no-handler",
    "tcp-protocol",
    "drop",
)

_NO_REASON = "none"


class Explanation(NamedTuple):
    """What a reason means, and what to look at next."""

    meaning: str
    next_step: str


class DropClass(NamedTuple):
    """How normal a free is.

    :ivar hidden: not shown when normal frees are hidden.
    """

    name: str
    hidden: bool
    meaning: str


class Derived(NamedTuple):
    """A reason concluded from the function that freed the packet.

    :ivar reason: the likeliest one.
    :ivar also: other reasons that end in the same function.
    """

    reason: str
    also: Tuple[str, ...]


class ReasonNames:
    """Names of the running kernel's reasons.

    :param enum_names: gives the enumerators of a kernel enum as {value: name}, empty if the
        kernel or the module has no such enum.
    """

    def __init__(self, enum_names: Callable[[str], Mapping[int, str]]) -> None:
        self._names: Dict[int, str] = {}
        for row in _table("reasons")["enums"]:
            for code, name in enum_names(row["enum"]).items():
                found = _plain_name(name, row["prefixes"], row["not_names"])
                if found:
                    self._names[code] = row["subsystem"] + found

    def __bool__(self) -> bool:
        """Whether this kernel gives reasons."""
        return bool(self._names)

    def name(self, code: int) -> str:
        """Name of a reason's code, ``unknown(87)`` if it has none."""
        return self._names.get(code) or f"unknown({code})"

    def all(self) -> List[str]:
        """All names, sorted."""
        return sorted(self._names.values())

    def codes(self, pattern: str) -> FrozenSet[int]:
        """Codes of a reason or of a pattern such as ``openvswitch:*``.

        :raises ValueError: this kernel has no such reason.
        """
        wanted = pattern.lower()
        found = frozenset(code for code, name in self._names.items() if _matches(name, wanted))
        if not found:
            raise ValueError(f"this kernel has no drop reason '{pattern}'")
        return found


def explain(reason: str) -> Optional[Explanation]:
    """Meaning and next step of a reason; None if there is no text for it."""
    rows = _explanations()
    name = reason.lower()
    subsystem = name.partition(":")[0] + ":*"
    return rows.get(name) or rows.get(subsystem)


def free_functions() -> Tuple[str, ...]:
    """Names, or patterns that end in ``*``, of functions that free packets for somebody else."""
    return tuple(_table("places")["free"])


def place(functions: Sequence[str]) -> int:
    """Index of the frame that dropped the packet: the first that is neither tracer nor free.

    :param functions: names from the innermost frame outwards.
    :return: ``len(functions)`` if all are.
    """
    passed_over = _table("places")["free"] + _table("places")["tracer"]
    for index, function in enumerate(functions):
        if not _any_match(_bare(function), passed_over):
            return index
    return len(functions)


def classify(
    reason: Optional[str], function: Optional[str], facts: AbstractSet[str] = frozenset()
) -> DropClass:
    """The class of a free.

    :param reason: the kernel's own reason, None if it has none; not a derived one.
    :param function: the function that freed, see :func:`place`.
    :param facts: what is known of the packet, of :data:`FACTS`.
    """
    name = _own_reason(reason)
    bare = _bare(function or "")
    for row in _table("places")["classes"]:
        if any(_rule_holds(rule, name, bare, facts) for rule in row["rules"]):
            return DropClass(row["class"], row["hidden"], row["meaning"])
    return DropClass("drop", False, "a packet that somebody wanted to arrive is gone")


def derive(function: str, facts: AbstractSet[str] = frozenset()) -> Optional[Derived]:
    """The reason behind a free for which the kernel gives none.

    :param function: the function that freed, see :func:`place`.
    :param facts: what is known of the packet, of :data:`FACTS`.
    """
    bare = _bare(function)
    for row in _table("places")["derived"]:
        if _any_match(bare, row["functions"]):
            for case in row["cases"]:
                if _known(case.get("needs", ()), facts):
                    return Derived(case["reason"], tuple(case.get("also", ())))
    return None


def _own_reason(reason: Optional[str]) -> str:
    if reason is None or reason.lower() == "not_specified":
        return _NO_REASON
    return reason.lower()


def _rule_holds(
    rule: Mapping[str, List[str]], reason: str, function: str, facts: AbstractSet[str]
) -> bool:
    return (
        ("reasons" not in rule or _any_match(reason, rule["reasons"]))
        and ("functions" not in rule or _any_match(function, rule["functions"]))
        and _known(rule.get("needs", ()), facts)
        and facts.isdisjoint(rule.get("unless", ()))
    )


def _known(needs: Sequence[str], facts: AbstractSet[str]) -> bool:
    return all(need in facts for need in needs)


def _plain_name(name: str, prefixes: Sequence[str], not_names: Sequence[str]) -> Optional[str]:
    if _any_match(name, not_names) or any(name.endswith(end) for end in ("_MASK", "_MAX")):
        return None
    for prefix in prefixes:
        if name.startswith(prefix):
            return name[len(prefix) :].lower()
    return name.lower()


def _bare(function: str) -> str:
    """The name without what the compiler appends: ``.isra.0``, ``.constprop.0``, ``.cold``."""
    return function.partition(".")[0]


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _any_match(name: str, patterns: Sequence[str]) -> bool:
    return any(_matches(name, pattern) for pattern in patterns)


@lru_cache(maxsize=None)
def _explanations() -> Dict[str, Explanation]:
    rows: Dict[str, Explanation] = {}
    for row in _table("reasons")["explanations"]:
        text = Explanation(row["meaning"], row["next"])
        rows.update((name, text) for name in row["reasons"])
    return rows


@lru_cache(maxsize=None)
def _table(name: str) -> Any:
    # Neither is needed before the first drop, and together they cost 10 ms.
    import json
    from pathlib import Path

    path = Path(__file__).parent / "data" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))
