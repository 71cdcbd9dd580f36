// SPDX-License-Identifier: GPL-2.0-only
/*
 * fakevm - the user side of a tap: a virtual machine without a machine
 *
 * Answers ARP, IPv6 neighbour solicitation, ICMP and ICMPv6 echo and UDP (echo) for one address.
 * Reads commands from stdin and prints one JSON line for "ready", for every command and, at the
 * end or on SIGUSR2, its counters: the numbers a test may trust.
 *
 * Commands: stall, resume, delay MS, counters, udp ..., ping ... (fakevm_send.c), hush, quit.
 * Signals: SIGUSR1 ends a stall, SIGUSR2 prints the counters, SIGINT and SIGTERM end.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "fakevm.h"

#define RX_BATCH 64

struct options options = { .rx_buffers = 256, .vlan = -1 };
struct counters counters;
struct job job;

static bool stalled, finished;
static uint64_t stall_end_ns;	/* 0: until SIGUSR1 or "resume" */
static unsigned int delay_ms;

void die(const char *what)
{
	fprintf(stderr, "fakevm: %s: %s\n", what, strerror(errno));
	exit(1);
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static void print_counters(void)
{
	printf("{\"type\":\"counters\"");
#define X(name) printf(",\"" #name "\":%llu", (unsigned long long)counters.name);
	FAKEVM_COUNTERS(X)
#undef X
	printf("}\n");
	fflush(stdout);
}

static void resume(void)
{
	stalled = false;
	stall_end_ns = 0;
}

static void command(char *line)
{
	bool ok = true;

	line[strcspn(line, "\n")] = 0;
	if (!strcmp(line, "stall"))
		stalled = true;
	else if (!strcmp(line, "resume"))
		resume();
	else if (!strncmp(line, "delay ", 6))
		delay_ms = atoi(line + 6);
	else if (!strncmp(line, "udp ", 4) || !strncmp(line, "ping ", 5))
		ok = job_start(line);
	else if (!strcmp(line, "hush"))
		job.active = false;
	else if (!strcmp(line, "quit"))
		finished = true;
	else if (strcmp(line, "counters"))
		ok = false;
	if (!strcmp(line, "counters")) {
		print_counters();
		return;
	}
	printf("{\"type\":\"%s\",\"command\":\"%s\"}\n", ok ? "ok" : "error", line);
	fflush(stdout);
}

static bool read_commands(void)
{
	static char buffer[4096];
	static size_t used;
	ssize_t bytes = read(STDIN_FILENO, buffer + used, sizeof(buffer) - 1 - used);
	char *start = buffer, *end;

	if (bytes <= 0)
		return false;
	used += bytes;
	buffer[used] = 0;
	while ((end = strchr(start, '\n'))) {
		*end = 0;
		command(start);
		start = end + 1;
	}
	used -= start - buffer;
	memmove(buffer, start, used + 1);
	return used < sizeof(buffer) - 1;
}

static void read_signals(int fd)
{
	struct signalfd_siginfo info;

	while (read(fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGUSR1)
			resume();
		else if (info.ssi_signo == SIGUSR2)
			print_counters();
		else
			finished = true;
	}
}

static void wait_delay(void)
{
	struct timespec left = { delay_ms / 1000, delay_ms % 1000 * 1000000L };

	while (nanosleep(&left, &left) && errno == EINTR)
		continue;
}

/* True when the batch ended before the queue was empty. */
static bool receive(void)
{
	unsigned int batch = delay_ms ? 1 : RX_BATCH;
	uint8_t *frame;
	size_t bytes;
	int length;

	backend_rx_event();
	while (batch--) {
		/*
		 * Plain tap: the frame waits in the tun ring. vhost: it is in the guest already.
		 * Only for a frame that is there: one that came during the wait would wait less.
		 */
		if (delay_ms) {
			if (!backend_pending())
				return false;
			wait_delay();
		}
		length = backend_receive(&frame);
		if (!length)
			return false;
		bytes = length;
		if (bytes >= 14 && answer(frame, &bytes))
			backend_send(frame, bytes);
		backend_release();
		if (job.active && !job.sent)
			job.next_ns = 0;
	}
	return true;
}

static void loop(int signals)
{
	struct pollfd fds[4] = {
		{ .fd = signals, .events = POLLIN },
		{ .fd = STDIN_FILENO, .events = POLLIN },
		{ .fd = backend_rx_fd(), .events = POLLIN },
		{ .fd = backend_tx_fd(), .events = POLLIN },
	};
	bool more = false;

	while (!finished) {
		struct timespec timeout;
		uint64_t wait_ns = job_run();
		uint64_t now = now_ns();

		if (stalled && stall_end_ns) {
			if (now >= stall_end_ns)
				resume();
			else if (stall_end_ns - now < wait_ns)
				wait_ns = stall_end_ns - now;
		}
		/* Left over in the vhost ring: its signal was read already. */
		if (more && !stalled)
			wait_ns = 0;
		fds[2].fd = stalled ? -1 : backend_rx_fd();
		timeout.tv_sec = wait_ns / 1000000000;
		timeout.tv_nsec = wait_ns % 1000000000;
		if (ppoll(fds, 4, wait_ns == UINT64_MAX ? NULL : &timeout, NULL) < 0 &&
		    errno != EINTR)
			die("ppoll");
		if (fds[0].revents)
			read_signals(signals);
		if (fds[1].revents && !read_commands())
			fds[1].fd = -1;
		if (fds[3].revents)
			backend_tx_event();
		if (!stalled && (more || fds[2].revents))
			more = receive();
	}
}

static void add_port(struct ports *ports, const char *text)
{
	if (ports->count == MAX_PORTS) {
		fprintf(stderr, "fakevm: too many ports\n");
		exit(2);
	}
	ports->port[ports->count++] = atoi(text);
}

static void usage(void)
{
	fprintf(stderr,
		"usage: fakevm --tap NAME [--mac MAC] [--ip IPV4] [--ip6 IPV6] [--vhost]\n"
		"  [--rx-buffers N] [--delay-ms MS] [--stall] [--stall-s S] [--vlan ID]\n"
		"  [--closed-port P]... [--sink-port P]... [--command LINE]...\n");
	exit(2);
}

static void parse_mac(const char *text)
{
	uint8_t *mac = options.mac;

	if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4,
		   mac + 5) != 6)
		usage();
}

