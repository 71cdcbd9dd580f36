# SPDX-License-Identifier: GPL-2.0-only
"""Facts about this host, read when asked for and not before."""
