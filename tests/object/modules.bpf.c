// SPDX-License-Identifier: GPL-2.0-only
/*
 * modules - reads fields of structs that only modules describe
 *
 * Attaches: functions of openvswitch, tun and vhost_net
 * Keeps:    ports (device -> its number in the datapath), queues
 *
 * For tests of type information that was joined from a kernel and its modules.
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>

#include "nt_attach.h"
#include "nt_map.h"

#define NETDEV_ALIGN 32

struct tun_struct {
	unsigned int numqueues;
	struct net_device *dev;
} __attribute__((preserve_access_index));

struct vhost_virtqueue {
	unsigned int num;
} __attribute__((preserve_access_index));

struct vhost_net_virtqueue {
	struct vhost_virtqueue vq;
} __attribute__((preserve_access_index));

struct vhost_net {
	struct vhost_net_virtqueue vqs[2];
} __attribute__((preserve_access_index));

struct nt_modules_cfg {
	__u64 enabled;
};

struct nt_manifest {
	struct nt_modules_cfg cfg;
};

const struct nt_manifest nt_manifest SEC(".ntools") = {};

NT_MAP(nt_cfg, ARRAY, 1, __u32, struct nt_modules_cfg);
NT_MAP(ports, HASH, 64, __u32, __u32);
/* Device of a tap -> queues in use; 0 -> entries of a ring of vhost. */
NT_MAP(queues, HASH, 64, __u32, __u32);

NT_ENTRY(ovs_port, ovs_vport_receive, struct vport *, vport, struct sk_buff *, skb)
{
	__u32 number, ifindex;

	if (!vport || !skb)
		return 0;
	number = BPF_CORE_READ(vport, port_no);
	ifindex = BPF_CORE_READ(vport, dev, ifindex);
	bpf_map_update_elem(&ports, &ifindex, &number, BPF_ANY);
	return 0;
}

NT_ENTRY(tap, tun_net_xmit, struct sk_buff *, skb, struct net_device *, dev)
{
	/* netdev_priv() */
	__u64 size = (bpf_core_type_size(struct net_device) + NETDEV_ALIGN - 1) & -NETDEV_ALIGN;
	struct tun_struct *tun = (void *)dev + size;
	__u32 ifindex, count;

	if (!skb || !dev || BPF_CORE_READ(tun, dev) != dev)
		return 0;
	ifindex = BPF_CORE_READ(dev, ifindex);
	count = BPF_CORE_READ(tun, numqueues);
	bpf_map_update_elem(&queues, &ifindex, &count, BPF_ANY);
	return 0;
}

NT_ENTRY(ring, handle_rx, struct vhost_net *, net)
{
	__u32 zero = 0, entries;

	if (!net)
		return 0;
	entries = BPF_CORE_READ(net, vqs[0].vq.num);
	bpf_map_update_elem(&queues, &zero, &entries, BPF_ANY);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
