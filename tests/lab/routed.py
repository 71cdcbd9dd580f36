# SPDX-License-Identifier: GPL-2.0-only
"""A host between two others, with network stacks at both ends.

::

    namespace A                 namespace H, "the host"             namespace B
    ea 192.168.70.2 ==veth== ha 192.168.70.1 | hb 192.168.80.1 ==veth== eb 192.168.80.2
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

__all__ = ["A_IP", "B_IP", "H_IP", "Routed", "Stream", "routed"]

A_IP, B_IP = "192.168.70.2", "192.168.80.2"
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

    def stream(self, size: int, port: int = 7000, limit_s: float = 60) -> Stream:
        """Send so many bytes from A to B."""
        with self.b.entered():
            listener = socket.create_server((B_IP, port))
        with self.a.entered():
            client = socket.create_connection((B_IP, port), limit_s)
        server, _ = listener.accept()
        got: List[int] = []
        with contextlib.closing(listener), client, server:
            server.settimeout(limit_s)
            reader = threading.Thread(target=self._read, args=(server, got))
            reader.start()
            client.sendall(bytes(size))
            client.shutdown(socket.SHUT_WR)
            reader.join()
            info = client.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
        return Stream(sum(got), struct.unpack_from("<I", info, _TOTAL_RETRANS_AT)[0])

    @staticmethod
    def _read(server: socket.socket, got: List[int]) -> None:
        while data := server.recv(1 << 20):
            got.append(len(data))


@contextlib.contextmanager
def routed() -> Iterator[Routed]:
    """The three, their neighbours known, H forwarding."""
    with Namespace("a") as a, Namespace("h") as h, Namespace("b") as b:
        for ns, dev, peer, own in ((a, "ea", "ha", A_IP), (b, "eb", "hb", B_IP)):
            gateway = own.rpartition(".")[0] + ".1"
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
        h.sysctl("net.ipv4.ip_forward", 1)
        ping(a, B_IP, 1, 0.1, 56, 5)
        yield Routed(a, h, b)
