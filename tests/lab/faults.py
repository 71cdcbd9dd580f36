# SPDX-License-Identifier: GPL-2.0-only
"""Faults with an independently known effect: delays, queue drops, filter drops."""

from __future__ import annotations

import itertools
from typing import Any, Dict, Optional

from lab.netns import Namespace

__all__ = ["NftDrop", "Qdisc", "qdisc_stats"]

_table_number = itertools.count(1)


def qdisc_stats(ns: Namespace, dev: str, kind: Optional[str] = None) -> Dict[str, int]:
    """packets, bytes, drops, overlimits, requeues, backlog, qlen of a qdisc of the device."""
    for entry in ns.json(["tc", "-s", "-j", "qdisc", "show", "dev", dev]):
        if entry and (kind is None or entry.get("kind") == kind):
            return {key: value for key, value in entry.items() if isinstance(value, int)}
    raise LookupError(f"no qdisc '{kind}' on '{dev}'")


class Qdisc:
    """A root qdisc on one device; :meth:`remove` brings the default back."""

    def __init__(self, ns: Namespace, dev: str, text: str) -> None:
        self.ns, self.dev, self.kind = ns, dev, text.split()[0]
        ns.run(["tc", "qdisc", "replace", "dev", dev, "root", "handle", "9:", *text.split()])
        self._there = True

    def stats(self) -> Dict[str, int]:
        """Its counters; ``drops`` is what it threw away."""
        return qdisc_stats(self.ns, self.dev, self.kind)

    def remove(self) -> None:
        """Idempotent; a device that is gone took its qdisc along."""
        if self._there:
            self._there = False
            self.ns.run(["tc", "qdisc", "del", "dev", self.dev, "root"], check=False)


class NftDrop:
    """Drops every Nth matching packet; the rules count what came and what was dropped.

    :param hook: ``ingress:<dev>`` (before bridge and OVS), ``bridge-forward``, ``bridge-input``
        ..., or ``input``, ``output``, ``forward``, ``prerouting``, ``postrouting`` of the stack.
    :param match: nft expression, e.g. ``icmp type echo-request``.
    """

    def __init__(self, ns: Namespace, every: int, hook: str, match: str = "") -> None:
        self.ns = ns
        if hook.startswith("ingress:"):
            family = "netdev"
            chain = f"type filter hook ingress device {hook.split(':', 1)[1]} priority 0"
        elif hook.startswith("bridge-"):
            family, chain = "bridge", f"type filter hook {hook[7:]} priority 0"
        else:
            family, chain = "inet", f"type filter hook {hook} priority 0"
        self.family, self.table = family, f"ntlab{next(_table_number)}"
        nth = "" if every == 1 else f"numgen inc mod {every} == {every - 1}"
        self.ns.run(
            ["nft", "-f", "-"],
            (
                f"table {family} {self.table} {{\n"
                f"  counter seen {{}}\n  counter dropped {{}}\n"
                f"  chain c {{\n    {chain}; policy accept;\n"
                f"    {match} counter name seen\n"
                f"    {match} {nth} counter name dropped drop\n  }}\n}}\n"
            ),
        )
        self._there = True

    def _counters(self, what: str = "packets") -> Dict[str, int]:
        command = ["nft", "-j", "list", "counters", "table", self.family, self.table]
        entries: Any = self.ns.json(command)["nftables"]
        found = [entry["counter"] for entry in entries if "counter" in entry]
        return {one["name"]: one[what] for one in found}

    def counter(self) -> int:
        """Packets dropped."""
        return self._counters()["dropped"]

    def octets(self) -> int:
        """Bytes dropped, with the header of IP."""
        return self._counters("bytes")["dropped"]

    def seen(self) -> int:
        """Packets that matched."""
        return self._counters()["seen"]

    def remove(self) -> None:
        """Idempotent."""
        if self._there:
            self._there = False
            self.ns.run(["nft", "delete", "table", self.family, self.table], check=False)
