// SPDX-License-Identifier: GPL-2.0-only
/*
 * impact_traffic - load for short measurements: transactions, streams, packets per second
 *
 * Usage: impact_traffic CPU JOB...
 *   echo tcp|udp PORT           answers each 64 bytes with the same; also on PORT + 1
 *   sink tcp|udp PORT           reads and throws away; also on PORT + 1. At the end of a TCP stream
 *                               answers with the bytes it had
 *   rr tcp|udp IP PORT MS EVERY transactions one after the other, each EVERYth over PORT + 1
 *   stream IP PORT STREAMS MS   TCP streams at a time; ends when the other side has all
 *   flood IP PORT MS EVERY      60-byte UDP frames, each EVERYth batch to PORT + 1
 * The last three print one JSON line.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE_BYTES 64
#define PAYLOAD_BYTES 18 /* a frame of 60, 64 on the wire */
#define BATCH 32
#define SOCKETS 32
#define MOST_SAMPLES (4 << 20)
#define QUEUE_BYTES (64 << 20)

static uint8_t buffer[1 << 20];

static void die(const char *what)
{
	fprintf(stderr, "impact_traffic: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

/* CPU time of this process; what the kernel sends and receives on its way is in it. */
static uint64_t cpu_ns(void)
{
	struct timespec spent;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
	return spent.tv_sec * 1000000000ULL + spent.tv_nsec;
}

static bool is_tcp(const char *text)
{
	return !strcmp(text, "tcp");
}

static void no_delay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static int connected(bool tcp, const char *ip, int port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct timeval patience = { .tv_usec = 250000 };
	int fd = socket(AF_INET, tcp ? SOCK_STREAM : SOCK_DGRAM, 0);

	if (fd < 0 || inet_pton(AF_INET, ip, &to.sin_addr) != 1 ||
	    connect(fd, (struct sockaddr *)&to, sizeof(to)))
		die("connect");
	if (tcp)
		no_delay(fd);
	else
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	return fd;
}

static int bound(bool tcp, int port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	int one = 1, bytes = QUEUE_BYTES, fd = socket(AF_INET, tcp ? SOCK_STREAM : SOCK_DGRAM, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (!tcp)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes));
	if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) || (tcp && listen(fd, SOCKETS)))
		die("bind");
	return fd;
}

/* 0: the connection is over. */
static int echo(int fd, bool tcp)
{
	struct sockaddr_in from;
	socklen_t length = sizeof(from);
	ssize_t bytes;

	if (tcp) {
		bytes = read(fd, buffer, MESSAGE_BYTES);
		return bytes > 0 && write(fd, buffer, bytes) == bytes;
	}
	bytes = recvfrom(fd, buffer, MESSAGE_BYTES, 0, (struct sockaddr *)&from, &length);
	if (bytes > 0)
		sendto(fd, buffer, bytes, 0, (struct sockaddr *)&from, length);
	return 1;
}

static int swallow(int fd, bool tcp, uint64_t *had)
{
	static struct mmsghdr messages[2 * BATCH];
	ssize_t bytes;

	if (!tcp) {
		recvmmsg(fd, messages, 2 * BATCH, MSG_DONTWAIT, NULL);
		return 1;
	}
	bytes = read(fd, buffer, sizeof(buffer));
	if (bytes > 0) {
		*had += bytes;
		return 1;
	}
	if (!bytes && write(fd, had, sizeof(*had)) != sizeof(*had))
		perror("impact_traffic: write");
	return 0;
}

static void serve(bool echoes, bool tcp, int port)
{
	struct pollfd fds[SOCKETS];
	uint64_t had[SOCKETS];
	int count = 2, i;

	for (i = 0; i < 2; i++) {
		fds[i].fd = bound(tcp, port + i);
		fds[i].events = POLLIN;
	}
	printf("{\"ready\":1}\n");
	fflush(stdout);
	while (poll(fds, count, -1) > 0) {
		for (i = count - 1; i >= 0; i--) {
			if (!fds[i].revents)
				continue;
			if (tcp && i < 2) {
				if (count == SOCKETS)
					die("too many connections");
				had[count] = 0;
				fds[count].fd = accept(fds[i].fd, NULL, NULL);
				fds[count].events = POLLIN;
				fds[count].revents = 0;
				no_delay(fds[count++].fd);
			} else if (!(echoes ? echo(fds[i].fd, tcp) : swallow(fds[i].fd, tcp, had + i))) {
				close(fds[i].fd);
				fds[i] = fds[--count];
				had[i] = had[count];
			}
		}
	}
	die("poll");
}

static int by_size(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return (a > b) - (a < b);
}

