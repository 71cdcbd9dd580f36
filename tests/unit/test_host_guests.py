# SPDX-License-Identifier: GPL-2.0-only
"""Names and addresses of guests from command lines; choices among processes."""

import pytest

from ntools.errors import UsageProblem
from ntools.host import guests as module
from ntools.host.devices import Device, Devices
from ntools.host.guests import Guest, MacSeed, Tap, find_guest, guest_devices, seed_macs
from ntools.host.ovs import OvsBridge, OvsLayout, OvsPort
from ntools.host.rtnl import FdbEntry

UUID = "0c1b2d3e-1111-2222-3333-444455556666"


def device(name="vnet0", ifindex=5, mac=None, master=None, kind="tap"):
    return Device(name, ifindex, 1, kind, mac, 1500, None, True, False, master)


def test_libvirt_command_line():
    line = module._command_line(
        [
            "/usr/bin/qemu-system-x86_64", "-name", "guest=web,,1,debug-threads=on",
            "-uuid", UUID,
            "-netdev", "tap,fd=33,id=hostnet0,vhost=on,vhostfd=35",
            "-device", "virtio-net-pci,netdev=hostnet0,id=net0,mac=52:54:00:AA:bb:01,bus=pci.1",
            "-netdev", "tap,fds=36:37,id=hostnet1,vhost=on,vhostfds=38:39",
            "-device", "virtio-net-pci,mq=on,netdev=hostnet1,id=net1,mac=52:54:00:aa:bb:02",
        ]
    )  # fmt: skip
    assert (line.name, line.uuid) == ("web,1", UUID)
    assert line.macs == ("52:54:00:aa:bb:01", "52:54:00:aa:bb:02")
    assert line.mac_of_fd == {
        33: "52:54:00:aa:bb:01",
        36: "52:54:00:aa:bb:02",
        37: "52:54:00:aa:bb:02",
    }


def test_json_command_line():
    line = module._command_line(
        [
            "qemu-kvm", "-name", "guest=db,debug-threads=on",
            "-netdev", '{"type":"tap","fd":"29","vhost":true,"vhostfd":"31","id":"hostnet0"}',
            "-device", '{"driver":"virtio-net-pci","netdev":"hostnet0","mac":"52:54:00:00:00:09"}',
            "-device", '{"broken',
        ]
    )  # fmt: skip
    assert line.name == "db"
    assert line.mac_of_fd == {29: "52:54:00:00:00:09"}


def test_command_line_by_hand():
    line = module._command_line(
        [
            "qemu", "-name", "plain", "-nic", "tap,ifname=tap0,script=no,mac=52:54:00:00:00:0a",
            "-netdev", "tap,id=n1,ifname=tap1", "-device", "e1000,netdev=n1,mac=52:54:00:00:00:0b",
            "--uuid", UUID, "-drive", "file=mac=no", "-device", "virtio-rng-pci",
        ]
    )  # fmt: skip
    assert (line.name, line.uuid) == ("plain", UUID)
    assert line.mac_of_interface == {"tap0": "52:54:00:00:00:0a", "tap1": "52:54:00:00:00:0b"}
    assert line.mac_of_fd == {}


def test_other_programs():
    line = module._command_line(["cloud-hypervisor", "--api-socket", "/run/ch.sock"])
    assert (line.name, line.uuid, line.macs) == (None, None, ())


def guest_from(monkeypatch, arguments, held):
    monkeypatch.setattr(module, "_held_taps", lambda pid: held)
    monkeypatch.setattr(module, "_arguments", lambda pid: arguments)
    monkeypatch.setattr(module, "_comm", lambda tid, pid=None: "vmm")
    monkeypatch.setattr(module, "process_netns", lambda pid: 1)
    return next(module._guest(77))


