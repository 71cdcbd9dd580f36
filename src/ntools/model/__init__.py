# SPDX-License-Identifier: GPL-2.0-only
"""What packets, stages, numbers and times are: pure, without kernel, host or output."""
