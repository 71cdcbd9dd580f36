// SPDX-License-Identifier: GPL-2.0-only
/*
 * floor - the least a start costs: libbpf, one object, nothing else
 *
 * usage: floor OBJECT [-m MAP=ENTRIES]... PROGRAM...
 *
 * Opens the object, gives its maps the sizes named, loads and attaches the programs named and no
 * others, prints "ready:" to stderr and waits for a signal. What a command of the project needs
 * beyond this is Python and its own work.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/resource.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

static void fail(const char *what, const char *object, long status)
{
	fprintf(stderr, "floor: cannot %s '%s': %s.\n", what, object, strerror(labs(status)));
	exit(1);
}

static void resize(struct bpf_object *obj, char *text)
{
	char *entries = strchr(text, '=');
	struct bpf_map *map;

	if (!entries)
		fail("read", text, -22);
	*entries++ = '\0';
	map = bpf_object__find_map_by_name(obj, text);
	if (!map)
		fail("find map", text, -2);
	if (bpf_map__set_max_entries(map, strtoul(entries, NULL, 10)))
		fail("resize map", text, -22);
}

int main(int argc, char **argv)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	struct bpf_program *prog;
	struct bpf_object *obj;
	struct bpf_link *link;
	int i, option, count = 0, status;

	/* Before 5.11 maps and programs are charged to this limit. */
	setrlimit(RLIMIT_MEMLOCK, &unlimited);
	if (argc < 3)
		return 2;
	obj = bpf_object__open_file(argv[1], NULL);
	if (libbpf_get_error(obj))
		fail("open", argv[1], libbpf_get_error(obj));
	optind = 2;
	while ((option = getopt(argc, argv, "m:")) == 'm')
		resize(obj, optarg);
	if (option != -1)
		return 2;
	bpf_object__for_each_program(prog, obj)
		bpf_program__set_autoload(prog, false);
	for (i = optind; i < argc; i++) {
		prog = bpf_object__find_program_by_name(obj, argv[i]);
		if (!prog)
			fail("find program", argv[i], -2);
		bpf_program__set_autoload(prog, true);
	}
	status = bpf_object__load(obj);
	if (status)
		fail("load", argv[1], status);
	for (i = optind; i < argc; i++, count++) {
		link = bpf_program__attach(bpf_object__find_program_by_name(obj, argv[i]));
		if (libbpf_get_error(link))
			fail("attach", argv[i], libbpf_get_error(link));
	}
	fprintf(stderr, "ready: %d programs attached\n", count);
	pause();
	return 0;
}
