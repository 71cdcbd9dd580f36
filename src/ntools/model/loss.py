# SPDX-License-Identifier: GPL-2.0-only
"""Causes of loss: what each means, and which results stay exact in spite of it."""

from __future__ import annotations

from typing import Dict, Iterable, NamedTuple

__all__ = ["CAUSES", "Cause", "consequence", "from_symbol"]


class Cause(NamedTuple):
    """One cause of loss.

    :ivar meaning: what happened.
    :ivar spoils: ``list``: single events are missing, totals are exact; ``totals``: counts and
        histograms are too low; ``stacks``: only stacks are missing; ``detail``: rows were put
        together, their sum is exact; ``follow``: packets were not followed to their end.
    """

    meaning: str
    spoils: str


CAUSES: Dict[str, Cause] = {
    "ring_full": Cause("no room for an event in the ring buffer", "list"),
    "perf_lost": Cause("the kernel lost events of the perf buffer", "list"),
    "governor_dropped": Cause("events above the budget of the governor", "list"),
    "user_dropped": Cause("events that the command itself could not take in time", "list"),
    "map_full": Cause("no room for another key", "totals"),
    "hist_full": Cause("no room for another histogram", "totals"),
    "read_failed": Cause("kernel memory could not be read", "totals"),
    "unparsed": Cause("packets a filter could not judge, rejected", "totals"),
    "prog_missed": Cause("programs the kernel skipped because of recursion", "totals"),
    "flow_full": Cause("flows put into the row 'other'", "detail"),
    "group_full": Cause("no room for another row; counted without it", "detail"),
    "stack_failed": Cause("stacks that could not be taken", "stacks"),
    "stack_full": Cause("no room for another stack", "stacks"),
    "mac_full": Cause("no room for another address of a guest", "totals"),
    "alias_full": Cause("no room to follow packets into a new buffer", "follow"),
    "pair_timeout": Cause("second halves of a pair that did not come in time", "follow"),
    "evicted": Cause("oldest entries that had to make room", "follow"),
}

_CONSEQUENCES: Dict[str, str] = {
    "totals": "totals are lower bounds",
    "list": "the list is not complete",
    "detail": "some rows are missing or put together",
    "follow": "some packets were not followed to their end",
    "stacks": "some stacks are missing",
}


def from_symbol(symbol: str, prefix: str = "NT_LOSS_") -> str:
    """Name of a cause from the enum member: ``NT_LOSS_RING_FULL`` is ``ring_full``."""
    return (symbol[len(prefix) :] if symbol.startswith(prefix) else symbol).lower()


def consequence(causes: Iterable[str]) -> str:
    """What the losses mean for the results; unknown causes are taken for the worst."""
    spoiled = {CAUSES[cause].spoils if cause in CAUSES else "totals" for cause in causes}
    parts = [text for kind, text in _CONSEQUENCES.items() if kind in spoiled]
    if spoiled and "totals" not in spoiled:
        parts.insert(0, "totals are exact")
    return ", ".join(parts)
