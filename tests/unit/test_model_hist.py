# SPDX-License-Identifier: GPL-2.0-only
import random
import struct

import pytest

from ntools.model import hist as h
from ntools.model.hist import Histogram, KernelHistogram


@pytest.mark.parametrize("sub", range(5))
def test_slots_are_contiguous_and_cover_every_value(sub):
    for slot in range(64 << sub):
        low, high = h.slot_bounds(slot, sub)
        assert high >= low
        assert h.slot_of(low, sub) == h.slot_of(high, sub) == slot
        assert h.slot_of(high + 1, sub) == slot + 1


@pytest.mark.parametrize("sub", range(5))
def test_slot_width_is_bounded(sub):
    rnd = random.Random(sub)
    for _ in range(2000):
        value = rnd.getrandbits(rnd.randrange(1, 64))
        low, high = h.slot_bounds(h.slot_of(value, sub), sub)
        assert low <= value <= high
        assert (high - low + 1) << sub <= max(low, 1 << sub)


def test_numbers_of_the_data_contract():
    assert h.slot_of(256, 2) == 28
    assert h.slot_bounds(139, 2)[1] == 2**36 - 1
    assert h.slot_of(2**64 - 1, 2) == 251
    assert [h.slot_of(v, 0) for v in (0, 1, 2, 3, 4, 7, 8)] == [0, 1, 2, 2, 3, 3, 4]
    assert h.slot_bounds(h.slot_of(40012000, 2), 2) == (33554432, 41943039)


def _random_hist(rnd, n, first=0, last=None):
    hist = Histogram("ns", 2, first, last)
    values = [int(rnd.lognormvariate(10, 4)) for _ in range(n)]
    for value in values:
        hist.add(value)
    return hist, values


