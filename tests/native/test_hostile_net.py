# SPDX-License-Identifier: GPL-2.0-only
"""Hostile neighbours on the running kernel: forged netlink answers, names of any bytes."""

import os
import socket
import struct

import pytest
from lab.hostile import DEVICES
from lab.netns import Namespace

from ntools.host import rtnl
from ntools.host.devices import Devices


@pytest.fixture
def ns():
    with Namespace("h") as one:
        yield one


def message(kind, sequence, body, flags=2):
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


PLAIN = socket.socket


class Forged(PLAIN):
    """A netlink socket that finds answers of a neighbour before those of the kernel."""

    sent = 0

    def __init__(self, *args):
        super().__init__(*args)
        self.bind((0, 0))
        with PLAIN(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as forger:
            for sequence in range(1, 6):
                for body in (b"", b"\x01", struct.pack("=BxHiII", 0, 1, 99, 1, 0)):
                    for kind in (16, 3, 2):
                        data = message(kind, sequence, body)
                        Forged.sent += forger.sendto(data, self.getsockname()) == len(data)


def test_forged_answers(ns, monkeypatch):
    """Root of a namespace may send to the port of whoever looks into it."""
    ns.ip("link add v0 type veth peer name v1")
    with ns.entered():
        honest = rtnl.read_links()
        monkeypatch.setattr(rtnl.socket, "socket", Forged)
        found = rtnl.read_links()
    assert Forged.sent == 45
    assert found == honest and {link.name for link in found} == {"lo", "v0", "v1"}


def test_devices_of_any_name(ns):
    """What the kernel takes as a name is found by its bytes, in lists and in /sys."""
    for number, name in enumerate(DEVICES):
        ns.run(["ip", "link", "add", os.fsdecode(name), "type", "veth", "peer", f"p{number}"])
    found = Devices.snapshot(ns.path)
    for number, name in enumerate(DEVICES):
        typed = os.fsdecode(name)
        (device,) = found.find_list(typed)
        assert (device.name, device.kind) == (typed, "veth")
        assert device.peer == found.find(f"p{number}").ifindex
    assert len(found) == 2 * len(DEVICES) + 1
