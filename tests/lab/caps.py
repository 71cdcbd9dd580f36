# SPDX-License-Identifier: GPL-2.0-only
"""What the running kernel can do, found by trying."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import platform
import shutil
import struct
from pathlib import Path
from typing import Callable, Dict, FrozenSet, List, Tuple

from lab import bpfsys
from lab.netns import CommandFailed, Namespace, call

__all__ = ["capabilities", "link_types", "why_not"]

# tun and vhost_net first: without udev their device nodes appear only with the module.
_MODULES = ("tun", "vhost_net", "openvswitch", "bridge", "8021q", "bonding")
_TUNSETIFF, _KVM_GET_API_VERSION, _VHOST_SET_OWNER = 0x400454CA, 0xAE00, 0xAF01
_missing: Dict[str, str] = {}

# Lines for one scratch namespace; the last line of each is the one that counts.
_LINKS: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
    ("veth", ("ip link add ntv0 type veth peer name ntv1",)),
    ("bridge", ("ip link add ntb0 type bridge",)),
    ("vlan", ("ip link add link ntv0 name ntv0.5 type vlan id 5",)),
    ("bond", ("ip link add nto0 type bond mode active-backup",)),
    ("dummy", ("ip link add ntd0 type dummy",)),
    ("vxlan", ("ip link add ntx0 type vxlan id 5 dstport 4789 dev ntv0",)),
    ("geneve", ("ip link add ntg0 type geneve id 5 remote 10.9.0.9",)),
    ("netem", ("tc qdisc add dev ntv0 root netem delay 1ms",)),
    ("tbf", ("tc qdisc replace dev ntv0 root tbf rate 1mbit burst 2k limit 4k",)),
    ("fq_codel", ("tc qdisc replace dev ntv0 root fq_codel",)),
    ("clsact", ("tc qdisc add dev ntv0 clsact",)),
    (
        "nft",
        (
            "nft add table inet ntcheck",
            "nft add chain inet ntcheck c { type filter hook input priority 0; }",
            "nft add rule inet ntcheck c numgen inc mod 3 == 2 counter drop",
        ),
    ),
    (
        "nft_netdev",
        (
            "nft add table netdev ntcheck",
            "nft add chain netdev ntcheck c { type filter hook ingress device ntv0 priority 0; }",
        ),
    ),
    (
        "nft_bridge",
        (
            "nft add table bridge ntcheck",
            "nft add chain bridge ntcheck c { type filter hook forward priority 0; }",
        ),
    ),
    (
        "nft_nat",
        (
            "nft add table ip ntcheck3",
            "nft add chain ip ntcheck3 c { type nat hook postrouting priority 100; }",
            "nft add rule ip ntcheck3 c masquerade",
        ),
    ),
    (
        "conntrack",
        (
            "nft add table inet ntcheck2",
            "nft add chain inet ntcheck2 c { type filter hook input priority 0; }",
            "nft add rule inet ntcheck2 c ct state established counter accept",
        ),
    ),
)


@functools.lru_cache(maxsize=None)
def _load_modules() -> None:
    if shutil.which("modprobe"):
        call(["modprobe", "-q", "-a", *_MODULES], check=False)
        call(["modprobe", "-q", "kvm_amd"], check=False)


def _try_tun(ns: Namespace) -> None:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    try:
        with ns.entered():
            # IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"ntt0", 0x5002))
    finally:
        os.close(descriptor)


@functools.lru_cache(maxsize=None)
def link_types() -> FrozenSet[str]:
    """Devices, qdiscs and filters that could be made in a scratch namespace, and tun.

    The namespace is kept until the process ends: its hooks keep the static keys of ingress and
    netfilter on, which are otherwise patched in and out of the receive path under traffic. Two
    emulated CPUs have tripped over such patching.
    """
    _load_modules()
    found: List[str] = []
    ns = Namespace("x", kept=True).__enter__()
    for name, commands in _LINKS:
        try:
            for command in commands:
                ns.run(command.split())
            found.append(name)
        except (CommandFailed, FileNotFoundError) as problem:
            _missing[name] = str(problem)
    try:
        _try_tun(ns)
        found.append("tun")
    except OSError as problem:
        _missing["tun"] = str(problem)
    return frozenset(found)


def _ioctl(path: str, request: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.ioctl(descriptor, request, 0)
    finally:
        os.close(descriptor)


def _program(kind: int, attach: int, target: str) -> None:
    number = bpfsys.btf_id(target, attach) if kind == bpfsys.PROG_TRACING else 0
    descriptor = bpfsys.load_program(kind, attach, number)
    try:
        bpfsys.attach_raw(descriptor, None if number else target)
    finally:
        os.close(descriptor)


def _need(condition: object, text: str) -> None:
    if not condition:
        raise OSError(0, text)


def _ovs() -> None:
    _need(shutil.which("ovs-vswitchd") and shutil.which("ovsdb-server"), "no user space")
    _need(Path("/sys/module/openvswitch").exists(), "no kernel module openvswitch")


def _tracing() -> Path:
    for path in (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing")):
        if (path / "events").is_dir():
            return path
    raise OSError(0, "tracefs is not mounted")


def _guest_nic() -> None:
    with contextlib.suppress(OSError):
        call(["modprobe", "-q", "virtio_net"], check=False)
    driver = Path("/sys/bus/virtio/drivers/virtio_net")
    devices = {path.name for path in driver.glob("virtio*/net/*")}
    routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    # The device through which this machine itself talks is not one to experiment with.
    devices -= {route[0] for route in routes}
    _need(devices, "no unused virtio-net device")


def _real_time() -> None:
    """Not in a control group without a share of real time."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


