# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's run statistics of BPF programs: a switch for all programs of the host."""

import os
from typing import Optional

from .kernel import refused_by_environment
from .lib import library

__all__ = ["RunStatistics"]

_RUN_TIME = 0  # BPF_STATS_RUN_TIME
_SYSCTL = "/proc/sys/kernel/bpf_stats_enabled"


class RunStatistics:
    """Switches the statistics on while they are needed.

    They tax every BPF program of the host, so they are ours only for a moment. The switch is a
    file descriptor (kernels from 5.8 on): it goes off with the process, and nobody else's is
    touched.
    """

    def __init__(self) -> None:
        self._fd: Optional[int] = None
        self._refused = "stats" in refused_by_environment()

    @property
    def on(self) -> bool:
        """Whether we hold the switch."""
        return self._fd is not None

    @property
    def foreign(self) -> bool:
        """Whether somebody else has switched them on for good."""
        if self._refused:
            return False
        try:
            with open(_SYSCTL) as file:
                return file.read().strip() == "1"
        except OSError:
            return False

    def start(self) -> bool:
        """Switch on; False where the kernel or the library cannot."""
        if self._fd is None and not self._refused:
            try:
                descriptor = int(library().c.bpf_enable_stats(_RUN_TIME))
            except AttributeError:  # a library without the function
                descriptor = -1
            if descriptor >= 0:
                self._fd = descriptor
        return self.on

    def stop(self) -> None:
        """Let go of the switch."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
