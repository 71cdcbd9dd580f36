// SPDX-License-Identifier: GPL-2.0-only
/*
 * fakevm_answer - what the fake virtual machine does with a frame
 *
 * Everything is answered in place, VLAN tags stay as they came. Swapping addresses or ports does
 * not change an Internet checksum, so that only a changed type has to be accounted for; this also
 * makes fragments work without reassembly.
 */
#include <arpa/inet.h>
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/if_arp.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <string.h>

#include "fakevm.h"

#define NEIGHBOUR_SOLICITATION 135
#define NEIGHBOUR_ADVERTISEMENT 136

static void swap(void *left, void *right, size_t bytes)
{
	uint8_t saved[16];

	memcpy(saved, left, bytes);
	memcpy(left, right, bytes);
	memcpy(right, saved, bytes);
}

static bool listed(const struct ports *ports, uint16_t port)
{
	unsigned int index;

	for (index = 0; index < ports->count; index++)
		if (ports->port[index] == port)
			return true;
	return false;
}

static bool own_job_port(uint16_t port)
{
	uint32_t first = job.src_port, last = first + (uint32_t)job.src_port_step * job.count;

	return first && port >= first && port <= last;
}

/* The sum changes by the difference of the 16-bit word that holds the type (RFC 1624). */
static void retype(uint8_t *type, uint8_t wanted, uint16_t *sum)
{
	uint32_t value = (uint16_t)~ntohs(*sum);

	value += (uint16_t)~(uint16_t)(*type << 8);
	value += (uint16_t)(wanted << 8);
	*type = wanted;
	*sum = htons(fold(value));
}

static bool answer_arp(uint8_t *eth, uint8_t *arp, size_t bytes)
{
	uint8_t *sender_mac = arp + 8, *sender_ip = arp + 14, *target_mac = arp + 18;
	uint8_t *target_ip = arp + 24;

	if (bytes < 28 || memcmp(target_ip, options.ip, 4)) {
		counters.foreign++;
		return false;
	}
	learn(false, sender_ip, sender_mac);
	if (arp[7] != ARPOP_REQUEST)
		return false;
	counters.arp++;
	arp[7] = ARPOP_REPLY;
	memcpy(target_mac, sender_mac, 6);
	memcpy(target_ip, sender_ip, 4);
	memcpy(sender_mac, options.mac, 6);
	memcpy(sender_ip, options.ip, 4);
	memcpy(eth, eth + 6, 6);
	memcpy(eth + 6, options.mac, 6);
	return true;
}

/* Turns the datagram into a port unreachable message which quotes it. */
static bool unreachable4(struct iphdr *ip, size_t *bytes)
{
	uint8_t quote[28];
	struct icmphdr icmp = { .type = ICMP_DEST_UNREACH, .code = ICMP_PORT_UNREACH };
	uint8_t *body = (uint8_t *)(ip + 1);

	if (ip->ihl != 5 || *bytes < sizeof(quote))
		return false;
	memcpy(quote, ip, sizeof(quote));
	swap(&ip->saddr, &ip->daddr, 4);
	ip->protocol = IPPROTO_ICMP;
	ip->tot_len = htons(sizeof(*ip) + sizeof(icmp) + sizeof(quote));
	ip->ttl = 64;
	ip->frag_off = 0;
	ip->check = 0;
	ip->check = htons(checksum(ip, sizeof(*ip), 0));
	memcpy(body + sizeof(icmp), quote, sizeof(quote));
	memcpy(body, &icmp, sizeof(icmp));
	icmp.checksum = htons(checksum(body, sizeof(icmp) + sizeof(quote), 0));
	memcpy(body, &icmp, sizeof(icmp));
	*bytes = sizeof(*ip) + sizeof(icmp) + sizeof(quote);
	return true;
}

