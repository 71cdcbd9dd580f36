# SPDX-License-Identifier: GPL-2.0-only
"""Facts about hosts made of files."""

import pytest

from ntools.host.about import about


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_everything_known(tmp_path):
    write(
        tmp_path,
        {
            "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
            "proc/sys/kernel/random/boot_id": "c763b3b9-dcc9-47a5-a57a-80c97750a699\n",
            "etc/os-release": 'NAME="openEuler"\nID="openEuler"\nVERSION_ID="20.03"\n\n#x\n',
            "sys/devices/system/node/online": "0-1,3\n",
            "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu vme hypervisor lahf_lm\n",
        },
    )
    facts = about(tmp_path)
    assert facts.distro == "openEuler 20.03"
    assert facts.numa_nodes == 3
    assert facts.virt == "hypervisor"
    assert facts.boot_id == "c763b3b9-dcc9-47a5-a57a-80c97750a699"
    assert len(facts.host_id) == 32 and facts.host_id != "0123456789abcdef0123456789abcdef"
    assert facts.host_id == about(tmp_path).host_id
    write(tmp_path, {"etc/machine-id": "1123456789abcdef0123456789abcdef\n"})
    assert facts.host_id != about(tmp_path).host_id


def test_unknown_is_none(tmp_path):
    facts = about(tmp_path)
    assert (facts.host_id, facts.boot_id, facts.distro, facts.numa_nodes, facts.virt) == (None,) * 5
    assert facts.host and facts.kernel and facts.arch and facts.cpus


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"proc/cpuinfo": "flags\t: fpu vme\n"}, "bare"),
        ({"sys/class/dmi/id/sys_vendor": "QEMU\n"}, "hypervisor"),
        ({"sys/class/dmi/id/sys_vendor": "Huawei\n"}, "bare"),
        ({"proc/device-tree/hypervisor/compatible": "linux,kvm"}, "hypervisor"),
        ({"sys/hypervisor/type": "xen\n"}, "hypervisor"),
    ],
)
def test_virt(tmp_path, files, expected):
    write(tmp_path, files)
    assert about(tmp_path).virt == expected


def test_distro_without_version(tmp_path):
    write(tmp_path, {"usr/lib/os-release": "ID=arch\n"})
    assert about(tmp_path).distro == "arch"