static void transactions(bool tcp, const char *ip, int port, uint64_t ms, unsigned int every)
{
	int fds[2] = { connected(tcp, ip, port), connected(tcp, ip, port + 1) };
	uint32_t *samples = malloc(MOST_SAMPLES * sizeof(*samples));
	uint64_t begun = now_ns(), now = begun, end = begun + ms * 1000000, few = 0, lost = 0;
	unsigned int count = 0;
	uint64_t cpu;

	if (!samples)
		die("malloc");
	cpu = cpu_ns();
	while (now < end && count < MOST_SAMPLES) {
		uint64_t start = now, number = count, answer = ~number;
		bool other = every && count % every == every - 1;

		memcpy(buffer, &number, sizeof(number));
		if (write(fds[other], buffer, MESSAGE_BYTES) != MESSAGE_BYTES)
			die("write");
		do {
			if (read(fds[other], buffer, MESSAGE_BYTES) != MESSAGE_BYTES) {
				if (tcp || errno != EAGAIN)
					die("read");
				lost++;
				break;
			}
			memcpy(&answer, buffer, sizeof(answer));
		} while (answer != number);
		now = now_ns();
		samples[count++] = now - start;
		few += other;
	}
	cpu = cpu_ns() - cpu;
	if (!count)
		die("no transaction");
	qsort(samples, count, sizeof(*samples), by_size);
	printf("{\"count\":%u,\"few\":%lu,\"lost\":%lu,\"ns\":%lu,\"cpu_ns\":%lu,"
	       "\"p50_ns\":%u,\"p99_ns\":%u}\n", count, few, lost, now - begun, cpu,
	       samples[count / 2], samples[count - 1 - count / 100]);
}

static void streams(const char *ip, int port, int count, uint64_t ms)
{
	struct pollfd fds[SOCKETS];
	uint64_t begun, end, cpu, bytes = 0, had;
	int i;

	for (i = 0; i < count; i++) {
		fds[i].fd = connected(true, ip, port);
		fds[i].events = POLLOUT;
	}
	begun = now_ns();
	cpu = cpu_ns();
	end = begun + ms * 1000000;
	while (now_ns() < end && poll(fds, count, 1000) >= 0)
		for (i = 0; i < count; i++)
			if (fds[i].revents & POLLOUT)
				send(fds[i].fd, buffer, 1 << 17, MSG_DONTWAIT);
	for (i = 0; i < count; i++)
		shutdown(fds[i].fd, SHUT_WR);
	for (i = 0; i < count; i++) {
		if (read(fds[i].fd, &had, sizeof(had)) != sizeof(had))
			die("the other side did not say how much it had");
		bytes += had;
	}
	printf("{\"bytes\":%lu,\"ns\":%lu,\"cpu_ns\":%lu}\n", bytes, now_ns() - begun,
	       cpu_ns() - cpu);
}

static void flood(const char *ip, int port, uint64_t ms, unsigned int every)
{
	int fds[2] = { connected(false, ip, port), connected(false, ip, port + 1) };
	struct iovec part = { buffer, PAYLOAD_BYTES };
	struct mmsghdr messages[BATCH] = { 0 };
	uint64_t begun = now_ns(), end = begun + ms * 1000000, now = begun, count = 0, few = 0;
	uint64_t cpu = cpu_ns();
	unsigned int batch = 0;
	int i;

	for (i = 0; i < BATCH; i++) {
		messages[i].msg_hdr.msg_iov = &part;
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	while (now < end) {
		bool other = every && !(++batch % every);
		int sent = sendmmsg(fds[other], messages, BATCH, 0);

		if (sent > 0) {
			count += sent;
			few += other ? sent : 0;
		}
		now = now_ns();
	}
	printf("{\"count\":%lu,\"few\":%lu,\"ns\":%lu,\"cpu_ns\":%lu}\n", count, few, now - begun,
	       cpu_ns() - cpu);
}

int main(int argc, char **argv)
{
	const char *job = argc > 2 ? argv[2] : "";
	cpu_set_t cpus;

	if (argc > 2) {
		CPU_ZERO(&cpus);
		CPU_SET(atoi(argv[1]), &cpus);
		if (sched_setaffinity(0, sizeof(cpus), &cpus))
			die("sched_setaffinity");
	}
	if (argc == 5 && (!strcmp(job, "echo") || !strcmp(job, "sink")))
		serve(!strcmp(job, "echo"), is_tcp(argv[3]), atoi(argv[4]));
	else if (argc == 8 && !strcmp(job, "rr"))
		transactions(is_tcp(argv[3]), argv[4], atoi(argv[5]), atoi(argv[6]), atoi(argv[7]));
	else if (argc == 7 && !strcmp(job, "stream") && atoi(argv[5]) <= SOCKETS)
		streams(argv[3], atoi(argv[4]), atoi(argv[5]), atoi(argv[6]));
	else if (argc == 7 && !strcmp(job, "flood"))
		flood(argv[3], atoi(argv[4]), atoi(argv[5]), atoi(argv[6]));
	else {
		fprintf(stderr, "impact_traffic: see the head of its source\n");
		return 2;
	}
	return 0;
}
