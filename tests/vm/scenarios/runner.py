# SPDX-License-Identifier: GPL-2.0-only
"""What the other scenarios rely on: the guest is as the runner promises."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from lab.scenario import Context, Skip, scenario


@scenario()
def guest_is_prepared(lab: Context) -> None:
    """Clock source, memory lock limit, file systems, device nodes and CPUs."""
    if "NTOOLS_VM_KERNEL" not in os.environ:
        raise Skip("not in a guest of the runner")
    assert resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    assert os.cpu_count() == 2
    mounts = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()}
    needed = {"/sys/kernel/tracing", "/sys/fs/bpf", "/sys/fs/cgroup", "/dev/shm", "/run/out"}
    assert needed <= mounts, needed - mounts
    for node in ("/dev/net/tun", "/dev/vhost-net", "/dev/fd/0"):
        assert os.path.exists(node), node
    if lab.arch == "x86_64":
        source = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        assert Path(source).read_text().strip() == "tsc"
