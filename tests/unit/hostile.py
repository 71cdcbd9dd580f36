# SPDX-License-Identifier: GPL-2.0-only
"""Profile and strategies of the property tests (``test_hostile_*.py``).

They take the same examples in every run. ``NTOOLS_FUZZ=100`` makes new ones, a hundred times as
many.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from lab.hostile import COMMS, DEVICES

TOP = Path(__file__).resolve().parents[2]
FACTOR = int(os.environ.get("NTOOLS_FUZZ", "0"))

set_hypothesis_home_dir(str(TOP / "build" / "hypothesis"))
settings.register_profile(
    "ntools",
    max_examples=100 * (FACTOR or 1),
    derandomize=not FACTOR,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("ntools")


def few(count: int) -> settings:
    """For properties whose examples are slow: this many."""
    return settings(max_examples=count * (FACTOR or 1))


@contextlib.contextmanager
def hang_guard(seconds: int = 60):
    """Something that never ends fails instead of holding up the run."""

    def ring(*_):
        raise AssertionError("does not end")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


#: Any text, surrogates included: what ``os.fsdecode`` may make of an argument.
ANY = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)

NASTY = [
    "", " ", "\0", "\n", "\x1b[2J", "\x9b1m", "\u202e", "\udcff\udc80", "\ud800", "%s%n%(prog)s",
    "{0}", "nan", "inf", "-inf", "Infinity", "1e309", "-1e309", "1e-400", "5e-324", "-0.0",
    "0x10", "0b1", "1_0", "٣", "１２", "²", "Ⅷ", "+5", "-5", " 5", "5 ", "5\n", "\x1f5",
    "5\u2003", "05", "00", "1e3", "1.", ".5", "4294967296", "18446744073709551616", "9" * 400,
    "1" * 5000, "1" * 5000 + "M", "0." + "0" * 5000 + "1s", "fe80::1%eth0", "::ffff:1.2.3.4",
    "1.2.3.4/33", "::/129", "1.2.3.4/-1", "1.2.3.4/٣", "1.2.3.04", "1.2.3", "256.1.1.1", "::1::",
    "1.2.3.4/", "/8", "1.2.3.4\0", "0x_8", "0x 1", "0x٣", "0x10000", "-0x1", "8mıb", "8\u212a",
    "8K\0", "none", "NONE", "all", "icmp\n", "rx,tx", ",", ",,", "a\x1bb,c", "*", "openvswitch:*",
    "a" * 300, "/" * 300, "é" * 200, "=", "--", "-", "-1.5", "--help\n", "@file",
]  # fmt: skip

#: Values of options: known troublemakers, numbers of every kind, look-alikes, anything.
VALUE = st.one_of(
    st.sampled_from(NASTY),
    st.integers().map(str),
    st.floats().map(str),
    st.text("0123456789.eE+-_xXnaif:/%,٣² \t\n\0\x1b\u202eKMGmsu", max_size=16),
    st.tuples(st.sampled_from(["10.0.0.1", "fe80::1", "tcp", "80", "8M", "0x08"]), ANY).map(
        "".join
    ),
    ANY,
)

#: Interface names as the kernel takes them.
DEVICE = st.one_of(
    st.sampled_from(DEVICES),
    st.binary(min_size=1, max_size=15).filter(
        lambda name: not set(name) & set(b"\0/:\t\n\v\f\r \xa0") and name not in (b".", b"..")
    ),
)
COMM = st.one_of(
    st.sampled_from(COMMS),
    st.binary(min_size=1, max_size=15).map(lambda name: name.replace(b"\0", b"\x1b")),
)
