# SPDX-License-Identifier: GPL-2.0-only
"""How the public reference tools (BCC) are started, on this kernel or in a guest.

They are no part of this project: a checkout of everoute/troubleshooting-tools lies somewhere and is
named with ``--reference DIR``. BCC compiles at every start and needs the headers of a kernel as one
tree; Debian has them in two packages, which are merged here. The tools attach by kprobes. Where the
kernel has none, all but the attach itself is done (unattached.py): they look cheaper than they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vm import aptstate  # noqa: E402
from vm.common import CACHE, Kernel, VmProblem, kernel  # noqa: E402

__all__ = ["Tool", "has_bcc", "has_kprobes", "headers", "interpreter", "tools"]

_HERE = Path(__file__).resolve().parent
#: The tools, and how the line begins that says they are attached.
_DROP = "measurement-tools/linux-network-stack/packet-drop/eth_drop.py"
_LATENCY = "measurement-tools/performance/vm-network/vm_network_latency_summary.py"
_DROP_READY, _LATENCY_READY = "Starting packet drop", "Collecting adjacent"
#: Of the kernels with pinned headers, the one whose headers serve where a kernel has none of its
#: own: the compiler's work hardly depends on it.
ANY_HEADERS = "6.1"


@dataclass(frozen=True)
class Tool:
    """A command of the reference.

    :ivar ready: how the line begins that is printed after the last attach.
    """

    name: str
    command: Sequence[str]
    ready: str
    env: Mapping[str, str] = field(default_factory=dict)


def interpreter() -> str:
    """The Python that has BCC; empty: none."""
    for name in (sys.executable, "/usr/bin/python3"):
        with_bcc = subprocess.run([name, "-c", "import bcc"], stderr=subprocess.DEVNULL)
        if with_bcc.returncode == 0:
            return name
    return ""


def has_bcc() -> bool:
    """Whether the reference can run at all."""
    return bool(interpreter())


def has_kprobes() -> bool:
    """Whether the reference's way of attaching exists here."""
    return Path("/sys/bus/event_source/devices/kprobe").exists()


def tools(
    checkout: Path, headers_dir: Path, tap: str = "vnet0", uplink: str = "phy0",
    watch: Sequence[str] = ("--direction", "rx", "--protocol", "icmp"),
) -> dict[str, Tool]:  # fmt: skip
    """The drop monitor ("drop") and the VM latency summary ("latency") of a checkout.

    :param watch: what the latter is to look at. It takes one direction; its "rx" is to the VM.
    """
    start = [interpreter(), "-u"]
    if not has_kprobes():
        start.append(str(_HERE / "unattached.py"))
    env = {"BCC_KERNEL_SOURCE": str(headers_dir)}
    drop = [*start, str(checkout / _DROP), "--type", "ipv4", "--dst-ip", "192.0.2.1"]
    latency = [
        *start, str(checkout / _LATENCY), "--vm-interface", tap, "--phy-interface", uplink,
        *watch,
    ]  # fmt: skip
    return {
        "drop": Tool("reference: drop monitor", drop, _DROP_READY, env),
        "latency": Tool("reference: VM latency summary", latency, _LATENCY_READY, env),
    }


def headers(name: str = ANY_HEADERS) -> Path:
    """Merged tree of the headers of a kernel of the matrix; fetched on first use.

    :raises VmProblem: not there, and cannot be fetched.
    """
    one = kernel(name)
    tree = CACHE / f"headers-{one.release}"
    if not (tree / "include/generated/autoconf.h").exists():
        _merge(one, tree)
    return tree


def _merge(one: Kernel, tree: Path) -> None:
    """The common headers with those of the flavour over them: BCC knows one directory only."""
    common = one.release.rpartition("-")[0] + "-common"
    new = tree.with_name(f"{tree.name}.{os.getpid()}")
    try:
        with _Headers(one.suites) as apt:
            for number, suffix in enumerate((common, one.release)):
                unpacked = new.with_name(f"{new.name}.{number}")
                apt.unpack(f"linux-headers-{suffix}", one.version, unpacked)
                source = unpacked / "usr/src" / f"linux-headers-{suffix}"
                # Links out of the tree (scripts, tools) are of no use to BCC.
                subprocess.run(
                    ["cp", "-r", "--no-dereference", f"{source}/.", str(new)],
                    check=True, stderr=subprocess.DEVNULL,
                )  # fmt: skip
        new.rename(tree)
    finally:
        for left in (new, *new.parent.glob(f"{new.name}.*")):
            shutil.rmtree(left, ignore_errors=True)


class _Headers(aptstate.AptState):
    def unpack(self, name: str, version: str, target: Path) -> None:
        """Fetch one package into the cache and unpack it."""
        version = self.newest(name, version)
        aptstate.DEBS.mkdir(parents=True, exist_ok=True)
        self._run("apt-get", "-q", "download", f"{name}={version}", cwd=aptstate.DEBS)
        found = sorted(aptstate.DEBS.glob(f"{name}_{version.replace(':', '%3a')}_*.deb"))
        if not found:
            raise VmProblem(f"apt did not leave '{name}={version}' in {aptstate.DEBS}")
        target.mkdir(parents=True)
        subprocess.run(["dpkg-deb", "-x", str(found[-1]), str(target)], check=True)
