# SPDX-License-Identifier: GPL-2.0-only
"""ntools-udp-path: is UDP lost inside this host, above all large datagrams in fragments?"""

import argparse
from typing import Any, Dict, List, Optional

from ntools.cli import app, options
from ntools.tools import tcp_path

EXAMPLES = """\
examples:
  ntools-udp-path --src-ip 192.0.2.1 --dst-ip 192.0.2.2 --rx-iface eth2 --tx-iface vnet0
      what came in and what left, both directions, every 10 seconds; summary at Ctrl-C
  ntools-udp-path --src-ip 192.0.2.1 --dst-ip 192.0.2.2 --dst-port 4789 --drops \\
      --rx-iface bond0 --tx-iface vnet0
      a line for each packet, and each datagram in fragments, that did not leave whole
"""


def parser() -> argparse.ArgumentParser:
    """The command line; needs neither libbpf nor root."""
    made = app.Parser(
        prog="ntools-udp-path",
        description="Is UDP lost inside this host, above all large datagrams in fragments?",
        epilog=EXAMPLES,
    )
    options.add_flows(made)
    options.add_filter(made)
    options.add_common(made, interval_s=10.0)
    return made


def run(args: argparse.Namespace) -> int:
    """Find the devices, follow the packets between them, report."""
    from ntools.cli import path
    from ntools.engine.path_datagram import DatagramEngine

    return path.run_flows(args, "udp-path", "udp", View, DatagramEngine)


class View(tcp_path.View):
    """As that of TCP, with datagrams."""

    def datagram(self, rec: Dict[str, Any]) -> List[str]:
        from ntools.output.path import datagram_lines

        return datagram_lines(rec)


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point of the command."""
    return app.run(parser, run, argv)


MANUAL = {
    "DESCRIPTION": "Datagrams come in at one side of this host and leave at the other. Those in "
    "one packet are followed as the packets of TCP are. Those in fragments are put together by "
    "their bytes: connection tracking reassembles a datagram and cuts it again, so the number of "
    "its fragments says nothing.",
    "OUTPUT": "in, out, lost, split: packets that are no fragments. Of datagrams in fragments: "
    "complete; INTERNAL_DROP: all of it came in and nothing left; INTERNAL_DROP_PARTIAL: and only "
    "some left; INCOMPLETE_RX: fragments were missing when it came in, so they were lost before "
    "this host. Ports are those of the first fragment; where the filter has ports, a datagram "
    "without its first fragment is not known to be wanted.",
    "FILTERS": options.FILTERS,
    "OVERHEAD": "Class low (totals) or variable (--verbose, --drops). A packet on other devices "
    "costs a lookup and the comparison of a bit, one on the two sides the reading of its headers "
    "and three lookups.",
    "LIMITS": "What is lost outside of this host cannot be seen by one host. 16384 datagrams in "
    "fragments may be under way.",
    "SEE ALSO": "ntools-tcp-path(8), ntools-icmp-path(8), ntools-drop(8), ntools(8)",
}