static bool unreachable6(struct ipv6hdr *ip, size_t *bytes)
{
	uint8_t quote[48];
	uint8_t *body = (uint8_t *)(ip + 1);
	size_t length = 8 + sizeof(quote);
	uint32_t sum;

	if (*bytes < sizeof(quote))
		return false;
	memcpy(quote, ip, sizeof(quote));
	swap(&ip->saddr, &ip->daddr, 16);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = 64;
	ip->payload_len = htons(length);
	memset(body, 0, 8);
	body[0] = ICMPV6_DEST_UNREACH;
	body[1] = ICMPV6_PORT_UNREACH;
	memcpy(body + 8, quote, sizeof(quote));
	sum = sum16(&ip->saddr, 32, length + IPPROTO_ICMPV6);
	sum = checksum(body, length, sum);
	body[2] = sum >> 8;
	body[3] = sum;
	*bytes = sizeof(*ip) + length;
	return true;
}

/* 1: swap and send back, 0: silent, -1: closed port */
static int answer_udp(struct udphdr *udp)
{
	uint16_t port = ntohs(udp->dest);

	if (own_job_port(port)) {
		counters.udp_reply++;
		return 0;
	}
	if (listed(&options.sink, port)) {
		counters.udp_sunk++;
		return 0;
	}
	if (listed(&options.closed, port)) {
		counters.udp_closed++;
		return -1;
	}
	counters.udp_echo++;
	swap(&udp->source, &udp->dest, 2);
	return 1;
}

static bool answer_ip4(struct iphdr *ip, size_t *bytes)
{
	uint8_t *body = (uint8_t *)ip + ip->ihl * 4;
	bool first = !(ntohs(ip->frag_off) & 0x1fff);
	struct icmphdr *icmp = (struct icmphdr *)body;
	int verdict;

	if (ip->protocol == IPPROTO_ICMP && first) {
		if (icmp->type == ICMP_ECHOREPLY)
			counters.icmp_reply++;
		else if (icmp->type == ICMP_ECHO)
			counters.icmp_echo++;
		else
			counters.other++;
		if (icmp->type != ICMP_ECHO)
			return false;
		retype(&icmp->type, ICMP_ECHOREPLY, &icmp->checksum);
	} else if (ip->protocol == IPPROTO_UDP && first) {
		verdict = answer_udp((struct udphdr *)body);
		if (verdict < 0)
			return unreachable4(ip, bytes);
		if (!verdict)
			return false;
	} else if (ip->protocol != IPPROTO_ICMP && ip->protocol != IPPROTO_UDP) {
		counters.other++;
		return false;
	}
	swap(&ip->saddr, &ip->daddr, 4);
	return true;
}

static bool answer_solicitation(uint8_t *eth, struct ipv6hdr *ip, uint8_t *body, size_t *bytes)
{
	uint32_t sum;

	if (*bytes < sizeof(*ip) + 24 || memcmp(body + 8, options.ip6, 16)) {
		counters.foreign++;
		return false;
	}
	counters.ndp++;
	learn(true, ip->saddr.s6_addr, eth + 6);
	body[0] = NEIGHBOUR_ADVERTISEMENT;
	body[1] = body[2] = body[3] = 0;
	memset(body + 4, 0, 4);
	body[4] = 0x60;		/* solicited, override */
	body[24] = 2;		/* option: target link-layer address */
	body[25] = 1;
	memcpy(body + 26, options.mac, 6);
	memcpy(&ip->daddr, &ip->saddr, 16);
	memcpy(&ip->saddr, options.ip6, 16);
	ip->payload_len = htons(32);
	sum = sum16(&ip->saddr, 32, 32 + IPPROTO_ICMPV6);
	sum = checksum(body, 32, sum);
	body[2] = sum >> 8;
	body[3] = sum;
	memcpy(eth, eth + 6, 6);
	memcpy(eth + 6, options.mac, 6);
	*bytes = sizeof(*ip) + 32;
	return true;
}

