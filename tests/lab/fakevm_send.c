// SPDX-License-Identifier: GPL-2.0-only
/* fakevm_send - frames the fake virtual machine starts by itself: UDP and echo requests */
#include <arpa/inet.h>
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <stdio.h>
#include <string.h>

#include "fakevm.h"

#define NEIGHBOURS 16
#define RESOLVE_AGAIN_NS 1000000000ULL
#define RESOLVE_LIMIT_NS 10000000000ULL
#define BURST 32
#define MAX_PAYLOAD 1472

static struct neighbour {
	bool used, six;
	uint8_t ip[16];
	uint8_t mac[6];
} neighbours[NEIGHBOURS];

uint32_t sum16(const void *data, size_t bytes, uint32_t sum)
{
	const uint8_t *byte = data;

	for (; bytes > 1; bytes -= 2, byte += 2)
		sum += byte[0] << 8 | byte[1];
	return bytes ? sum + (byte[0] << 8) : sum;
}

uint16_t fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

uint16_t checksum(const void *data, size_t bytes, uint32_t sum)
{
	return fold(sum16(data, bytes, sum));
}

static struct neighbour *find(bool six, const uint8_t *ip)
{
	unsigned int index;

	for (index = 0; index < NEIGHBOURS; index++)
		if (neighbours[index].used && neighbours[index].six == six &&
		    !memcmp(neighbours[index].ip, ip, six ? 16 : 4))
			return &neighbours[index];
	return NULL;
}

void learn(bool six, const uint8_t *ip, const uint8_t *mac)
{
	static unsigned int oldest;
	struct neighbour *entry = find(six, ip);

	if (!entry)
		entry = &neighbours[oldest++ % NEIGHBOURS];
	entry->used = true;
	entry->six = six;
	memcpy(entry->ip, ip, six ? 16 : 4);
	memcpy(entry->mac, mac, 6);
}

/* Ethernet header and tag; returns where the payload starts. */
static size_t ethernet(uint8_t *frame, const uint8_t *dst, uint16_t type)
{
	size_t head = 12;

	memcpy(frame, dst, 6);
	memcpy(frame + 6, options.mac, 6);
	if (options.vlan >= 0) {
		frame[head++] = ETH_P_8021Q >> 8;
		frame[head++] = ETH_P_8021Q & 0xff;
		frame[head++] = options.vlan >> 8;
		frame[head++] = options.vlan;
	}
	frame[head++] = type >> 8;
	frame[head++] = type;
	return head;
}

static void resolve4(void)
{
	static const uint8_t broadcast[6] = { 255, 255, 255, 255, 255, 255 };
	static const uint8_t request[8] = { 0, 1, 8, 0, 6, 4, 0, 1 };
	uint8_t frame[64] = { 0 };
	size_t head = ethernet(frame, broadcast, ETH_P_ARP);

	memcpy(frame + head, request, 8);
	memcpy(frame + head + 8, options.mac, 6);
	memcpy(frame + head + 14, options.ip, 4);
	memcpy(frame + head + 24, job.dst, 4);
	backend_send(frame, 60);
}

static void resolve6(void)
{
	uint8_t multicast[6] = { 0x33, 0x33, 0xff, job.dst[13], job.dst[14], job.dst[15] };
	uint8_t group[16] = { 0xff, 2, [11] = 1, [12] = 0xff };
	uint8_t frame[128] = { 0 };
	size_t head = ethernet(frame, multicast, ETH_P_IPV6);
	struct ipv6hdr *ip = (struct ipv6hdr *)(frame + head);
	uint8_t *body = (uint8_t *)(ip + 1);
	uint16_t sum;

	memcpy(group + 13, job.dst + 13, 3);
	ip->version = 6;
	ip->payload_len = htons(32);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = 255;
	memcpy(&ip->saddr, options.ip6, 16);
	memcpy(&ip->daddr, group, 16);
	body[0] = 135;
	memcpy(body + 8, job.dst, 16);
	body[24] = 1;
	body[25] = 1;
	memcpy(body + 26, options.mac, 6);
	sum = checksum(body, 32, sum16(&ip->saddr, 32, 32 + IPPROTO_ICMPV6));
	body[2] = sum >> 8;
	body[3] = sum;
	backend_send(frame, head + sizeof(*ip) + 32);
}

