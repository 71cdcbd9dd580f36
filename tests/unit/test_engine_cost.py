# SPDX-License-Identifier: GPL-2.0-only
"""When BPF run time is measured, and what is made of the figures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ntools.engine.cost import CostMeter


class Statistics:
    def __init__(self, works=True, foreign=False):
        self.works, self.foreign, self.on = works, foreign, False

    def start(self):
        self.on = self.works
        return self.on

    def stop(self):
        self.on = False


class Programs:
    """One program, 1000 runs/s of 300 ns; counted while the statistics are on."""

    def __init__(self, statistics, attach="raw_tp"):
        self.statistics = statistics
        self.report = [SimpleNamespace(point="p", attach=attach)]
        self.ns = self.runs = 0

    def pass_second(self):
        if self.statistics.on or self.statistics.foreign:
            self.runs += 1000
            self.ns += 300_000

    def programs(self):
        return [("p", self.ns, self.runs, 0)]


def meter_of(statistics, **options):
    programs = Programs(statistics, options.pop("attach", "raw_tp"))
    meter = CostMeter(programs, statistics=statistics, cpus=2, **options)
    meter.begin(0.0)
    return meter, programs


def run(meter, programs, seconds, hold=False, start=0):
    on = []
    for second in range(start + 1, start + seconds + 1):
        on.append(int(programs.statistics.on))
        programs.pass_second()
        meter.tick(float(second), hold)
    return "".join(map(str, on))


def test_three_seconds_then_one_of_fifteen():
    meter, programs = meter_of(Statistics())
    assert run(meter, programs, 49) == "111" + ("0" * 14 + "1") * 3 + "0"
    assert meter.source == "kernel"
    assert meter.cost.run_ns == 300 and meter.cost.runs_per_s == 1000
    assert meter.cost.pct == pytest.approx(100 * 1000 * 320 / 2e9)
    fields = meter.fields()
    assert fields["runs"] == 49000 and fields["bpf_ns"] == 49000 * 300
    meter.close()
    assert not programs.statistics.on


def test_stays_on_while_a_decision_rests_on_it():
    meter, programs = meter_of(Statistics())
    assert run(meter, programs, 20, hold=True) == "1" * 20
    assert run(meter, programs, 5, start=20) == "10000"


def test_way_into_the_program_counts():
    meter, programs = meter_of(Statistics(), attach="kprobe")
    run(meter, programs, 3)
    assert meter.cost.pct == pytest.approx(100 * 1000 * 400 / 2e9)


def test_statistics_of_somebody_else_are_used_and_left_alone():
    meter, programs = meter_of(Statistics(works=False, foreign=True))
    run(meter, programs, 30)
    assert meter.source == "kernel" and not programs.statistics.on
    assert meter.fields()["runs"] == 30000


@pytest.mark.parametrize("works, duty", [(False, (1.0, 15.0)), (True, (0.0, 1.0))])
def test_table_where_nothing_is_measured(works, duty):
    statistics = Statistics(works)
    counted = iter(range(0, 100_000, 2000))
    meter, programs = meter_of(statistics, duty=duty, runs=lambda: next(counted))
    run(meter, programs, 5)
    assert meter.source == "table" and not statistics.on
    assert (meter.cost.run_ns, meter.cost.runs_per_s) == (500, 2000)
    assert meter.cost.pct == pytest.approx(100 * 2000 * 600 / 2e9)


def test_nothing_is_said_before_the_first_figure():
    meter, _ = meter_of(Statistics())
    assert meter.fields() == {}
    assert meter.tick(0.01) is None


def test_records_have_the_mean_of_the_run():
    meter, programs = meter_of(Statistics())
    run(meter, programs, 3)
    programs.pass_second = lambda: None  # nothing runs any more
    run(meter, programs, 27, start=3)
    fields = meter.fields()
    assert meter.cost.runs_per_s == 0
    assert 3000 <= fields["runs"] < 30000  # held between the windows, then measured as nothing
    assert fields["bpf_run_ns"] == 300
    assert fields["bpf_runs_per_s"] == pytest.approx(fields["runs"] / 30, rel=0.01)
    assert fields["bpf_pct"] == pytest.approx(fields["runs"] * 320 / 2e9 / 30 * 100, rel=0.01)
