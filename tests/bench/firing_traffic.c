// SPDX-License-Identifier: GPL-2.0-only
/*
 * firing_traffic - packets one at a time, with nothing of its own between two of them
 *
 *	firing_traffic FRAME_FILE OUT_FD IN_FD
 *
 * A line "N" on standard input: N times the frame is written to OUT_FD and, unless IN_FD is -1, one
 * packet read from IN_FD. Answer: nanoseconds of the monotonic clock, as a line. A C program, for
 * an interpreter executes another number of instructions each time.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint8_t frame[2048], taken[4096];

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	unsigned long count, i;
	uint64_t begun;
	size_t bytes;
	FILE *source;
	int out, in;
	char line[64];

	if (argc != 4)
		return 2;
	source = fopen(argv[1], "rb");
	if (!source)
		die(argv[1]);
	bytes = fread(frame, 1, sizeof(frame), source);
	fclose(source);
	out = atoi(argv[2]);
	in = atoi(argv[3]);
	memset(taken, 1, sizeof(taken));
	while (fgets(line, sizeof(line), stdin)) {
		count = strtoul(line, NULL, 10);
		begun = now_ns();
		for (i = 0; i < count; i++) {
			if (write(out, frame, bytes) != (ssize_t)bytes)
				die("write");
			if (in >= 0 && read(in, taken, sizeof(taken)) <= 0)
				die("read");
		}
		printf("%llu\n", (unsigned long long)(now_ns() - begun));
		fflush(stdout);
	}
	return 0;
}
