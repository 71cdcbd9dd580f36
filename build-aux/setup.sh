#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Bring this machine to where it can build and test.
#
# usage: setup.sh packages build|test    distribution packages, where apt-get exists
#        setup.sh python build|test      the virtual environment .venv and what goes into it
#
# Nothing is done, and no network is needed, when nothing is missing.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

missing=()

# want PACKAGE COMMAND...: the package is missing when the command fails
want()
{
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}

packages_build()
{
	want clang command -v clang
	want llvm command -v llvm-strip
	want ninja-build command -v ninja
	want pkg-config command -v pkg-config
	want libbpf-dev pkg-config --atleast-version=0.8 libbpf
	want python3-venv python3 -c 'import ensurepip, venv'
	# What the demonstration makes its network and its virtual machine of.
	want gcc command -v gcc
	want libc6-dev test -e /usr/include/stdio.h
	want iproute2 command -v ip
	want iputils-ping command -v ping
}

packages_test()
{
	packages_build
	want bpftool command -v bpftool
	want busybox-static busybox true
	want conntrack command -v conntrack
	want ethtool command -v ethtool
	want git command -v git
	want kmod command -v modprobe
	want man-db command -v man
	want nftables command -v nft
	want openvswitch-switch command -v ovs-vswitchd
	want pahole command -v pahole
	want python3-dev python3 -c \
		'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'
	want qemu-system-x86 command -v qemu-system-x86_64
	want rpm command -v rpmbuild
	want tcpdump command -v tcpdump
	# The arm64 guest: its emulator, and a compiler for the helpers it runs.
	want qemu-system-arm command -v qemu-system-aarch64
	want gcc-aarch64-linux-gnu command -v aarch64-linux-gnu-gcc
	want libc6-dev-arm64-cross test -e /usr/aarch64-linux-gnu/include/stdio.h
	want xz-utils command -v xz
	want zstd command -v zstd
}

install_packages()
{
	[ ${#missing[@]} -gt 0 ] || return 0
	if ! command -v apt-get >/dev/null; then
		echo "setup: missing on this machine (names of Debian packages): ${missing[*]}" >&2
		exit 1
	fi
	local as_root=()
	if [ "$(id -u)" != 0 ]; then
		if ! command -v sudo >/dev/null; then
			echo "setup: needs root: apt-get install ${missing[*]}" >&2
			exit 1
		fi
		as_root=(sudo)
	fi
	echo "setup: installing ${missing[*]}"
	"${as_root[@]}" apt-get update -q
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get install -q -y --no-install-recommends "${missing[@]}"
}

install_python()
{
	local extras=() wanted
	[ "$1" = build ] || extras=("$1")
	# An interpreter that has gone (the distribution's was upgraded) leaves a broken link.
	.venv/bin/python -c pass 2>/dev/null || python3 -m venv --clear .venv
	wanted=$(.venv/bin/python build-aux/requirements.py "${extras[@]}")
	if [ "$wanted" != "$(cat ".venv/$1.requirements" 2>/dev/null)" ]; then
		echo "setup: installing Python packages for '$1' into .venv"
		.venv/bin/python -m pip install --quiet --disable-pip-version-check \
			--requirement /dev/stdin <<<"$wanted"
		echo "$wanted" >".venv/$1.requirements"
	fi
}

case "$*" in
"packages build") packages_build && install_packages ;;
"packages test") packages_test && install_packages ;;
"python build") install_python build ;;
"python test") install_python test ;;
*)
	sed -n '/^# usage/,/^#$/s/^# //p' "$0" >&2
	exit 2
	;;
esac
