# SPDX-License-Identifier: GPL-2.0-only
import time

import pytest

from ntools.model import clock, loss, units
from ntools.model.clock import Clock


@pytest.mark.parametrize(
    "text, size",
    [("8M", 8 << 20), ("64k", 64 << 10), ("1.5G", 3 << 29), ("4096B", 4096), ("2MiB", 2 << 20),
     ("0.5K", 512), ("1T", 1 << 40)],
)  # fmt: skip
def test_sizes(text, size):
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["8", "", "M", "8MB", "8 M", "-8M", "1.M", ".5M", "0.3B", "8X"])
def test_bad_sizes_are_named(text):
    with pytest.raises(ValueError, match=f"'{text}'"):
        units.parse_size(text)


def test_times():
    times = [units.parse_time(text) for text in ("50us", "1.5ms", "2s", "250ns", "1m")]
    assert times == [50000, 1500000, 2 * 10**9, 250, 60 * 10**9]
    for text in ("50", "50 us", "us", "0.5ns", "1h", "5US"):
        with pytest.raises(ValueError):
            units.parse_time(text)


def test_text_of_sizes_and_times():
    assert [units.size_text(n) for n in (0, 1023, 1024, 1536, 8 << 20, 3 << 40, 10 << 10)] == [
        "0 bytes", "1023 bytes", "1 KiB", "1.5 KiB", "8 MiB", "3 TiB", "10 KiB",
    ]  # fmt: skip
    assert [units.time_text(n) for n in (250, 50000, 1500000, 10**10)] == [
        "250 ns", "50 us", "1.5 ms", "10 s",
    ]  # fmt: skip


class FakeTime:
    """Two clocks; reading one costs ``cost`` ns, and ``delays`` are met by later readings."""

    def __init__(self, offset, cost=10):
        self.now = 1000
        self.offset = offset
        self.cost = cost
        self.delays = []

    def monotonic(self):
        self.now += self.cost + (self.delays.pop(0) if self.delays else 0)
        return self.now

    def wall(self):
        return self.monotonic() + self.offset


def test_offset_is_the_tightest_of_several():
    fake = FakeTime(10**18)
    fake.delays = [0, 0, 5000, 0, 0, 3000]
    offset = clock.measure(fake.monotonic, fake.wall)
    assert offset == (10**18, 10)


def test_offset_of_the_real_clocks():
    offset = clock.measure()
    # Another kernel reads ns of either clock; they may not drift more than NTP's slewing allows.
    assert abs(time.time_ns() - time.monotonic_ns() - offset.offset_ns) < 10**8
    assert 0 <= offset.error_ns < 10**8


def test_clock_records_are_due_every_minute_and_on_steps():
    fake = FakeTime(10**18)
    watched = Clock(fake.monotonic, fake.wall)
    assert watched.poll() is None
    fake.now += 60 * 10**9
    due = watched.poll()
    assert (due.step_ns, due.offset_ns) == (0, 10**18)
    assert watched.poll() is None
    fake.offset += 10**6 // 2
    assert watched.poll() is None
    fake.offset -= 3600 * 10**9
    step = watched.poll()
    assert step.step_ns == 10**6 // 2 - 3600 * 10**9
    assert watched.utc(5) == 5 + fake.offset
    assert watched.poll() is None


def test_a_delay_between_two_readings_is_no_step():
    fake = FakeTime(10**18)
    watched = Clock(fake.monotonic, fake.wall)
    fake.delays = [0, 5 * 10**6]
    assert watched.poll() is None


def test_wall_time_text():
    assert clock.utc_text(1700000000123456789) == "2023-11-14T22:13:20.123456Z"
    assert clock.utc_text(1700000000000000789, 0) == "2023-11-14T22:13:20Z"
    local = time.strftime("%H:%M:%S", time.localtime(1700000000))
    assert clock.wall_text(1700000000123456789) == local + ".123456"
    assert clock.wall_text(1700000000123456789, 3, date=True).endswith(local + ".123")


def test_every_cause_of_loss_has_a_consequence():
    for cause in loss.CAUSES:
        assert loss.consequence([cause])


def test_consequences():
    assert loss.consequence(["ring_full"]) == "totals are exact, the list is not complete"
    assert loss.consequence(["ring_full", "hist_full"]).startswith("totals are lower bounds")
    assert loss.consequence(["never heard of"]) == "totals are lower bounds"
    assert loss.consequence([]) == ""
    assert loss.from_symbol("NT_LOSS_RING_FULL") == "ring_full"
