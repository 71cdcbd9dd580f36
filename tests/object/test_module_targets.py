# SPDX-License-Identifier: GPL-2.0-only
"""What the loader tells libbpf of targets in modules is what another reader finds there."""

from __future__ import annotations

import pytest
from object.btfread import FUNC, TYPEDEF
from object.test_relocations import kernel
from vm.common import CACHE, kernels

from ntools._loader.external import find_text, text_section
from ntools._loader.lib import library
from ntools._loader.modules import ModuleTargets, type_ids


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


class Host:
    """A kernel that loses one module and shows nonsense for another while it is asked."""

    has_own_btf = True
    btf_modules = ("a_module_that_went", "a_module_of_nonsense", "openvswitch", "tun")

    def __init__(self, place, nonsense):
        self.place, self.nonsense = place, nonsense
        self.own_btf = (place / "vmlinux").read_bytes()
        parts = [(place / name).read_bytes() for name in self.btf_modules[2:]]
        self.module_names = b"\0".join(part[slice(*text_section(part))] for part in parts)

    def module_path(self, name):
        return str(self.nonsense if "nonsense" in name else self.place / name)


def test_a_module_that_went_costs_no_other_its_target(tmp_path, monkeypatch):
    name = "6.12"
    known = kernel(name)
    (tmp_path / "nonsense").write_bytes(b"\x9f\xeb")
    host = Host(CACHE / "kernels" / name / "btf", tmp_path / "nonsense")
    targets = ModuleTargets(library())
    monkeypatch.setattr(targets, "_descriptor", host.btf_modules.index)
    registered = []
    monkeypatch.setattr(targets, "_c", Quiet(targets._c, registered))
    sections = ("?fentry/tun_net_xmit", "fentry/ovs_vport_receive", "kprobe/tun_get_user")
    targets.expect((*sections, "fentry/dev_hard_start_xmit"), host)
    assert registered == [b"fentry/tun_net_xmit", b"fentry/ovs_vport_receive"]
    targets._resolve()
    assert targets._found == {
        "fentry/tun_net_xmit": (known.modules["tun"].find("tun_net_xmit", FUNC), 3),
        "fentry/ovs_vport_receive": (
            known.modules["openvswitch"].find("ovs_vport_receive", FUNC), 2),
    }  # fmt: skip


class Quiet:
    """libbpf without the registration, which lasts as long as the process."""

    def __init__(self, c, registered):
        self._real, self._registered = c, registered

    def __getattr__(self, name):
        return getattr(self._real, name)

    def libbpf_register_prog_handler(self, section, *_):
        self._registered.append(section)
        return 0
