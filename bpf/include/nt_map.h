/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_map - a BPF map in one line
 */
#ifndef NT_MAP_H
#define NT_MAP_H

#include <bpf/bpf_helpers.h>

#define NT_MAP(name, kind, entries, key_type, value_type)                                          \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_##kind);                                                 \
		__uint(max_entries, entries);                                                      \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
	} name SEC(".maps")

#endif
