# SPDX-License-Identifier: GPL-2.0-only
"""Two hosts with a network between them.

::

    A -- H1, host A -- M, the network -- H2, host B -- B

Each is a namespace that forwards; ``in`` devices point to A, ``out`` devices to B.
"""

from __future__ import annotations

import contextlib
from typing import Dict, Iterator

from lab.netns import Namespace
from lab.traffic import ping

__all__ = ["A_IP", "B_IP", "NAMES", "chain"]

NAMES = ("a", "h1", "m", "h2", "b")
A_IP, B_IP = "192.168.100.1", "192.168.103.2"


@contextlib.contextmanager
def chain() -> Iterator[Dict[str, Namespace]]:
    """The five by name; neighbours are known, everybody forwards."""
    with contextlib.ExitStack() as stack:
        found = {name: stack.enter_context(Namespace(name)) for name in NAMES}
        for number, (left, right) in enumerate(zip(NAMES, NAMES[1:])):
            near, far = found[left], found[right]
            near.ip(f"link add out type veth peer name in netns {far.name}",
                    f"addr add 192.168.{100 + number}.1/24 dev out", "link set out up")  # fmt: skip
            far.ip(f"addr add 192.168.{100 + number}.2/24 dev in", "link set in up")
        for number, name in enumerate(NAMES):
            ns = found[name]
            ns.sysctl("net.ipv4.ip_forward", 1)
            for subnet in range(4):
                if subnet > number:
                    ns.ip(f"route add 192.168.{100 + subnet}.0/24 via 192.168.{100 + number}.2")
                elif subnet < number - 1:
                    ns.ip(f"route add 192.168.{100 + subnet}.0/24 via 192.168.{99 + number}.1")
        ping(found["a"], B_IP, 1, 0.1, 56, 5)
        yield found
