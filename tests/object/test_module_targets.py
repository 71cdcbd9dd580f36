# SPDX-License-Identifier: GPL-2.0-only
"""What the loader tells libbpf of targets in modules is what another reader finds there."""

from __future__ import annotations

import pytest
from object.btfread import FUNC, TYPEDEF
from object.test_relocations import kernel
from vm.common import CACHE, kernels

from ntools._loader.external import find_text, text_section
from ntools._loader.lib import library
from ntools._loader.modules import type_ids


@pytest.mark.parametrize("name", list(kernels()))
def test_functions_and_typedefs_of_every_module(name):
    known = kernel(name)
    if not known.modules:
        pytest.skip(f"kernel {name} keeps no type information of modules")
    place = CACHE / "kernels" / name / "btf"
    core = (place / "vmlinux").read_bytes()
    start, end = text_section(core)
    c = library().c
    base = c.btf__new(core, len(core))
    told = 0
    try:
        for module, types in known.modules.items():
            wanted = {
                (text, kind): (text, kind)
                for kind in (FUNC, TYPEDEF)
                for text in list(types.names(kind))[::12]
                if find_text(core, text) < 0
            }
            expected = {key: types.find(*key) for key in wanted}
            assert type_ids(c, base, end - start, str(place / module), wanted) == expected, module
            told += len(expected)
            other = {"x": ("no_such_function", FUNC)}
            assert type_ids(c, base, end - start, str(place / module), other) == {}
    finally:
        c.btf__free(base)
    assert told > 200
