# SPDX-License-Identifier: GPL-2.0-only
"""One module per command: its options, what it runs, and its view of the records."""
