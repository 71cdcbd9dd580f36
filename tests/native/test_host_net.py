# SPDX-License-Identifier: GPL-2.0-only
"""Devices, namespaces and what surrounds a VM, on the running kernel."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab.caps import capabilities, why_not
from lab.netns import Namespace
from lab.topo import bridge_topo

from ntools.errors import UsageProblem
from ntools.host import netns, rtnl
from ntools.host.devices import DeviceNames, Devices, all_devices, from_links
from ntools.host.guests import guest_devices, guest_of, list_guests, seed_macs, vhost_tids
from ntools.host.uplink import discover, expand

# Costs are not judged there.
EMULATED = "TCG" in Path("/proc/cpuinfo").read_text()


def need(*names):
    for name in names:
        if name not in capabilities():
            pytest.skip(f"{name}: {why_not(name)}")


def names(devices):
    return [device.name for device in devices]


@pytest.fixture
def ns():
    with Namespace("h") as one:
        yield one


def test_same_devices_as_ip(ns):
    """Every name, index, MTU, address, master and qdisc that iproute2 prints."""
    need("veth", "bridge", "tun")
    ns.ip(
        "link add br0 mtu 1400 type bridge",
        "link add v0 type veth peer name v1",
        "link set v0 master br0 up",
        "link property add dev v0 altname a-very-long-name-for-v0",
        "tuntap add vnet0 mode tap",
        "tuntap add tun0 mode tun",
    )
    told = {link["ifname"]: link for link in ns.json(["ip", "-d", "-j", "link"])}
    found = Devices.snapshot(ns.path)
    assert found.netns_inum == ns.inode
    assert set(names(found)) == set(told)
    for device in found:
        link = told[device.name]
        assert device.ifindex == link["ifindex"]
        assert device.mtu == link["mtu"]
        assert device.qdisc == link["qdisc"]
        assert device.up == ("UP" in link["flags"])
        if device.kind != "tun":
            assert device.mac == link["address"]
        master = found.by_index(device.master)
        assert (master.name if master else None) == link.get("master")
    assert {d.name: d.kind for d in found} == {
        "lo": "loopback",
        "br0": "bridge",
        "v0": "veth",
        "v1": "veth",
        "vnet0": "tap",
        "tun0": "tun",
    }
    assert found.find("v0").peer == found.find("v1").ifindex
    assert found.find("a-very-long-name-for-v0").name == "v0"
    assert found.find("br0").lower == (found.find("v0").ifindex,)


def test_veth_across_namespaces(ns):
    need("veth")
    with Namespace("e") as other:
        ns.ip(f"link add phy0 type veth peer name wire0 netns {other.name}")
        here, there = Devices.snapshot(ns.name), Devices.snapshot(other.name)
        assert here.find("phy0").peer is None
        assert there.find("wire0").peer is None


def test_bond_and_vlan(ns):
    need("bond", "vlan", "dummy", "bridge", "tun")
    ns.ip(
        "link add d0 type dummy",
        "link add d1 type dummy",
        "link add bond0 type bond mode active-backup",
        "link set d0 master bond0",
        "link set d1 master bond0",
        "link add link bond0 name bond0.100 type vlan id 100",
        "link add br0 type bridge",
        "link set bond0.100 master br0",
        "tuntap add vnet0 mode tap",
        "link set vnet0 master br0",
    )
    found = Devices.snapshot(ns.path)
    leaves = expand(found.find("bond0.100"), found)
    assert [(device.name, vlan) for device, vlan in leaves] == [("d0", 100), ("d1", 100)]
    top = discover([found.find("vnet0")], found)
    assert names(top.others) == ["d0", "d1"]
    assert sorted(names(top.pass_through)) == ["bond0", "bond0.100", "br0"]
    assert {vlan for _, vlan in top.vlan_ids} == {100}


def test_macvtap(ns):
    ns.ip("link add phy0 type veth peer name phy1")
    if ns.run(["ip", "link", "add", "link", "phy0", "name", "mt0", "type", "macvtap"],
              check=False).returncode:  # fmt: skip
        pytest.skip("macvtap: the kernel has no such device")
    found = Devices.snapshot(ns.path)
    assert found.find("mt0").kind == "macvtap"
    assert found.find("mt0").lower == (found.find("phy0").ifindex,)


def test_hardware_of_this_machine():
    expected = {path.parent.name for path in Path("/sys/class/net").glob("*/device")}
    if not expected:
        pytest.skip("no device with hardware here")
    assert {d.name for d in Devices.snapshot() if d.has_bus_device} == expected
    # The same by the ways left on kernels that do not tell the parent.
    links = [_without_parent(link) for link in rtnl.read_links()]
    for sysfs in (True, False):
        found = from_links(links, 1, sysfs)
        assert {d.name for d in found if d.has_bus_device} == expected


def _without_parent(link):
    return rtnl.Link(**{**link.__dict__, "has_parent": False})


def test_many_links_are_cheap(ns):
    need("dummy")
    ns.ip([f"link add d{i} type dummy" for i in range(300)])
    Devices.snapshot(ns.path)
    start = time.process_time()
    found = Devices.snapshot(ns.path)
    spent = time.process_time() - start
    assert len(found) == 301
    assert spent < 0.15 or EMULATED, f"{spent * 1000:.0f} ms for 301 links"


def test_find_across_namespaces(ns):
    need("veth")
    ns.ip("link add vnet8 type veth peer name other")
    devices = Devices.snapshot()
    found = devices.find(f"{ns.name}/vnet8")
    assert found.netns_inum == ns.inode != devices.netns_inum
    assert devices.find_list(f"{ns.name}/vnet8,{ns.path}/vnet8") == [found]
    assert devices.of(found).find("other").peer == found.ifindex
    with pytest.raises(UsageProblem) as caught:
        devices.find(f"{ns.name}/vnet9")
    assert str(caught.value) == (
        f"device 'vnet9' not found in network namespace '{ns.name}'. "
        "Did you mean 'vnet8'? See 'ip link'."
    )


def test_visit_and_return(ns):
    before = netns.current_netns()
    with netns.open_netns(ns.name) as inum:
        assert inum == ns.inode == netns.current_netns()
        assert names(Devices.snapshot()) == ["lo"]
    with pytest.raises(RuntimeError), netns.open_netns(ns.path):
        raise RuntimeError
    assert netns.current_netns() == before
    opened = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with netns.open_netns(ns.name):
            pass
    assert len(os.listdir("/proc/self/fd")) == opened


def test_enter_what_is_no_namespace(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageProblem, match="cannot enter network namespace"):
        Devices.snapshot(str(tmp_path / "file"))


def test_namespaces_by_name_and_by_process(ns):
    assert netns.named_netns()[ns.name] == ns.inode
    found = {space.inum: space for space in netns.list_netns()}
    assert found[ns.inode].name == ns.name
    assert found[netns.current_netns()] == netns.list_netns()[0]
    assert netns.netns_path(ns.inode) == netns.netns_path(ns.name)
    command = ["unshare", "--net", sys.executable, "-c",
               "import sys; print('in', flush=True); sys.stdin.read()"]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"in\n"
            inum = netns.process_netns(process.pid)
            held = {space.inum: space for space in netns.list_netns()}[inum]
            assert (held.name, held.pid) == (None, process.pid)
            assert DeviceNames().name(inum, 1) == "lo"
            assert Devices.snapshot(str(process.pid)).netns_inum == inum
            assert {1, netns.current_netns()} <= {
                number for d in all_devices() for number in (d.ifindex, d.netns_inum)
            }
            assert (inum, "lo") in {(d.netns_inum, d.name) for d in all_devices()}
        finally:
            process.stdin.close()
    assert netns.process_netns(process.pid) is None


def test_names_of_new_devices(ns):
    need("dummy")
    ns.ip("link add first type dummy")
    index = Devices.snapshot(ns.path).find("first").ifindex
    known = DeviceNames()
    assert known.name(ns.inode, index) == "first"
    ns.ip("link add second type dummy")
    deadline = time.monotonic() + 5
    while known.name(ns.inode, index + 1) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert known.name(ns.inode, index + 1) == "second"
    assert known.name(1, 1) is None


def test_around_a_vm():
    need("veth", "bridge", "tun")
    with bridge_topo(vms=2, start_vms=False) as topo:
        found = Devices.snapshot(topo.h.path)
        top = discover([found.find("vnet0")], found)
        assert names(top.vm) == ["vnet0"]
        assert set(names(top.others)) == {"phy0", "vnet1"}
        assert set(names(top.entry_ports)) == {"phy0", "vnet1"}
        assert names(top.host_ports) == ["br0"]
        assert names(top.pass_through) == ["br0"]
        assert top.bridge_kind == "bridge"
        assert top.warnings == (
            "no uplink found and no device with hardware in this network namespace",
        )
        chosen = discover([found.find("vnet0")], found, [found.find("phy0")])
        assert names(chosen.uplinks) == ["phy0"]
        assert names(chosen.others) == ["vnet1"]
        assert chosen.warnings == ()


def test_who_holds_the_tap_and_its_address():
    need("veth", "bridge", "tun")
    with bridge_topo() as topo:
        found = Devices.snapshot(topo.h.path)
        tap = found.find("vnet0")
        guest = guest_of(tap)
        assert guest is not None and guest.pid == topo.vm.pid
        assert guest.netns_inum == topo.h.inode
        assert [held.interface for held in guest.taps] == ["vnet0"]
        assert guest_devices(guest, found) == [tap]
        assert guest.pid in {one.pid for one in list_guests()}
        assert topo.ping(count=1).received == 1
        seeds = seed_macs(tap, found, guest)
        assert [(seed.mac, seed.source) for seed in seeds] == [(topo.vm.mac, "fdb")]
        assert vhost_tids(guest.pid) == ()
        assert guest_of(found.find("phy0")) is None


def test_vhost_threads():
    need("veth", "bridge", "tun", "vhost_net")
    with bridge_topo(vm_options={"vhost": True}) as topo:
        tids = vhost_tids(topo.vm.pid)
        assert len(tids) >= 1
        for tid in tids:
            with open(f"/proc/{tid}/comm") as stream:
                assert stream.read() == f"vhost-{topo.vm.pid}\n"


def test_import_stays_light():
    """CPU time and memory of what a command needs to resolve its devices."""
    program = (
        "import time\n"
        "before = time.process_time()\n"
        "from ntools.host.devices import Devices\n"
        "from ntools.host.uplink import discover\n"
        "len(Devices.snapshot())\n"
        "import sys\n"
        "print(time.process_time() - before, 'pyroute2' in sys.modules, 'hashlib' in sys.modules)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert float(output[0]) < 0.15 or EMULATED
    assert output[1:3] == ["False", "False"]
    assert int(output[3]) < 32 << 10  # KiB