int main(int argc, char **argv)
{
	static const struct option table[] = {
		{ "tap", 1, NULL, 't' },	 { "mac", 1, NULL, 'm' },
		{ "ip", 1, NULL, 'i' },		 { "ip6", 1, NULL, '6' },
		{ "vhost", 0, NULL, 'v' },	 { "rx-buffers", 1, NULL, 'b' },
		{ "delay-ms", 1, NULL, 'd' },	 { "stall", 0, NULL, 's' },
		{ "stall-s", 1, NULL, 'S' },	 { "vlan", 1, NULL, 'V' },
		{ "closed-port", 1, NULL, 'c' }, { "sink-port", 1, NULL, 'k' },
		{ "command", 1, NULL, 'x' },	 { NULL, 0, NULL, 0 },
	};
	char *commands[8];
	unsigned int command_count = 0, index;
	sigset_t set;
	int option, signals;

	parse_mac("52:54:00:09:00:02");
	inet_pton(AF_INET, "10.9.0.2", options.ip);
	inet_pton(AF_INET6, "fd09::2", options.ip6);
	while ((option = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (option) {
		case 't': options.tap = optarg; break;
		case 'm': parse_mac(optarg); break;
		case 'i': if (inet_pton(AF_INET, optarg, options.ip) != 1) usage(); break;
		case '6': if (inet_pton(AF_INET6, optarg, options.ip6) != 1) usage(); break;
		case 'v': options.vhost = true; break;
		case 'b': options.rx_buffers = atoi(optarg); break;
		case 'd': delay_ms = atoi(optarg); break;
		case 's': stalled = true; break;
		case 'S':
			stalled = true;
			stall_end_ns = now_ns() + strtoull(optarg, NULL, 10) * 1000000000ULL;
			break;
		case 'V': options.vlan = atoi(optarg); break;
		case 'c': add_port(&options.closed, optarg); break;
		case 'k': add_port(&options.sink, optarg); break;
		case 'x':
			if (command_count == 8)
				usage();
			commands[command_count++] = optarg;
			break;
		default: usage();
		}
	}
	if (!options.tap || optind != argc || options.rx_buffers - 1 > 255)
		usage();

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (signals < 0)
		die("signalfd");
	backend_open();
	printf("{\"type\":\"ready\",\"tap\":\"%s\",\"vhost\":%s,\"pid\":%d}\n", options.tap,
	       options.vhost ? "true" : "false", getpid());
	fflush(stdout);
	for (index = 0; index < command_count; index++)
		command(commands[index]);
	loop(signals);
	print_counters();
	return 0;
}
