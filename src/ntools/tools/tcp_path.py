# SPDX-License-Identifier: GPL-2.0-only
"""ntools-tcp-path: does a TCP connection lose packets inside this host, in which direction?"""

import argparse
from typing import Any, Dict, List, Optional

from ntools.cli import app, options

EXAMPLES = """\
examples:
  ntools-tcp-path --src-ip 192.0.2.1 --dst-ip 192.0.2.2 --rx-iface eth2 --tx-iface vnet0
      what came in and what left, both directions, every 10 seconds; summary at Ctrl-C
  ntools-tcp-path --src-ip 192.0.2.1 --dst-ip 192.0.2.2 --dst-port 443 --drops \\
      --rx-iface bond0 --tx-iface vnet0
      a line for each packet that came in and did not leave; bond0 stands for its slaves
"""


def parser() -> argparse.ArgumentParser:
    """The command line; needs neither libbpf nor root."""
    made = app.Parser(
        prog="ntools-tcp-path",
        description="Does a TCP connection lose packets inside this host, in which direction?",
        epilog=EXAMPLES,
    )
    options.add_flows(made)
    options.add_filter(made)
    options.add_common(made, interval_s=10.0)
    return made


def run(args: argparse.Namespace) -> int:
    """Find the devices, follow the packets between them, report."""
    from ntools.cli import path
    from ntools.engine.path_flow import FlowEngine

    return path.run_flows(args, "tcp-path", "tcp", View, FlowEngine)


class View:
    """Text: two rows per report, what was lost, packets one by one."""

    def __init__(self, explain: bool) -> None:
        self._explain = explain
        self._rows: List[Dict[str, Any]] = []
        self._hists: List[Dict[str, Any]] = []
        self._wanted = 2

    def header(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.path import header_lines

        self._wanted = len(rec["filters"].get("directions", ("forward", "reply")))
        return header_lines(rec, self._explain)

    def hist(self, rec: Dict[str, Any]) -> None:
        self._hists.append(rec)

    def path_stats(self, rec: Dict[str, Any]) -> Optional[List[str]]:
        from ntools.output.path import flow_lines

        self._rows.append(rec)
        if len(self._rows) < self._wanted:
            return None
        rows, hists, self._rows, self._hists = self._rows, self._hists, [], []
        return flow_lines(rows, hists)

    def packet(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.path import unit_lines

        return unit_lines(rec)

    def summary(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.text import rejection_lines

        return ["", "{:.1f} s".format(rec["duration_ns"] / 1e9), *rejection_lines(rec)]


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point of the command."""
    return app.run(parser, run, argv)


MANUAL = {
    "DESCRIPTION": "Packets of a connection come in at one side of this host and leave at the "
    "other: forward from --rx-iface to --tx-iface, replies the other way. Each is followed from "
    "where it comes in to where it leaves; what does not leave in time was lost inside, and the "
    "function that freed it is named. A packet that came in again was lost before its receiver "
    "knew of it: after it had left this host, or before.",
    "OUTPUT": "in, out: packets (buffers, of several segments maybe) and bytes of payload. "
    "lost: came in, did not leave. split: left in other buffers, cut into segments or by way of "
    "Open vSwitch's user space. retrans: came again after the first copy had left (lost outside, "
    "or not at all), or before any had (lost inside). dup ack: acknowledged nothing new. Times are "
    "from the side a packet comes in to the side it leaves.",
    "FILTERS": options.FILTERS,
    "OVERHEAD": "Class low (totals) or variable (--verbose, --drops). A packet on other devices "
    "costs a lookup and the comparison of a bit, one on the two sides the reading of its headers "
    "and three lookups.",
    "LIMITS": "Flows that are translated (NAT) between the two sides are seen in the direction of "
    "the filter only. 8192 flows have totals.",
    "SEE ALSO": "ntools-icmp-path(8), ntools-drop(8), ntools(8)",
}
