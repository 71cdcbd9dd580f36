# SPDX-License-Identifier: GPL-2.0-only
"""Command lines: shared options, errors, exit status, the ``ntools`` umbrella."""
