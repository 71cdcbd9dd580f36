# SPDX-License-Identifier: GPL-2.0-only
"""The two sides of a path, as a user names them."""

from __future__ import annotations

import pytest

from ntools.errors import UsageProblem
from ntools.host.devices import Device, Devices
from ntools.host.sides import Sides, locate


def device(name, ifindex, kind="physical", **more):
    return Device(name, ifindex, 1, kind, None, 1500, None, True, False, **more)


DEVICES = Devices(
    1,
    [
        device("eth0", 2, master=4), device("eth1", 3, master=4),
        device("bond0", 4, "bond", lower=(2, 3)),
        device("bond0.50", 5, "vlan", lower=(4,), vlan_id=50),
        device("br0", 6, "bridge"), device("mgmt0", 7, "ovs-internal"), device("vnet0", 8, "tap"),
    ],
)  # fmt: skip


def names(devices):
    return [one.name for one in devices]


def test_plain_devices():
    sides = locate("eth0", "vnet0", DEVICES)
    assert (names(sides.a), names(sides.b), sides.stack, sides.vlan_ids) == (
        ["eth0"], ["vnet0"], (), (),
    )  # fmt: skip


def test_bond_is_its_slaves_and_a_vlan_device_what_is_below():
    sides = locate("bond0.50", "vnet0", DEVICES)
    assert names(sides.a) == ["eth0", "eth1"]
    assert sides.vlan_ids == ((2, 50), (3, 50))


@pytest.mark.parametrize(
    "name, stack", [("br0", True), ("mgmt0", True), ("br0@wire", False), ("vnet0@stack", True)]
)
def test_end_of_a_device(name, stack):
    sides = locate(name, "eth0", DEVICES)
    assert names(sides.stack) == ([name.partition("@")[0]] if stack else [])


@pytest.mark.parametrize(
    "rx, tx, said",
    [
        ("eth0", "bond0", "'eth0' is on both sides"),
        ("eth9", "vnet0", "'eth9' not found"),
        (" , ", "vnet0", "--rx-iface"),
        ("eth0", "", "--tx-iface"),
    ],
)
def test_sides_that_are_none(rx, tx, said):
    with pytest.raises(UsageProblem, match=said):
        locate(rx, tx, DEVICES)


def test_kept_and_found_again():
    sides = locate("bond0.50,br0", "vnet0", DEVICES)
    assert Sides.from_fields(sides.fields()) == sides