static size_t fill_transport(uint8_t *body, size_t length, uint32_t pseudo)
{
	uint32_t sequence = htonl(job.sent);
	uint16_t sum;

	memset(body, 0x5a, length);
	memset(body, 0, 8);
	if (job.icmp) {
		body[0] = job.six ? ICMPV6_ECHO_REQUEST : ICMP_ECHO;
		body[4] = job.src_port >> 8;
		body[5] = job.src_port;
		body[6] = (job.sent + 1) >> 8;
		body[7] = job.sent + 1;
	} else {
		uint16_t source = job.src_port + job.sent * job.src_port_step;

		body[0] = source >> 8;
		body[1] = source;
		body[2] = job.dst_port >> 8;
		body[3] = job.dst_port;
		body[4] = length >> 8;
		body[5] = length;
	}
	if (job.size >= 4)
		memcpy(body + 8, &sequence, 4);
	sum = checksum(body, length, job.icmp && !job.six ? 0 : pseudo);
	if (!sum)
		sum = 0xffff;
	body[job.icmp ? 2 : 6] = sum >> 8;
	body[job.icmp ? 3 : 7] = sum;
	return length;
}

static void send_one(const uint8_t *mac)
{
	uint8_t frame[FRAME_BYTES] = { 0 };
	size_t head = ethernet(frame, mac, job.six ? ETH_P_IPV6 : ETH_P_IP);
	size_t length = 8 + job.size;
	uint32_t pseudo;

	if (job.six) {
		struct ipv6hdr *ip = (struct ipv6hdr *)(frame + head);

		ip->version = 6;
		ip->payload_len = htons(length);
		ip->nexthdr = job.icmp ? IPPROTO_ICMPV6 : IPPROTO_UDP;
		ip->hop_limit = 64;
		memcpy(&ip->saddr, options.ip6, 16);
		memcpy(&ip->daddr, job.dst, 16);
		pseudo = sum16(&ip->saddr, 32, length + ip->nexthdr);
		head += sizeof(*ip);
	} else {
		struct iphdr *ip = (struct iphdr *)(frame + head);

		ip->version = 4;
		ip->ihl = 5;
		ip->tot_len = htons(sizeof(*ip) + length);
		ip->id = htons(job.sent + 1);
		ip->ttl = 64;
		ip->protocol = job.icmp ? IPPROTO_ICMP : IPPROTO_UDP;
		memcpy(&ip->saddr, options.ip, 4);
		memcpy(&ip->daddr, job.dst, 4);
		ip->check = htons(checksum(ip, sizeof(*ip), 0));
		pseudo = sum16(&ip->saddr, 8, length + ip->protocol);
		head += sizeof(*ip);
	}
	backend_send(frame, head + fill_transport(frame + head, length, pseudo));
	if (job.icmp)
		counters.ping_sent++;
	else
		counters.udp_sent++;
	job.sent++;
}

/* "udp ADDRESS PORT COUNT SIZE GAP_US [SRC_PORT [STEP]]" or "ping ADDRESS COUNT SIZE GAP_US" */
bool job_start(const char *command)
{
	unsigned int port = 0, count, size, gap_us, src_port = 40000, step = 0;
	char address[64];
	bool icmp = !strncmp(command, "ping ", 5);

	if (icmp) {
		if (sscanf(command, "ping %63s %u %u %u", address, &count, &size, &gap_us) != 4)
			return false;
	} else if (sscanf(command, "udp %63s %u %u %u %u %u %u", address, &port, &count, &size,
			  &gap_us, &src_port, &step) < 5) {
		return false;
	}
	if (job.active || size > MAX_PAYLOAD)
		return false;
	memset(&job, 0, sizeof(job));
	job.six = strchr(address, ':');
	if (inet_pton(job.six ? AF_INET6 : AF_INET, address, job.dst) != 1)
		return false;
	job.icmp = icmp;
	job.dst_port = port;
	job.src_port = src_port;
	job.src_port_step = step;
	job.count = count;
	job.size = size;
	job.gap_ns = gap_us * 1000ULL;
	job.next_ns = now_ns();
	job.give_up_ns = job.next_ns + RESOLVE_LIMIT_NS;
	job.active = true;
	return true;
}

uint64_t job_run(void)
{
	struct neighbour *peer;
	uint64_t now = now_ns();
	unsigned int burst;

	if (!job.active)
		return UINT64_MAX;
	if (now < job.next_ns)
		return job.next_ns - now;
	peer = find(job.six, job.dst);
	if (!peer && now < job.give_up_ns) {
		counters.resolve_sent++;
		if (job.six)
			resolve6();
		else
			resolve4();
		job.next_ns = now + RESOLVE_AGAIN_NS;
		/* The answer makes the loop run the job again at once. */
		return RESOLVE_AGAIN_NS;
	}
	for (burst = 0; peer && burst < BURST && job.sent < job.count && job.next_ns <= now; burst++) {
		send_one(peer->mac);
		job.next_ns += job.gap_ns;
	}
	if (peer && job.sent < job.count)
		return job.next_ns > now ? job.next_ns - now : 0;
	job.active = false;
	printf("{\"type\":\"sent\",\"count\":%u,\"wanted\":%u,\"resolved\":%s}\n", job.sent, job.count,
	       peer ? "true" : "false");
	fflush(stdout);
	return UINT64_MAX;
}