_CHECKS: Tuple[Tuple[str, Callable[[], object]], ...] = (
    ("btf", lambda: os.stat("/sys/kernel/btf/vmlinux")),
    ("module_btf", lambda: _need(set(os.listdir("/sys/kernel/btf")) - {"vmlinux"}, "no module")),
    ("kprobe", lambda: bpfsys.attach_kprobe("ip_rcv")),
    ("fentry", lambda: _program(bpfsys.PROG_TRACING, bpfsys.TRACE_FENTRY, "ip_rcv")),
    ("tp_btf", lambda: _program(bpfsys.PROG_TRACING, bpfsys.TRACE_RAW_TP, "kfree_skb")),
    ("raw_tp", lambda: _program(bpfsys.PROG_RAW_TRACEPOINT, 0, "kfree_skb")),
    ("ringbuf", lambda: os.close(bpfsys.create_map(bpfsys.MAP_RINGBUF, 0, 0, 4096))),
    ("batch", lambda: _need(bpfsys.batch_works(), "no batched map reads")),
    ("tracefs", _tracing),
    ("ipv6", lambda: os.stat("/proc/sys/net/ipv6/conf/all/disable_ipv6")),
    ("ovs", _ovs),
    ("ovs_tracepoints", lambda: os.stat(_tracing() / "events/openvswitch/ovs_dp_upcall")),
    ("vhost_net", lambda: _ioctl("/dev/vhost-net", _VHOST_SET_OWNER)),
    # Not by making a machine: its end switches the preemption notifiers off, which patches
    # __schedule, and a guest of 7.3 died of that under emulation.
    ("kvm", lambda: _ioctl("/dev/kvm", _KVM_GET_API_VERSION)),
    ("qemu", lambda: _need(shutil.which(f"qemu-system-{platform.machine()}"), "no program")),
    ("virtio_net", _guest_nic),
    ("sched_fifo", _real_time),
    # The runner makes it for kernels without type information of their modules.
    ("joined_btf", lambda: os.stat("/run/out/joined.btf")),
)


@functools.lru_cache(maxsize=None)
def capabilities() -> FrozenSet[str]:
    """Names of everything that works here; :func:`why_not` explains the rest."""
    found = set(link_types())
    for name, check in _CHECKS:
        try:
            check()
            found.add(name)
        except OSError as problem:
            _missing[name] = str(problem)
    return frozenset(found)


def why_not(name: str) -> str:
    """What happened when a missing capability was tried."""
    capabilities()
    return _missing.get(name, "unknown capability")