def test_addresses_of_taps(monkeypatch):
    card = ["-netdev", "tap,helper=x,id=a", "-device", "virtio-net-pci,netdev=a,mac=52:54:00:0:0:1"]
    # One tap and one card, nothing that connects them but their being alone.
    guest = guest_from(monkeypatch, ["qemu", *card], {("tap3", None): [9]})
    assert guest == Guest(77, "vmm", None, 1, (Tap("tap3", None, (9,), "52:54:00:00:00:01"),))
    two = {("tap3", None): [9], ("tap4", None): [10]}
    guest = guest_from(monkeypatch, ["qemu", *card], two)
    assert [tap.mac for tap in guest.taps] == [None, None]
    guest = guest_from(monkeypatch, ["qemu"], {(None, 17): [4, 5]})
    assert guest.taps == (Tap(None, 17, (4, 5), None),)
    assert guest.taps[0].is_for(device("macvtap0", 17))
    assert not guest.taps[0].is_for(device("macvtap0", 18))


@pytest.fixture
def known(monkeypatch):
    guests = [
        Guest(10, "web", UUID, 1, (Tap("vnet0", None, (3,)),)),
        Guest(11, "db", None, 1, ()),
        Guest(12, "db", None, 1, ()),
    ]
    monkeypatch.setattr(module, "list_guests", lambda: guests)
    return guests


def test_find_guest(known):
    assert find_guest("web").pid == 10
    assert find_guest("12").pid == 12
    assert find_guest(UUID.upper()).pid == 10
    with pytest.raises(UsageProblem) as caught:
        find_guest("db")
    assert str(caught.value) == "VM 'db' is not unique: processes 11, 12. Give the process id."
    with pytest.raises(UsageProblem) as caught:
        find_guest("wbe")
    assert str(caught.value) == "VM 'wbe' not found. Known: db, web."
    with pytest.raises(UsageProblem, match="VM '99' not found"):
        find_guest("99")


def test_no_guest_at_all(monkeypatch):
    monkeypatch.setattr(module, "list_guests", list)
    with pytest.raises(UsageProblem, match="No process holds a tap"):
        find_guest("web")


def test_guest_devices(known):
    devices = Devices(1, [device("vnet0", 5), device("vnet1", 6)])
    assert guest_devices(known[0], devices) == [device("vnet0", 5)]
    with pytest.raises(UsageProblem, match="process 11. has no tap in this network namespace"):
        guest_devices(known[1], devices)


def test_seeds_from_bridge_and_qemu(monkeypatch):
    bridge = device("br0", 2, kind="bridge")
    tap = device(mac="fe:54:00:00:00:01", master=2)
    entries = [
        FdbEntry(5, "fe:54:00:00:00:01", True),
        FdbEntry(5, "52:54:00:00:00:01", False),
        FdbEntry(5, "52:54:00:00:00:02", False),
    ]
    monkeypatch.setattr(module, "read_fdb", lambda master, port: entries)
    guest = Guest(1, "web", None, 1, (Tap("vnet0", None, (3,), "52:54:00:00:00:01"),))
    assert seed_macs(tap, Devices(1, [bridge, tap]), guest) == [
        MacSeed("52:54:00:00:00:01", "fdb"),
        MacSeed("52:54:00:00:00:02", "fdb"),
    ]
    del entries[1:]
    assert seed_macs(tap, Devices(1, [bridge, tap]), guest) == [
        MacSeed("52:54:00:00:00:01", "qemu")
    ]


def test_seeds_from_the_taps_own_address():
    def seeds(mac):
        tap = device(mac=mac)
        return seed_macs(tap, Devices(1, [tap]))

    assert seeds("fe:54:00:12:34:56") == [MacSeed("52:54:00:12:34:56", "tap", exact=False)]
    assert seeds("fe:16:3e:12:34:56") == [MacSeed("fa:16:3e:12:34:56", "tap", exact=False)]
    assert seeds("fe:aa:bb:12:34:56") == [MacSeed("fe:aa:bb:12:34:56", "tap", exact=False)]
    assert seeds("ae:54:00:12:34:56") == []
    assert seeds(None) == []


def test_seeds_from_ovs(monkeypatch):
    monkeypatch.setattr(module._ovs, "fdb_macs", lambda layout, name: ["52:54:00:00:00:07"])
    layout = OvsLayout((OvsBridge("br-int", True, (OvsPort("vnet0", "", None, 1),)),))
    tap = device(mac="fe:54:00:12:34:56", master=2)
    system = device("ovs-system", 2, kind="ovs-system")
    found = seed_macs(tap, Devices(1, [system, tap]), None, layout)
    assert found == [MacSeed("52:54:00:00:00:07", "ovs")]
