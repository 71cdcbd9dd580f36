// SPDX-License-Identifier: GPL-2.0-only
/*
 * impact_relay - a virtual machine whose network stack is that of a namespace
 *
 * Passes frames between the tap of the "VM" and a second tap inside a network namespace, with
 * their virtio headers, so that checksums and segmentation stay undone as with a guest that
 * offers them. What crosses is counted: an oracle that knows nothing of the commands measured.
 *
 * Usage: impact_relay CPU TAP NETNS-FILE GUEST-TAP
 * Commands on stdin, one JSON line as answer:
 *   counters              frames each way since the start
 *   sink | pass           throw away what comes for the VM | pass it (at first)
 *   flood MS EVERY PORT   the VM sends 60-byte UDP frames; each EVERYth to PORT + 1
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define HEADER_BYTES 12 /* struct virtio_net_hdr_v1 */
#define BATCH 64
#define FLOOD_BYTES 60 /* 64 on the wire, with the check sum */
#define IP_AT (HEADER_BYTES + 14)
#define UDP_AT (IP_AT + 20)

struct counters {
	uint64_t frames, bytes, failed;
};

static struct counters to_vm, from_vm;
static bool sink;
static uint8_t buffer[HEADER_BYTES + (1 << 17)];

static void die(const char *what)
{
	fprintf(stderr, "impact_relay: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static int open_tap(const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int header_bytes = HEADER_BYTES, fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		die("/dev/net/tun");
	strncpy(request.ifr_name, name, sizeof(request.ifr_name) - 1);
	if (ioctl(fd, TUNSETIFF, &request))
		die(name);
	if (ioctl(fd, TUNSETVNETHDRSZ, &header_bytes))
		die("TUNSETVNETHDRSZ");
	if (ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6))
		die("TUNSETOFFLOAD");
	return fd;
}

static void move(int from, int to, struct counters *counters)
{
	int batch = BATCH;

	while (batch--) {
		ssize_t bytes = read(from, buffer, sizeof(buffer));

		if (bytes <= HEADER_BYTES)
			return;
		counters->bytes += bytes - HEADER_BYTES;
		if (to >= 0 && write(to, buffer, bytes) < 0)
			counters->failed++;
		else
			counters->frames++;
	}
}

/* The header check sum is that of everything but the number, and the number. */
static void number(uint8_t *frame, uint32_t count)
{
	uint32_t sum = 0;
	int i;

	frame[IP_AT + 4] = count >> 8;
	frame[IP_AT + 5] = count;
	frame[IP_AT + 10] = frame[IP_AT + 11] = 0;
	for (i = 0; i < 20; i += 2)
		sum += frame[IP_AT + i] << 8 | frame[IP_AT + i + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~((sum & 0xffff) + (sum >> 16));
	frame[IP_AT + 10] = sum >> 8;
	frame[IP_AT + 11] = sum;
	memcpy(frame + UDP_AT + 8, &count, sizeof(count));
}

static void flood(int tap, unsigned int ms, unsigned int every, unsigned int port)
{
	static const uint8_t start[] = {
		0x52, 0x54, 0, 9, 0, 1, 0x52, 0x54, 0, 9, 0, 2, 8, 0, /* addresses of lab/topo.py */
		0x45, 0, 0, FLOOD_BYTES - 14, 0, 0, 0x40, 0, 64, 17, 0, 0,
		10, 9, 0, 2, 10, 9, 0, 1,
		0x13, 0x88, 0, 0, 0, FLOOD_BYTES - 34, 0, 0,
	};
	uint8_t frame[HEADER_BYTES + FLOOD_BYTES] = { 0 };
	uint64_t begun = now_ns(), end = begun + ms * 1000000ULL, sent = 0, few = 0, now = begun;
	uint32_t count = 0;

	memcpy(frame + HEADER_BYTES, start, sizeof(start));
	while (now < end) {
		unsigned int i;

		for (i = 0; i < BATCH; i++) {
			bool other = every && !(++count % every);

			frame[UDP_AT + 2] = (port + other) >> 8;
			frame[UDP_AT + 3] = port + other;
			number(frame, count);
			if (write(tap, frame, sizeof(frame)) < 0) {
				from_vm.failed++;
				continue;
			}
			sent++;
			few += other;
		}
		now = now_ns();
	}
	from_vm.frames += sent;
	from_vm.bytes += sent * FLOOD_BYTES;
	printf("{\"count\":%lu,\"few\":%lu,\"ns\":%lu}\n", sent, few, now - begun);
}

static void command(const char *line, int tap)
{
	unsigned int ms, every, port;

	if (sscanf(line, "flood %u %u %u", &ms, &every, &port) == 3) {
		flood(tap, ms, every, port);
	} else if (!strncmp(line, "counters", 8)) {
		printf("{\"to_vm\":%lu,\"to_vm_bytes\":%lu,\"to_vm_failed\":%lu,"
		       "\"from_vm\":%lu,\"from_vm_bytes\":%lu,\"from_vm_failed\":%lu}\n",
		       to_vm.frames, to_vm.bytes, to_vm.failed,
		       from_vm.frames, from_vm.bytes, from_vm.failed);
	} else {
		sink = !strncmp(line, "sink", 4);
		printf("{\"sink\":%d}\n", sink);
	}
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct pollfd fds[3] = { { .events = POLLIN }, { .events = POLLIN }, { .events = POLLIN } };
	char line[256];
	cpu_set_t cpus;
	int netns;

	if (argc != 5) {
		fprintf(stderr, "usage: impact_relay CPU TAP NETNS-FILE GUEST-TAP\n");
		return 2;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[1]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");
	fds[0].fd = open_tap(argv[2]);
	netns = open(argv[3], O_RDONLY | O_CLOEXEC);
	if (netns < 0 || setns(netns, CLONE_NEWNET))
		die(argv[3]);
	fds[1].fd = open_tap(argv[4]);
	fds[2].fd = STDIN_FILENO;
	printf("{\"ready\":1}\n");
	fflush(stdout);
	while (poll(fds, 3, -1) >= 0 || errno == EINTR) {
		if (fds[0].revents)
			move(fds[0].fd, sink ? -1 : fds[1].fd, &to_vm);
		if (fds[1].revents)
			move(fds[1].fd, fds[0].fd, &from_vm);
		if (fds[2].revents) {
			ssize_t bytes = read(STDIN_FILENO, line, sizeof(line) - 1);

			if (bytes <= 0)
				return 0;
			line[bytes] = 0;
			command(line, fds[0].fd);
		}
	}
	die("poll");
}
