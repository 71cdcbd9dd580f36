# SPDX-License-Identifier: GPL-2.0-only
"""Symbols and facts of the running kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ntools.host.about import about
from ntools.host.symbols import Symbols

KALLSYMS = Path("/proc/kallsyms")


@pytest.fixture(scope="module")
def symbols():
    found = Symbols()
    if found.note is not None:
        pytest.skip(found.note)
    return found


@pytest.fixture(scope="module")
def code():
    """Lines about code: (address, name, module)."""
    found = []
    for line in KALLSYMS.read_text().splitlines():
        address, kind, name, *module = line.split()
        if kind in "tTwW":
            found.append((int(address, 16), name, module[0].strip("[]") if module else None))
    return found


def test_every_symbol_is_found_at_its_address(symbols, code):
    first = {}
    for address, name, module in code:
        first.setdefault(address, (name, module))
    for address, (name, module) in list(first.items())[::37]:
        found = symbols.lookup(address)
        assert (found.name, found.offset, found.module) == (name, 0, module)


def test_range_agrees_with_the_list(symbols, code):
    addresses = sorted({address for address, _, _ in code})
    start = next(address for address, name, _ in code if name == "netif_receive_skb")
    following = addresses[addresses.index(start) + 1]
    assert symbols.range("netif_receive_skb") == (start, following)
    assert symbols.lookup(following - 1).name == "netif_receive_skb"
    assert symbols.range("no_such_function_anywhere") is None


def test_cost():
    """10 MiB for 122 thousand symbols; twice the usual CPU time, for a busy machine."""
    program = (
        "import time\n"
        "from ntools.host.symbols import Symbols\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4\n"
        "before, start = resident(), time.process_time()\n"
        "Symbols().note\n"
        "print(time.process_time() - start, resident() - before)\n"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    seconds, kib = (float(word) for word in output.stdout.split())
    lines = KALLSYMS.read_bytes().count(b"\n")
    share = max(1.0, lines / 122000)
    assert kib < 10 * 1024 * share
    emulated = "TCG" in Path("/proc/cpuinfo").read_text()
    assert seconds < 0.25 * share or emulated


def test_about_this_host():
    facts = about()
    assert facts.kernel == os.uname().release
    assert facts.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert facts.cpus == os.cpu_count()
    assert facts.host_id is None or len(facts.host_id) == 32


def test_one_pass_finds_what_the_table_has(symbols):
    patterns = ["kfree_skb*", "__netif_receive_skb_core*", "consume_skb", "b*", "no_such_function"]
    once = Symbols()
    once.expect(patterns)
    found = {pattern: once.matching(pattern) for pattern in patterns}
    assert found == {pattern: symbols.matching(pattern) for pattern in patterns}
    assert [name for name, _, _ in found["consume_skb"]] == ["consume_skb"]
    assert len(found["b*"]) > 500 and not found["no_such_function"]
