// SPDX-License-Identifier: GPL-2.0-only
/*
 * fakevm_backend - frames in and out: plain tap, or a virtio driver over /dev/vhost-net
 *
 * The vhost variant is a driver in user space: both rings and all buffers live in one shared
 * mapping whose guest-physical addresses are its user addresses, so that descriptors carry plain
 * pointers. No EVENT_IDX is offered: every used buffer signals, which makes the counts exact.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/vhost.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fakevm.h"

#define RING_ENTRIES 256
#define BUFFER_BYTES 2048

struct queue {
	struct vring ring;
	uint8_t *buffers;
	uint16_t used_seen;
	uint16_t in_flight;	/* tx only */
	int kick;
	int call;
};

static int tap_fd;
static struct queue rx, tx;
static uint8_t plain[VNET_HDR_BYTES + FRAME_BYTES];
static int vhost_fd;

static void *offset(uint8_t **next, size_t bytes)
{
	void *start = *next;

	*next += (bytes + 4095) & ~4095UL;
	return start;
}

static void kick(struct queue *queue, uint64_t *counter)
{
	uint64_t one = 1;

	__sync_synchronize();
	if (queue->ring.used->flags & VRING_USED_F_NO_NOTIFY)
		return;
	if (write(queue->kick, &one, sizeof(one)) == sizeof(one))
		(*counter)++;
}

static void post(struct queue *queue, uint16_t id, uint32_t bytes, uint16_t flags)
{
	struct vring *ring = &queue->ring;

	ring->desc[id].addr = (uintptr_t)(queue->buffers + (size_t)id * BUFFER_BYTES);
	ring->desc[id].len = bytes;
	ring->desc[id].flags = flags;
	ring->avail->ring[ring->avail->idx % RING_ENTRIES] = id;
	__sync_synchronize();
	ring->avail->idx++;
}

static void queue_setup(struct queue *queue, unsigned int index)
{
	struct vhost_vring_state state = { .index = index, .num = RING_ENTRIES };
	struct vhost_vring_addr address = {
		.index = index,
		.desc_user_addr = (uintptr_t)queue->ring.desc,
		.avail_user_addr = (uintptr_t)queue->ring.avail,
		.used_user_addr = (uintptr_t)queue->ring.used,
	};
	struct vhost_vring_file file = { .index = index };

	if (ioctl(vhost_fd, VHOST_SET_VRING_NUM, &state))
		die("VHOST_SET_VRING_NUM");
	state.num = 0;
	if (ioctl(vhost_fd, VHOST_SET_VRING_BASE, &state))
		die("VHOST_SET_VRING_BASE");
	if (ioctl(vhost_fd, VHOST_SET_VRING_ADDR, &address))
		die("VHOST_SET_VRING_ADDR");
	queue->kick = eventfd(0, EFD_NONBLOCK);
	queue->call = eventfd(0, EFD_NONBLOCK);
	file.fd = queue->kick;
	if (queue->kick < 0 || ioctl(vhost_fd, VHOST_SET_VRING_KICK, &file))
		die("VHOST_SET_VRING_KICK");
	file.fd = queue->call;
	if (queue->call < 0 || ioctl(vhost_fd, VHOST_SET_VRING_CALL, &file))
		die("VHOST_SET_VRING_CALL");
}

static void vhost_open(void)
{
	size_t ring_bytes = (vring_size(RING_ENTRIES, 4096) + 4095) & ~4095UL;
	size_t bytes = 2 * (ring_bytes + RING_ENTRIES * BUFFER_BYTES);
	struct vhost_memory *memory;
	uint64_t features;
	uint8_t *base, *next;
	unsigned int index;

	vhost_fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);
	if (vhost_fd < 0)
		die("/dev/vhost-net");
	if (ioctl(vhost_fd, VHOST_SET_OWNER, NULL))
		die("VHOST_SET_OWNER");
	if (ioctl(vhost_fd, VHOST_GET_FEATURES, &features))
		die("VHOST_GET_FEATURES");
	features &= (1ULL << VIRTIO_F_VERSION_1) | (1ULL << VIRTIO_NET_F_MRG_RXBUF);
	if (ioctl(vhost_fd, VHOST_SET_FEATURES, &features))
		die("VHOST_SET_FEATURES");

	base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED)
		die("mmap");
	memory = calloc(1, sizeof(*memory) + sizeof(memory->regions[0]));
	if (!memory)
		die("calloc");
	memory->nregions = 1;
	memory->regions[0].guest_phys_addr = (uintptr_t)base;
	memory->regions[0].userspace_addr = (uintptr_t)base;
	memory->regions[0].memory_size = bytes;
	if (ioctl(vhost_fd, VHOST_SET_MEM_TABLE, memory))
		die("VHOST_SET_MEM_TABLE");
	free(memory);

	next = base;
	vring_init(&rx.ring, RING_ENTRIES, offset(&next, ring_bytes), 4096);
	vring_init(&tx.ring, RING_ENTRIES, offset(&next, ring_bytes), 4096);
	rx.buffers = offset(&next, RING_ENTRIES * BUFFER_BYTES);
	tx.buffers = offset(&next, RING_ENTRIES * BUFFER_BYTES);
	queue_setup(&rx, 0);
	queue_setup(&tx, 1);
	/* Buffers must be there before the backend is set: the worker starts at once. */
	for (index = 0; index < options.rx_buffers; index++)
		post(&rx, index, BUFFER_BYTES, VRING_DESC_F_WRITE);
	for (index = 0; index < 2; index++) {
		struct vhost_vring_file file = { .index = index, .fd = tap_fd };

		if (ioctl(vhost_fd, VHOST_NET_SET_BACKEND, &file))
			die("VHOST_NET_SET_BACKEND");
	}
}

