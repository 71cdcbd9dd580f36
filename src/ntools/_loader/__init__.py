# SPDX-License-Identifier: GPL-2.0-only
"""Loader: BPF objects through the system's libbpf. Knows no packet, tool or output."""

from .files import build_id
from .kernel import KernelFacts, facts
from .lib import library
from .maps import MapView
from .obj import BpfObject, Candidate, Point, PointReport, Refusal
from .stats import RunStatistics

__all__ = [
    "BpfObject",
    "Candidate",
    "KernelFacts",
    "MapView",
    "Point",
    "PointReport",
    "Refusal",
    "RunStatistics",
    "build_id",
    "facts",
    "library",
]
