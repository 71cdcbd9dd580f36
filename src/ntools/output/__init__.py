# SPDX-License-Identifier: GPL-2.0-only
"""Records and the ways to show them."""