void backend_open(void)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int header_bytes = VNET_HDR_BYTES;

	tap_fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (tap_fd < 0)
		die("/dev/net/tun");
	strncpy(request.ifr_name, options.tap, sizeof(request.ifr_name) - 1);
	if (ioctl(tap_fd, TUNSETIFF, &request))
		die("TUNSETIFF");
	if (ioctl(tap_fd, TUNSETVNETHDRSZ, &header_bytes))
		die("TUNSETVNETHDRSZ");
	if (options.vhost)
		vhost_open();
}

int backend_rx_fd(void)
{
	return options.vhost ? rx.call : tap_fd;
}

int backend_tx_fd(void)
{
	return options.vhost ? tx.call : -1;
}

void backend_rx_event(void)
{
	uint64_t signals;

	if (options.vhost && read(rx.call, &signals, sizeof(signals)) == sizeof(signals))
		counters.calls_rx += signals;
}

void backend_tx_event(void)
{
	uint64_t signals;

	if (read(tx.call, &signals, sizeof(signals)) == sizeof(signals))
		counters.calls_tx += signals;
}

bool backend_pending(void)
{
	struct pollfd tap = { .fd = tap_fd, .events = POLLIN };

	if (!options.vhost)
		return poll(&tap, 1, 0) == 1;
	return rx.used_seen != *(volatile uint16_t *)&rx.ring.used->idx;
}

int backend_receive(uint8_t **frame)
{
	struct vring_used_elem *used;
	ssize_t bytes;

	if (!options.vhost) {
		bytes = read(tap_fd, plain, sizeof(plain));
		*frame = plain + VNET_HDR_BYTES;
	} else {
		if (!backend_pending())
			return 0;
		__sync_synchronize();
		used = &rx.ring.used->ring[rx.used_seen % RING_ENTRIES];
		bytes = used->len;
		*frame = rx.buffers + (size_t)used->id * BUFFER_BYTES + VNET_HDR_BYTES;
	}
	if (bytes <= VNET_HDR_BYTES)
		return 0;
	counters.rx++;
	counters.rx_bytes += bytes - VNET_HDR_BYTES;
	return bytes - VNET_HDR_BYTES;
}

void backend_release(void)
{
	if (!options.vhost)
		return;
	post(&rx, rx.ring.used->ring[rx.used_seen++ % RING_ENTRIES].id, BUFFER_BYTES,
	     VRING_DESC_F_WRITE);
	kick(&rx, &counters.kicks_rx);
}

static bool vhost_send(const uint8_t *frame, size_t bytes)
{
	static uint16_t next;
	uint16_t done = *(volatile uint16_t *)&tx.ring.used->idx;
	uint8_t *buffer;

	tx.in_flight -= (uint16_t)(done - tx.used_seen);
	tx.used_seen = done;
	if (tx.in_flight == RING_ENTRIES) {
		counters.nobuf++;
		return false;
	}
	/* The worker completes in order, so that descriptors can be taken in a circle. */
	buffer = tx.buffers + (size_t)next * BUFFER_BYTES;
	memset(buffer, 0, VNET_HDR_BYTES);
	memcpy(buffer + VNET_HDR_BYTES, frame, bytes);
	post(&tx, next, bytes + VNET_HDR_BYTES, 0);
	next = (next + 1) % RING_ENTRIES;
	tx.in_flight++;
	kick(&tx, &counters.kicks_tx);
	return true;
}

static bool plain_send(const uint8_t *frame, size_t bytes)
{
	uint8_t out[VNET_HDR_BYTES + FRAME_BYTES] = { 0 };

	memcpy(out + VNET_HDR_BYTES, frame, bytes);
	if (write(tap_fd, out, bytes + VNET_HDR_BYTES) >= 0)
		return true;
	counters.write_failed++;
	return false;
}

void backend_send(const uint8_t *frame, size_t bytes)
{
	if (bytes > BUFFER_BYTES - VNET_HDR_BYTES)
		return;
	if (options.vhost ? vhost_send(frame, bytes) : plain_send(frame, bytes)) {
		counters.tx++;
		counters.tx_bytes += bytes;
	}
}
