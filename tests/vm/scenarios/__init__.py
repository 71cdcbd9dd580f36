# SPDX-License-Identifier: GPL-2.0-only
"""The scenarios of the VM matrix; every module here is imported by lab.scenario.load_all()."""
