# SPDX-License-Identifier: GPL-2.0-only
"""Three judges of the same packets: the kernel's filter, PacketFilter.matches() and libpcap.

The first two have to agree on everything. libpcap has other opinions about a few kinds of
packets; each is named here with its reason, and nothing else may differ.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Iterator, List, NamedTuple, Set

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from object.filter_corpus import (  # noqa: E402
    TABLE,
    Frame,
    corpus,
    expression,
    random_filter,
    tcpdump,
    write_pcap,
)
from object.filtering import Bench, bench_fixture, filter_of, forced_sets  # noqa: E402
from object.parsing import FLAGS, Parser, harness_fixture, parser_fixture  # noqa: E402

__all__ = ["bench_fixture", "harness_fixture", "parser_fixture"]

SEED, FRAMES = 20240229, 3000

REASONS = {
    "extension": "libpcap looks for protocol and ports only behind the first IPv6 header (or a "
    "fragment header right behind it): it gets the same packet without the others",
    "unread": "a header that is not linear, or behind more than 6 extension headers, is not read: "
    "the filter refuses what it needs it for, and says that it is not sure",
    "udplite": "libpcap knows no ports of UDP-Lite",
}


class Corpus(NamedTuple):
    """Frames in the kernel and in files for libpcap.

    :ivar kinds: per frame, names of :data:`REASONS`.
    """

    frames: List[Frame]
    kinds: List[Set[str]]
    whole: Path
    twins: Path


@pytest.fixture(scope="module", name="packets")
def packets_fixture(
    parser: Parser, bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Corpus]:
    if not shutil.which("tcpdump"):
        pytest.skip("no tcpdump")
    frames = corpus(SEED, FRAMES)
    results = [
        parser.skb("eth", one.data, 0, len=len(one.data), data_len=len(one.data) - one.linear)
        for one in frames
    ]
    bench.load([result["pkt"] for result in results])
    place = tmp_path_factory.mktemp("pcap")
    unread = FLAGS["TRUNCATED"] | FLAGS["DEEP"]
    kinds = [
        {*one.kinds, *(["unread"] if result["pkt"]["flags"] & unread else [])}
        for one, result in zip(frames, results)
    ]
    assert not any(result["pkt"]["flags"] & FLAGS["FAULT"] for result in results)
    write_pcap(place / "whole", [one.data for one in frames])
    write_pcap(place / "twins", [one.twin for one in frames])
    yield Corpus(frames, kinds, place / "whole", place / "twins")


def judge(bench: Bench, packets: Corpus, text: str, inner: str) -> Counter[str]:
    """How many verdicts there are, and how many differ from libpcap's, by reason."""
    flt = filter_of(text)
    reasons = bench.judge(flt)
    unsure = list(bench.unsure)
    with forced_sets():
        again = bench.judge(flt)
    assert again == reasons
    wanted = [one == "NONE" for one in reasons]
    assert [flt.matches(one) for one in bench.packets] == wanted
    plain = tcpdump(packets.twins, expression(inner))
    counts: Counter[str] = Counter(verdicts=len(wanted), taken=sum(wanted))
    for number, (ours, kinds) in enumerate(zip(wanted, packets.kinds)):
        theirs = number in plain
        if ours == theirs:
            continue
        frame = packets.frames[number]
        told = (text, inner, number, reasons[number], kinds, frame.data.hex())
        if "udplite" in kinds and ours and "-port" in text:
            counts["udplite"] += 1
            continue
        # Never taken for a header that was not read; and never a silent loss.
        assert "unread" in kinds and theirs and unsure[number], told
        counts["unread"] += 1
    if any("extension" in kinds for kinds in packets.kinds):
        first = tcpdump(packets.whole, expression(inner))
        counts["extension"] += sum(
            (number in plain) != (number in first)
            for number, kinds in enumerate(packets.kinds)
            if "extension" in kinds
        )
        assert {n for n in plain ^ first if "extension" not in packets.kinds[n]} == set()
    return counts


def test_corpus_has_everything(bench: Bench, packets: Corpus) -> None:
    """Enough of each kind that a fault in its handling must show."""
    kinds = Counter(kind for found in packets.kinds for kind in found)
    assert min(kinds[name] for name in REASONS) >= 50, kinds
    families = Counter(one.family for one in bench.packets)
    assert families[4] > 1000 and families[6] > 1000 and families[0] > 200, families
    protocols = Counter(one.protocol for one in bench.packets if one.family)
    assert {6, 17, 1, 58, 132, 136, 50} <= set(protocols)
    assert sum(one.vlan_id is None for one in bench.packets) > 500
    fragments = [
        one for one in bench.packets if one.protocol in (6, 17) and one.src_port is None
    ]  # fmt: skip
    assert len(fragments) > 200
    assert sum(one.eth_type in (0x0806, 0x88CC) for one in bench.packets) > 200


@pytest.mark.parametrize("text, inner", TABLE, ids=[text for text, _ in TABLE])
def test_table(bench: Bench, packets: Corpus, text: str, inner: str) -> None:
    counts = judge(bench, packets, text, inner)
    assert 0 < counts["taken"] < counts["verdicts"]


def test_random_filters(bench: Bench, packets: Corpus) -> None:
    """Rules of all criteria put together at random, up to 64 of them."""
    source = random.Random(SEED)
    counts: Counter[str] = Counter()
    for rules in [1] * 30 + [2] * 10 + [5] * 6 + [20] * 3 + [64] * 2:
        counts += judge(bench, packets, *random_filter(source, rules))
    print(dict(counts))
    assert counts["verdicts"] == 51 * FRAMES
    assert all(counts[name] > 0 for name in REASONS), counts
    assert 0.1 < counts["taken"] / counts["verdicts"] < 0.9, counts


def test_word_vlan(bench: Bench, packets: Corpus) -> None:
    """The pcap word itself, where it can stand alone."""
    for text, pcap in (
        ("--vlan 100", "vlan 100"),
        ("--vlan 100 --protocol udp", "vlan 100 and (udp or (vlan and udp))"),
        ("--vlan 0-4094 --src-ip 192.0.2.0/24", "vlan and (src net 192.0.2.0/24 or "
         "(vlan and src net 192.0.2.0/24))"),
    ):  # fmt: skip
        found = bench.judge(filter_of(text))
        theirs = tcpdump(packets.twins, pcap)
        ours = {number for number, one in enumerate(found) if one == "NONE"}
        assert all("unread" in packets.kinds[number] for number in ours ^ theirs)
        assert ours <= theirs and len(ours) > 50
