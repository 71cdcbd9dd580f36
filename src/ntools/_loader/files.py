# SPDX-License-Identifier: GPL-2.0-only
"""The object files that are installed with us."""

import os
import zlib

from ntools.errors import EnvironmentProblem

from .kernel import facts

__all__ = ["build_id", "fingerprint", "object_path"]


def object_path(name: str, arch: str) -> str:
    """File of an object by its name; a name that ends in ".o" is the file itself.

    :raises EnvironmentProblem: no such object for this architecture.
    """
    if name.endswith(".o"):
        return name
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.path.join(here, "bpf", "{}.{}.bpf.o".format(name, arch))
    if not os.path.exists(path):
        raise EnvironmentProblem(
            "no BPF object '{}' for architecture '{}' ('{}'). Reinstall ntools.".format(
                name, arch, path
            )
        )
    return path


def build_id(name: str) -> str:
    """Fingerprint of an object, the ``build`` of header records. Needs no libbpf.

    :raises EnvironmentProblem: no such object for this architecture.
    """
    with open(object_path(name, facts().arch), "rb") as file:
        return fingerprint(file.read())


def fingerprint(data: bytes) -> str:
    """Fingerprint of an object file's content."""
    return "{:08x}".format(zlib.crc32(data))
