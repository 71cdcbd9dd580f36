# SPDX-License-Identifier: GPL-2.0-only
"""ntools: where a packet is lost or late on a virtualization host."""

__version__ = "0.1.0"
