/* SPDX-License-Identifier: GPL-2.0-only */
/* fakevm - shared declarations of the fake virtual machine */
#ifndef FAKEVM_H
#define FAKEVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VNET_HDR_BYTES 12
#define FRAME_BYTES 2048
#define MAX_PORTS 16

#define FAKEVM_COUNTERS(X)                                                                  \
	X(rx) X(tx) X(rx_bytes) X(tx_bytes) X(tagged)                                       \
	X(kicks_rx) X(kicks_tx) X(calls_rx) X(calls_tx) X(nobuf) X(write_failed)            \
	X(arp) X(ndp) X(icmp_echo) X(icmp_reply) X(icmp6_echo) X(icmp6_reply)               \
	X(udp_echo) X(udp_closed) X(udp_sunk) X(udp_reply) X(foreign) X(other)              \
	X(resolve_sent) X(udp_sent) X(ping_sent)

struct counters {
#define X(name) uint64_t name;
	FAKEVM_COUNTERS(X)
#undef X
};

struct ports {
	unsigned int count;
	uint16_t port[MAX_PORTS];
};

struct options {
	const char *tap;
	uint8_t mac[6];
	uint8_t ip[4];
	uint8_t ip6[16];
	bool vhost;
	unsigned int rx_buffers;
	int vlan;		/* tag of frames the VM starts by itself, -1 without */
	struct ports closed;	/* answered with port unreachable */
	struct ports sink;	/* counted, not answered */
};

/* What the VM sends by itself: one job at a time. */
struct job {
	bool active;
	bool icmp;		/* echo requests instead of UDP */
	bool six;
	uint8_t dst[16];
	uint16_t dst_port;
	uint16_t src_port;
	uint16_t src_port_step;
	uint32_t count;
	uint32_t sent;
	uint32_t size;
	uint64_t gap_ns;
	uint64_t next_ns;
	uint64_t give_up_ns;
};

extern struct options options;
extern struct counters counters;
extern struct job job;

void die(const char *what);
uint64_t now_ns(void);

/* fakevm_backend.c: the tap itself, or a virtio driver in front of /dev/vhost-net */
void backend_open(void);
int backend_rx_fd(void);
int backend_tx_fd(void);	/* -1 for the plain tap */
void backend_rx_event(void);	/* count the signals of the rx call eventfd */
void backend_tx_event(void);
bool backend_pending(void);
int backend_receive(uint8_t **frame);	/* length, 0 when there is nothing */
void backend_release(void);	/* the frame of the last backend_receive() is done with */
void backend_send(const uint8_t *frame, size_t bytes);

/* fakevm_answer.c: what the VM does with a frame, in place */
bool answer(uint8_t *frame, size_t *bytes);	/* true: send the frame back */

/* fakevm_send.c: what the VM sends by itself */
void learn(bool six, const uint8_t *ip, const uint8_t *mac);
bool job_start(const char *command);
uint64_t job_run(void);		/* nanoseconds until it wants to run again, UINT64_MAX: never */
uint16_t checksum(const void *data, size_t bytes, uint32_t sum);
uint32_t sum16(const void *data, size_t bytes, uint32_t sum);
uint16_t fold(uint32_t sum);

#endif
