# SPDX-License-Identifier: GPL-2.0-only
"""The VM test runner: kernels from distribution packages, booted in QEMU."""
