# SPDX-License-Identifier: GPL-2.0-only
"""Runs of BPF objects: configure, start, poll, sweep, account, stop."""