static bool answer_ip6(struct ipv6hdr *ip, size_t *bytes)
{
	uint8_t *body = (uint8_t *)(ip + 1);
	uint8_t protocol = ip->nexthdr;
	struct icmp6hdr *icmp;
	bool first = true;
	int verdict;

	if (protocol == IPPROTO_FRAGMENT && *bytes >= sizeof(*ip) + 16) {
		protocol = body[0];
		first = !((body[2] << 8 | body[3]) & 0xfff8);
		body += 8;
	}
	icmp = (struct icmp6hdr *)body;
	if (!first && (protocol == IPPROTO_ICMPV6 || protocol == IPPROTO_UDP)) {
		swap(&ip->saddr, &ip->daddr, 16);
		return true;
	}
	if (protocol == IPPROTO_ICMPV6) {
		if (icmp->icmp6_type == ICMPV6_ECHO_REPLY)
			counters.icmp6_reply++;
		else if (icmp->icmp6_type == ICMPV6_ECHO_REQUEST)
			counters.icmp6_echo++;
		else
			counters.other++;
		if (icmp->icmp6_type != ICMPV6_ECHO_REQUEST)
			return false;
		retype(&icmp->icmp6_type, ICMPV6_ECHO_REPLY, &icmp->icmp6_cksum);
	} else if (protocol == IPPROTO_UDP) {
		verdict = answer_udp((struct udphdr *)body);
		if (verdict < 0)
			return ip->nexthdr == IPPROTO_UDP && unreachable6(ip, bytes);
		if (!verdict)
			return false;
	} else {
		counters.other++;
		return false;
	}
	swap(&ip->saddr, &ip->daddr, 16);
	return true;
}

bool answer(uint8_t *frame, size_t *bytes)
{
	size_t head = 12, length;
	uint16_t type = frame[head] << 8 | frame[head + 1];
	struct ipv6hdr *ip6;
	struct iphdr *ip4;
	bool back;

	if (type == ETH_P_8021Q || type == ETH_P_8021AD)
		counters.tagged++;
	while ((type == ETH_P_8021Q || type == ETH_P_8021AD) && head + 6 <= *bytes) {
		head += 4;
		type = frame[head] << 8 | frame[head + 1];
	}
	head += 2;
	length = *bytes > head ? *bytes - head : 0;
	if (type == ETH_P_ARP) {
		return answer_arp(frame, frame + head, length);
	}
	ip4 = (struct iphdr *)(frame + head);
	ip6 = (struct ipv6hdr *)(frame + head);
	if (type == ETH_P_IPV6 && length >= sizeof(*ip6) + 8 && ip6->nexthdr == IPPROTO_ICMPV6 &&
	    frame[head + sizeof(*ip6)] == NEIGHBOUR_SOLICITATION) {
		back = answer_solicitation(frame, ip6, frame + head + sizeof(*ip6), &length);
		*bytes = head + length;
		return back;
	}
	if (memcmp(frame, options.mac, 6)) {
		counters.foreign++;
		return false;
	}
	if (type == ETH_P_IPV6 && length >= sizeof(*ip6) + 8 &&
	    frame[head + sizeof(*ip6)] == NEIGHBOUR_ADVERTISEMENT) {
		counters.ndp++;
		learn(true, frame + head + sizeof(*ip6) + 8, frame + 6);
		return false;
	}
	if (type == ETH_P_IP && length >= sizeof(*ip4) + 8 && !memcmp(&ip4->daddr, options.ip, 4)) {
		learn(false, (uint8_t *)&ip4->saddr, frame + 6);
		back = answer_ip4(ip4, &length);
	} else if (type == ETH_P_IPV6 && length >= sizeof(*ip6) + 8 &&
		   !memcmp(&ip6->daddr, options.ip6, 16)) {
		learn(true, ip6->saddr.s6_addr, frame + 6);
		back = answer_ip6(ip6, &length);
	} else {
		counters.other++;
		return false;
	}
	if (!back)
		return false;
	memcpy(frame, frame + 6, 6);
	memcpy(frame + 6, options.mac, 6);
	*bytes = head + length;
	return true;
}
