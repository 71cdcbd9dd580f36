# SPDX-License-Identifier: GPL-2.0-only
"""A host between two others, with network stacks at both ends.

::

    namespace A                 namespace H, "the host"             namespace B
    ea 192.168.70.2 ==veth== ha 192.168.70.1 | hb 192.168.80.1 ==veth== eb 192.168.80.2
       fd70::2                  fd70::1        fd80::1                  fd80::2
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Iterator, List

from lab.netns import Namespace
from lab.traffic import ping

__all__ = ["A_IP", "A_IP6", "B_IP", "B_IP6", "H_IP", "Routed", "Stream", "routed", "stream"]

A_IP, B_IP = "192.168.70.2", "192.168.80.2"
A_IP6, B_IP6 = "fd70::2", "fd80::2"
#: Of H, as B sees it.
H_IP = "192.168.80.1"
_TCP_INFO, _TOTAL_RETRANS_AT = 11, 100


@dataclass
class Stream:
    """A stream of TCP that has ended.

    :ivar received: bytes that arrived.
    :ivar retransmitted: segments the sender sent again.
    """

    received: int
    retransmitted: int


@dataclass
class Routed:
    """The three namespaces."""

    a: Namespace
    h: Namespace
    b: Namespace

    def stream(self, size: int, port: int = 7000, limit_s: float = 60, dst: str = B_IP) -> Stream:
        """Send so many bytes from A to B."""
        return stream(self.a, self.b, dst, port, size, limit_s)


def stream(
    src: Namespace, dst: Namespace, address: str, port: int, size: int, limit_s: float = 60
) -> Stream:
    """Send so many bytes over a connection from one namespace to an address of another."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with dst.entered():
        listener = socket.create_server((address, port), family=family)
    with src.entered():
        client = socket.create_connection((address, port), limit_s)
    server, _ = listener.accept()
    got: List[int] = []
    with contextlib.closing(listener), client, server:
        server.settimeout(limit_s)
        reader = threading.Thread(target=_read, args=(server, got))
        reader.start()
        client.sendall(bytes(size))
        client.shutdown(socket.SHUT_WR)
        reader.join()
        info = client.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
    return Stream(sum(got), struct.unpack_from("<I", info, _TOTAL_RETRANS_AT)[0])


def _read(server: socket.socket, got: List[int]) -> None:
    while data := server.recv(1 << 20):
        got.append(len(data))


@contextlib.contextmanager
def routed(ipv6: bool = False) -> Iterator[Routed]:
    """The three, their neighbours known, H forwarding."""
    with Namespace("a", ipv6) as a, Namespace("h", ipv6) as h, Namespace("b", ipv6) as b:
        for ns, dev, peer, own, own6 in (
            (a, "ea", "ha", A_IP, A_IP6), (b, "eb", "hb", B_IP, B_IP6),
        ):  # fmt: skip
            gateway = own.rpartition(".")[0] + ".1"
            gateway6 = own6[:-1] + "1"
            h.ip(
                f"link add {peer} type veth peer name {dev} netns {ns.name}",
                f"addr add {gateway}/24 dev {peer}",
                f"link set {peer} up",
            )
            ns.ip(
                f"addr add {own}/24 dev {dev}",
                f"link set {dev} up",
                f"route add default via {gateway}",
            )
            if ipv6:
                for place, name, address in ((h, peer, gateway6), (ns, dev, own6)):
                    place.sysctl(f"net.ipv6.conf.{name}.disable_ipv6", 0)
                    place.ip(f"addr add {address}/64 dev {name} nodad")
                ns.run(["ip", "-6", "route", "add", "default", "via", gateway6])
        h.sysctl("net.ipv4.ip_forward", 1)
        ping(a, B_IP, 1, 0.1, 56, 5)
        if ipv6:
            h.sysctl("net.ipv6.conf.all.forwarding", 1)
            ping(a, B_IP6, 1, 0.1, 56, 10)
        yield Routed(a, h, b)
