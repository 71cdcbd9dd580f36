# SPDX-License-Identifier: GPL-2.0-only
"""The table of commands: a command is a row here plus a module with its view.

``ntools list``, ``ntools doctor`` and the tests take what they know of a command from its row. The
row of ``ntools-vm-latency`` belongs to the module ``ntools.tools.vm_latency``.
"""

from typing import Dict, NamedTuple, Tuple

__all__ = ["COMMANDS", "OFFLINE", "Command", "objects"]


class Command(NamedTuple):
    """One command.

    :ivar name: without the prefix ``ntools-``.
    :ivar family: what it looks at, to group long lists.
    :ivar question: what it answers, one line.
    :ivar objects: names of the BPF objects it loads.
    :ivar overhead: mode -> overhead class: none, low, variable or high.
    :ivar needed: points it cannot work without.
    :ivar wanted: points that make its answer finer; a kernel need not have them.
    :ivar replay: options of its own that can be chosen anew when a recording is shown.
    """

    name: str
    family: str
    question: str
    objects: Tuple[str, ...]
    overhead: Dict[str, str]
    needed: Tuple[str, ...]
    wanted: Tuple[str, ...] = ()
    replay: Tuple[str, ...] = ()

    @property
    def program(self) -> str:
        """Name of the executable."""
        return "ntools-" + self.name

    @property
    def module(self) -> str:
        """Name of the Python module with ``parser()`` and ``main()``."""
        return "ntools.tools." + self.name.replace("-", "_")


_ROWS = (
    Command(
        name="vm-latency",
        family="path",
        question="Where do packets of a virtual machine spend their time on this host?",
        objects=("flight", "flight_detail"),
        overhead={"summary": "low", "details": "variable"},
        needed=("dev_rx", "dev_xmit"),
        wanted=(
            "dev_bklg", "dev_queue", "free_drop",
            "ovs_in", "ovs_lookup", "ovs_miss", "ovs_upq", "ovs_back", "ovs_exec", "ovs_send",
            "br_fwd", "br_up",
            "vm_xmit", "vm_take", "vm_kick", "vm_copied",
        ),
        replay=("histogram",),
    ),
    Command(
        name="icmp-path",
        family="path",
        question="Is a ping lost inside this host, and which half of it, or outside?",
        objects=("path_echo",),
        overhead={"echoes": "low"},
        needed=("dev_rx", "dev_xmit"),
        wanted=("dev_bklg", "free_drop"),
        replay=("verbose",),
    ),
    Command(
        name="tcp-path",
        family="path",
        question="Does a TCP connection lose packets inside this host, in which direction?",
        objects=("path_flow", "path_flow_detail"),
        overhead={"totals": "low", "packets": "variable"},
        needed=("dev_rx", "dev_xmit"),
        wanted=("dev_bklg", "free_drop"),
    ),
    Command(
        name="udp-path",
        family="path",
        question="Is UDP lost inside this host, above all large datagrams in fragments?",
        objects=("path_datagram", "path_datagram_detail"),
        overhead={"totals": "low", "packets": "variable"},
        needed=("dev_rx", "dev_xmit"),
        wanted=("dev_bklg", "free_drop"),
    ),
    Command(
        name="qdisc-latency",
        family="path",
        question="How long do packets wait in the transmit queue of a device?",
        objects=("qdisc",),
        overhead={"summary": "low", "details": "variable"},
        needed=("dev_queue", "qd_out", "dev_xmit"),
        wanted=("dev_ret", "free_drop", "free_ok"),
        replay=("histogram",),
    ),
    Command(
        name="softirq-latency",
        family="path",
        question="Does network work wait because ksoftirqd or the softirq itself starts late?",
        objects=("softirq",),
        overhead={"summary": "low", "details": "variable"},
        needed=("sched_switch", "sched_wakeup", "soft_raise", "soft_entry", "soft_exit"),
        wanted=("sched_new", "napi_poll"),
    ),
    Command(
        name="drop",
        family="drop",
        question="Who drops packets, why and where?",
        objects=("drop",),
        overhead={"summary": "low", "events": "variable"},
        needed=("free_drop",),
        replay=("normal", "top"),
    ),
)  # fmt: skip

#: Commands that look at no packets of this host, so they have no row -> their module.
OFFLINE: Dict[str, str] = {"btf": "ntools.cli.btf", "path-merge": "ntools.cli.merge"}

#: Every command by name, in the order of ``ntools list``.
COMMANDS: Dict[str, Command] = {row.name: row for row in _ROWS}


def objects() -> Tuple[str, ...]:
    """Names of all BPF objects the commands load, each once."""
    return tuple(dict.fromkeys(name for row in _ROWS for name in row.objects))
