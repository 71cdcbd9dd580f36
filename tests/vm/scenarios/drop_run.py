# SPDX-License-Identifier: GPL-2.0-only
"""ntools-drop: every way a run ends, and everything it refuses."""

from __future__ import annotations

import signal
from typing import Any

from lab.drops import accounted, checked, watch
from lab.expect import contains, equal
from lab.latency import check_records
from lab.netns import Namespace
from lab.scenario import scenario
from lab.tool import PATIENT, Tool
from lab.traffic import udp

_LO = "127.0.0.1"

_REFUSED = (
    (("--src-ip", "10.0.0.999"), 2, "10.0.0.999"),
    (("--src-ip", "10.0.0.1", "--dst-ip", "fd00::1"), 2, "families"),
    (("--dst-port", "70000"), 2, "70000"),
    (("--type", "nonsense"), 2, "nonsense"),
    (("--interface", "nonexistent0"), 2, "nonexistent0"),
    (("--netns", "nonexistent"), 2, "nonexistent"),
    (("--location", "no_such_function"), 2, "no_such_function"),
    (("--location", "tcp_*"), 2, "at most"),
    (("--group-by", "colour"), 2, "colour"),
    (("--mode", "event", "--top", "3"), 2, "--top"),
    (("--max-entries", "3"), 2, "256"),
    (("--interval", "0"), 2, "seconds"),
    (("--max-events", "0"), 2, "--force"),
    (("--sample", "1/3"), 2, "power of two"),
)


@scenario()
def every_way_to_end(lab: Any) -> None:
    """Signals, --duration and --count: exit 0, the whole summary, and its reason."""
    with Namespace("h") as ns:
        for how, number in (("INT", signal.SIGINT), ("TERM", signal.SIGTERM)):
            with watch(ns, "--dst-port", "7777") as tool:
                udp(ns, _LO, 7777, 5, wait_s=0.2)
                result = tool.stop(number)
            checked(result, 5)
            equal(result.summary["end"], "signal", f"end by SIG{how}")
        with watch(ns, "--dst-port", "7777", "--duration", "3") as tool:
            udp(ns, _LO, 7777, 5, wait_s=0.2)
            result = tool.wait()
        checked(result, 5)
        equal(result.summary["end"], "duration", "end")
        with watch(ns, "--dst-port", "7777", "--count", "3") as tool:
            udp(ns, _LO, 7777, 5, wait_s=0.2)
            result = tool.wait()
        check_records(result)
        counts = accounted(result)
        equal((counts["shown"], result.summary["end"], result.status), (3, "count", 0), "count")
        with watch(ns, "--mode", "summary", "--interval", "0.3", "--count", "2") as tool:
            result = tool.wait()
        checked(result, 0)
        equal((len(result.of_type("interval")), result.summary["end"]), (2, "count"), "intervals")


@scenario()
def refusals(lab: Any) -> None:
    """Bad input: one line that names it, the right status, nothing on stdout."""
    with Namespace("h") as ns:
        for args, status, text in _REFUSED:
            with Tool(ns, "ntools-drop", args, ready=False) as tool:
                result = tool.wait()
            equal(result.status, status, f"exit status of {args}", result.stderr)
            equal(len(result.stderr.splitlines()), 1, f"lines about {args}", result.stderr)
            contains(result.stderr, text, f"message about {args}")
            equal(result.stdout, "", f"stdout of {args}")


@scenario()
def text_and_plan(lab: Any) -> None:
    """The text fits 80 columns and tells the facts; --dry-run tells the plan and loads nothing."""
    with Namespace("h") as ns:
        with Tool(ns, "ntools-drop", ["--netns", ns.name, "--explain", *PATIENT]) as tool:
            udp(ns, _LO, 7777, 3, wait_s=0.2)
            text = tool.stop().text
        equal([line for line in text.splitlines() if len(line) > 80], [], "long lines")
        equal(text.count(f"no_socket lo udp {_LO}:"), 3, "drops in the text", text)
        contains(text, "why")
        contains(text, "3 drops matched, 3 shown")
        with Tool(ns, "ntools-drop", ["--dry-run", "--dst-port", "9"], ready=False) as tool:
            result = tool.wait()
        equal(result.status, 0, "exit status", result.stderr)
        for part in ("raw_tp/kfree_skb", "dst_port=9", "drop_totals", "overhead class"):
            contains(result.text, part, "plan")
