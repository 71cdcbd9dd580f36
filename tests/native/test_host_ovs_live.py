# SPDX-License-Identifier: GPL-2.0-only
"""Open vSwitch asked over its sockets: a database here, a datapath where the kernel has one."""

import shutil
import subprocess
import time

import pytest
from lab.caps import capabilities, why_not
from lab.netns import Namespace
from lab.topo import ovs_topo

from ntools.host import ovs
from ntools.host.devices import Devices
from ntools.host.guests import guest_of, seed_macs
from ntools.host.netns import open_netns
from ntools.host.uplink import discover

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


@pytest.fixture
def database(tmp_path):
    """ovsdb-server alone in a namespace: bridges can be described without a datapath."""
    if not shutil.which("ovsdb-server"):
        pytest.skip("ovsdb-server is not installed")
    socket = tmp_path / "db.sock"
    subprocess.run(["ovsdb-tool", "create", str(tmp_path / "conf.db"), SCHEMA], check=True)
    with Namespace("h") as ns:
        command = ["ovsdb-server", str(tmp_path / "conf.db"), f"--remote=punix:{socket}"]
        ns.popen([*command, "--no-chdir", "-vconsole:off", f"--unixctl={tmp_path}/db.ctl"])
        deadline = time.monotonic() + 10
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.02)

        def vsctl(*arguments):
            command = ["ovs-vsctl", f"--db=unix:{socket}", "--no-wait", "--timeout=10"]
            subprocess.run([*command, *arguments], check=True)

        vsctl("init")
        yield ns, tmp_path, vsctl


def shape(layout):
    return {
        bridge.name: {(port.name, port.type, port.peer) for port in bridge.ports}
        for bridge in layout.bridges
    }


def test_layout_from_the_database(database, monkeypatch):
    _, directory, vsctl = database
    monkeypatch.setenv("OVS_RUNDIR", str(directory))
    assert shape(ovs.read_layout()) == {}
    vsctl(
        *"-- add-br br-int -- add-port br-int vnet0 -- add-bond br-int bond0 eth0 eth1".split(),
        *"-- add-br br-ex -- set bridge br-ex datapath_type=netdev".split(),
        *"-- add-port br-int a -- set interface a type=patch options:peer=b".split(),
        *"-- add-port br-ex b -- set interface b type=patch options:peer=a".split(),
        *"-- set open_vswitch . other_config:hw-offload=true".split(),
    )
    layout = ovs.read_layout()
    assert shape(layout) == {
        "br-int": {
            ("br-int", "internal", None),
            ("vnet0", "", None),
            ("eth0", "", None),
            ("eth1", "", None),
            ("a", "patch", "b"),
        },
        "br-ex": {("br-ex", "internal", None), ("b", "patch", "a")},
    }
    assert {bridge.name: bridge.in_kernel for bridge in layout.bridges} == {
        "br-int": True,
        "br-ex": False,
    }
    assert layout.hw_offload
    assert layout.rundir == str(directory)
    home = layout.bridge_of("vnet0")
    assert [bridge.name for bridge in layout.connected(home)] == ["br-int", "br-ex"]


def test_found_by_the_process_in_its_namespace(database, monkeypatch):
    ns, _, vsctl = database
    monkeypatch.delenv("OVS_RUNDIR", raising=False)
    monkeypatch.setattr(ovs, "_DEFAULT_RUNDIR", "/nonexistent")
    vsctl("add-br", "br7")
    assert ovs.read_layout() is None
    with open_netns(ns.name):
        assert [bridge.name for bridge in ovs.read_layout().bridges] == ["br7"]


def test_a_silent_database_costs_one_timeout(tmp_path, monkeypatch):
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "db.sock"))
        listener.listen(1)
        monkeypatch.setenv("OVS_RUNDIR", str(tmp_path))
        monkeypatch.setattr(ovs, "_DEFAULT_RUNDIR", "/nonexistent")
        start = time.monotonic()
        assert ovs.read_layout(timeout_s=0.2) is None
        assert time.monotonic() - start < 2


def test_large_answer(database, monkeypatch):
    _, directory, vsctl = database
    monkeypatch.setenv("OVS_RUNDIR", str(directory))
    ports = [word for i in range(800) for word in f"-- add-port br0 vnet{i}".split()]
    vsctl("add-br", "br0", *ports)
    layout = ovs.read_layout(timeout_s=10)
    assert len(layout.bridge_of("vnet0").ports) == 801


def test_around_a_vm_on_a_kernel_datapath():
    for name in ("ovs", "veth", "tun"):
        if name not in capabilities():
            pytest.skip(f"{name}: {why_not(name)}")
    with ovs_topo(vms=2) as topo:
        found = Devices.snapshot(topo.h.path)
        tap = found.find("vnet0")
        with open_netns(topo.h.path):
            layout = ovs.read_layout()
            top = discover([tap], found)
        assert [d.name for d in top.vm] == ["vnet0"]
        assert {d.name for d in top.entry_ports} == {"phy0", "vnet1"}
        assert {d.name for d in top.host_ports} == {"br-int", "mgmt0"}
        assert top.bridge_kind == "openvswitch"
        without = discover([tap], found, read_layout=lambda: None)
        assert {d.name for d in without.entry_ports} == {"phy0", "vnet1"}
        assert topo.ping(count=1).received == 1
        deadline = time.monotonic() + 20
        while True:
            seeds = seed_macs(tap, found, guest_of(tap), layout)
            if seeds or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        assert [(seed.mac, seed.source) for seed in seeds] == [(topo.vm.mac, "ovs")]
