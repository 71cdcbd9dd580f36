# SPDX-License-Identifier: GPL-2.0-only
"""Laboratory: namespaces, topologies, fake virtual machines and faults for tests that need root."""
