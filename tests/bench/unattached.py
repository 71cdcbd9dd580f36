#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Run a BCC tool on a kernel without kprobes: all of its start but the attach itself.

usage: unattached.py SCRIPT [ARGUMENT...]

What its probes would attach is compiled, loaded and verified. See reference.py.
"""

import runpy
import sys

from bcc import BPF


def _load_only(self, event=b"", event_off=0, fn_name=b"", event_re=b"", **_options):
    self.load_func(fn_name.encode() if isinstance(fn_name, str) else fn_name, BPF.KPROBE)


BPF.attach_kprobe = BPF.attach_kretprobe = _load_only
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