def test_percentiles_contain_the_exact_one():
    rnd = random.Random(7)
    for n in (1, 2, 9, 10, 99, 100, 999, 1000, 3000):
        hist, values = _random_hist(rnd, n, 28, 139)
        values.sort()
        for share, least in ((0.5, 2), (0.9, 10), (0.99, 100), (0.999, 1000)):
            bounds = hist.percentile(share)
            if n < least:
                assert bounds is None
                assert hist.estimate(share) is None
                continue
            exact = values[-(-round(share * 1000) * n // 1000) - 1]
            low, high = bounds
            assert low <= exact <= high
            assert low >= values[0]
            assert high <= values[-1]
            assert low <= hist.estimate(share) <= high


def test_merge_equals_adding_everything_to_one():
    rnd = random.Random(8)
    for _ in range(50):
        one, first = _random_hist(rnd, rnd.randrange(30), 28, 139)
        two, second = _random_hist(rnd, rnd.randrange(30), 28, 139)
        whole = Histogram("ns", 2, 28, 139)
        for value in first + second:
            whole.add(value)
        before = one.copy()
        one.merge(two)
        assert one == whole
        delta = one.minus(before)
        assert (delta.slots, delta.count, delta.sum) == (two.slots, two.count, two.sum)
        assert (delta.under, delta.over) == (two.under, two.over)


@pytest.mark.parametrize(
    "other",
    [Histogram("us"), Histogram("ns", 1), Histogram("ns", 2, 28), Histogram("ns", 2, 0, 139)],
)
def test_different_kinds_are_refused(other):
    with pytest.raises(ValueError):
        Histogram("ns", 2).merge(other)
    with pytest.raises(ValueError):
        Histogram("ns", 2).minus(other)


def test_unknown_extremes_stay_unknown_when_merged():
    known, unknown = Histogram(), Histogram()
    known.add(5)
    unknown.add(7)
    unknown.min = unknown.max = None
    for one, two in ((known, unknown), (unknown, known)):
        total = one.copy()
        total.merge(two)
        assert (total.count, total.min, total.max) == (2, None, None)


def test_subtracting_what_is_not_earlier_is_refused():
    one, two = Histogram(), Histogram()
    two.add(3)
    with pytest.raises(ValueError):
        one.minus(two)


def test_ends_are_explicit():
    hist = Histogram("ns", 2, 28, 139)
    hist.add(0, 60)
    hist.add(2**40, 40)
    assert (hist.under, hist.over, hist.slots) == (60, 40, {})
    assert hist.percentile(0.5) == (0, 255)
    assert hist.percentile(0.9) == (2**36, 2**40)
    hist.max = None
    assert hist.percentile(0.9) == (2**36, None)
    assert hist.estimate(0.9) == 2**36


def test_share_must_lie_between_the_ends():
    for share in (0, 1, -1, 1.5):
        with pytest.raises(ValueError):
            Histogram().percentile(share)


def test_empty():
    hist = Histogram()
    assert (hist.mean(), hist.percentile(0.5), hist.min, hist.max) == (None, None, None, None)


def test_record_fields_round_trip():
    rnd = random.Random(9)
    for last in (None, 139):
        hist, _ = _random_hist(rnd, 1500, 28, last)
        fields = hist.fields()
        assert Histogram.from_fields(fields) == hist
        assert fields["p"]["99.9"] == list(hist.percentile(0.999))
    with pytest.raises(ValueError):
        Histogram.from_fields(dict(fields, scale="linear"))


class Kernel:
    """What nt_hist_add() of the kernel does, for one CPU."""

    def __init__(self, wrap=0):
        self.count = self.sum = 0
        self.cells = [[0, 0, 0], [0, 0, 0]]
        self.under = self.over = wrap
        self.slots = [wrap] * 112

    def add(self, value, epoch):
        self.count += 1
        self.sum += value
        cell = self.cells[epoch & 1]
        if cell[2] != epoch:
            cell[:] = [value, value, epoch]
        cell[0] = min(cell[0], value)
        cell[1] = max(cell[1], value)
        slot = h.slot_of(value, 2)
        if slot < 28:
            self.under = (self.under + 1) & 0xFFFFFFFF
        elif slot > 139:
            self.over = (self.over + 1) & 0xFFFFFFFF
        else:
            self.slots[slot - 28] = (self.slots[slot - 28] + 1) & 0xFFFFFFFF

    def raw(self):
        (min0, max0, gen0), (min1, max1, gen1) = self.cells
        extremes = (min0, min1, max0, max1, gen0, gen1)
        return struct.pack(
            "<6Q4I112I", self.count, self.sum, *extremes, self.under, self.over, *self.slots
        )

    def fields(self):
        raw = self.raw()
        return (
            self.count, self.sum, raw[16:32], raw[32:48], raw[48:56],
            self.under, self.over, raw[64:],
        )  # fmt: skip


@pytest.mark.parametrize("form", ["raw", "fields"])
def test_kernel_readings_add_up_over_epochs_cpus_and_wraps(form):
    rnd = random.Random(form)
    cpus = [Kernel() for _ in range(3)]
    reader = KernelHistogram()
    whole = Histogram("ns", 2, 28, 139)
    for epoch in range(1, 12):
        part = Histogram("ns", 2, 28, 139)
        for _ in range(rnd.choice((0, 1, 50))):
            value = int(rnd.lognormvariate(12, 6))
            rnd.choice(cpus).add(value, epoch)
            part.add(value)
            whole.add(value)
        delta = reader.update([getattr(cpu, form)() for cpu in cpus], epoch)
        assert delta == part
        assert reader.total == whole


def test_kernel_counters_wrap():
    cpu = Kernel(wrap=0xFFFFFFFE)
    reader = KernelHistogram()
    reader.update([cpu.raw()], 1)
    for value in (10, 300, 300, 300, 2**50):
        cpu.add(value, 2)
    delta = reader.update([cpu.raw()], 2)
    assert (delta.count, delta.under, delta.over, delta.slots) == (5, 1, 1, {28: 3})
    assert (delta.min, delta.max) == (10, 2**50)


def test_extremes_without_epochs_are_in_the_total_only():
    cpu = Kernel()
    cpu.add(1000, 1)
    reader = KernelHistogram()
    delta = reader.update([cpu.fields()])
    assert (delta.count, delta.min, delta.max) == (1, None, None)
    assert (reader.total.min, reader.total.max) == (1000, 1000)


def test_old_extremes_of_an_idle_cpu_are_not_passed_on():
    busy, idle = Kernel(), Kernel()
    idle.add(2**30, 1)
    reader = KernelHistogram()
    reader.update([busy.raw(), idle.raw()], 1)
    for epoch in (2, 3):
        busy.add(1000 * epoch, epoch)
        delta = reader.update([busy.raw(), idle.raw()], epoch)
        assert (delta.min, delta.max) == (1000 * epoch, 1000 * epoch)
    assert (reader.total.min, reader.total.max) == (2000, 2**30)


def test_a_sample_of_the_next_epoch_is_inside_the_extremes():
    cpu = Kernel()
    cpu.add(1000, 1)
    cpu.add(9000, 2)  # between the switch of the epoch and the reading
    delta = KernelHistogram().update([cpu.raw()], 1)
    assert (delta.min, delta.max) == (1000, 9000)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError):
        h.decode_kernel(b"\0" * 504)
    with pytest.raises(ValueError):
        h.decode_kernel((*Kernel().fields()[:7], b""))
    assert h.KERNEL_BYTES == 512


def test_values_of_all_cpus_in_one_piece():
    cpus = [Kernel(wrap=n) for n in range(3)]
    for stride in (512, 520):
        blob = b"".join(cpu.raw().ljust(stride, b"x") for cpu in cpus)
        assert h.kernel_cells(blob, stride) == [cpu.raw() for cpu in cpus]
