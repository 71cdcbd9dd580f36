#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The main job on real packets: builds a small network, follows its packets, removes it again.

A bridge with a tap behind which a fake machine answers, and a namespace outside that pings it.
The machine reads its tap 5 ms late, so the table shows where the time goes.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.tool import Tool  # noqa: E402
from lab.topo import bridge_topo  # noqa: E402

_DELAY_MS = 5
_PINGS = 50


def main() -> int:
    """Runs the demonstration; 0 when every packet was accounted for."""
    if os.geteuid() != 0:
        print(
            "demo: needs root: it makes network namespaces and loads BPF programs.", file=sys.stderr
        )
        return 3
    command = ["--vm-interface", "vnet0"]
    print(
        "namespace E (10.9.0.1) --veth-- phy0 | br0 | vnet0 -- fake VM (10.9.0.2), "
        f"reads {_DELAY_MS} ms late",
        flush=True,
    )
    with bridge_topo(static_neigh=True) as topo:
        topo.vm.delay(_DELAY_MS)
        print("$ ntools-vm-latency " + " ".join(command), flush=True)
        with Tool(topo.h, "ntools-vm-latency", command) as tool:
            print(tool.ready_line, flush=True)
            pinged = topo.ping(_PINGS)
            result = tool.stop(signal.SIGINT)
    print(result.text)
    print(
        f"ping itself: {pinged.sent} sent, {pinged.received} received, "
        f"{pinged.min_ms:.1f} to {pinged.max_ms:.1f} ms round trip"
    )
    told = f"started {2 * _PINGS}, completed {2 * _PINGS}"
    if result.status or told not in result.text:
        print(f"demo: expected '{told}'", file=sys.stderr)
        print(result.stderr, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
