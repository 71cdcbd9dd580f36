/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_compat - accessors for what differs between kernels
 *
 * `direct` is a constant: 1 where the verifier knows the type of the pointer (tp_btf, fentry).
 */
#ifndef NT_COMPAT_H
#define NT_COMPAT_H

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#include "nt_attach.h"

/* The tag a driver or the VLAN code left in the skb; proto is 0 when there is none. */
struct nt_vlan_tag {
	__u64 proto;
	__u64 tci;
};

#define NT_VLAN_CFI 0x1000

/*
 * Presence of the tag: since v6.2 a non-zero vlan_all (Linux commit 354259fa73e2 "net: remove
 * skb->vlan_present"; vlan_all and no vlan_present found in BTF of 6.12, 6.18, 7.2), before that
 * the bit vlan_present (found in BTF of 5.10 and 6.1), and on 4.19, whose BTF has neither, bit 12
 * of vlan_tci.
 */
static __always_inline void nt_vlan_acc(struct sk_buff *skb, const int direct,
					struct nt_vlan_tag *tag)
{
	tag->proto = 0;
	tag->tci = 0;
	if (bpf_core_field_exists(skb->vlan_all)) {
		__u32 all = NT_GET(skb, vlan_all);

		if (!all)
			return;
		tag->proto = bpf_ntohs((__u16)all);
		tag->tci = all >> 16;
		return;
	}
	if (bpf_core_field_exists(struct sk_buff___v6_1, vlan_present)) {
		struct sk_buff___v6_1 *old = (void *)skb;

		if (!(direct ? BPF_CORE_READ_BITFIELD(old, vlan_present) :
			       BPF_CORE_READ_BITFIELD_PROBED(old, vlan_present)))
			return;
		tag->tci = NT_GET(skb, vlan_tci);
	} else {
		tag->tci = NT_GET(skb, vlan_tci);
		if (!(tag->tci & NT_VLAN_CFI))
			return;
	}
	tag->proto = bpf_ntohs(NT_GET(skb, vlan_proto));
}

#endif
