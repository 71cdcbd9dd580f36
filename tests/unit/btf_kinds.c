/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every kind of type that clang writes to BTF, for test_loader_btf.py. Compiled for the host with
 * -DHOST it writes one filled struct nt_values to its output: what the decoder must read from it.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;

#ifdef HOST
#include <string.h>
#include <unistd.h>
#define TAG(x)
#define TYPE_TAG(x)
#else
#define TAG(x) __attribute__((btf_decl_tag(x)))
#define TYPE_TAG(x) __attribute__((btf_type_tag(x)))
#endif

enum nt_color { NT_RED, NT_GREEN = 7, NT_BLUE = 0x7fffffff };
enum nt_signed { NT_MINUS = -3, NT_ZERO = 0, NT_PLUS = 12 };
enum __attribute__((packed)) nt_small { NT_SMALL_A = 1, NT_SMALL_B = 200 };

struct nt_point {
	u16 x;
	s16 y;
	u8 tail;
};

typedef const volatile struct nt_point nt_alias;

struct nt_values {
	u8 byte;
	u64 wide;
	s8 minus;
	u16 half;
	s32 word;
	s64 long_minus;
	_Bool yes;
	char letter;
	char name[13];
	u32 numbers[3];
	u16 grid[2][3];
	enum nt_color color;
	enum nt_signed sign;
	enum nt_small small;
	struct nt_point point;
	struct {
		u32 inner;
		struct nt_point deep;
	} nameless;
	nt_alias alias;
	struct nt_point path[2];
	void *pointer;
	const char TYPE_TAG("user") * tagged;
	u8 last;
};

struct nt_empty_tail {
	u64 a;
	u8 b;
};

struct nt_bits {
	u32 a : 3;
	u32 b : 5;
};

struct nt_with_union {
	u32 a;
	union {
		u32 b;
		u8 c[4];
	} either;
};

struct nt_with_float {
	float f;
};

struct nt_unknown;

struct nt_other {
	struct nt_unknown *forward;
	int (*function)(const struct nt_other *self, u32 restrict_not, ...);
	float single;
	double twice;
	char *restrict only;
};

struct nt_manifest {
	struct nt_values values;
	enum nt_color color;
	struct nt_empty_tail tail;
	u32 plain;
};

const struct nt_manifest nt_manifest __attribute__((section(".ntools"), used)) = {};

#define MAP(name) name __attribute__((section(".maps"), used))

struct {
	int (*type)[1];
	struct nt_point *key;
	u64 *value;
} MAP(by_point);

struct {
	int (*type)[1];
	u32 (*key);
	struct nt_empty_tail (*value);
} MAP(by_number);

struct {
	int (*type)[27];
	int (*max_entries)[4096];
} MAP(events);

int global TAG("tagged");
struct nt_bits bits;
struct nt_with_union with_union;
struct nt_with_float with_float;
struct nt_other other;

#define PROGRAM(where) __attribute__((section(where), used))
#define CORE __attribute__((preserve_access_index))

#ifndef HOST
struct nt_first {
	u32 value;
	struct nt_second *next;
} CORE;

struct nt_second {
	u64 value;
} CORE;

struct nt_third___flavour {
	u16 value;
} CORE;

struct nt_guard {
	u16 value;
} CORE;

/* In one section: each reads other types. */
PROGRAM("?raw_tp/same")
int second__raw_tp(struct nt_second *ctx)
{
	return ctx->value;
}

PROGRAM("?raw_tp/other")
int between__raw_tp(u64 *ctx)
{
	return ctx[0] != 0;
}

PROGRAM("?raw_tp/same")
int first__raw_tp(struct nt_first *ctx)
{
	return ctx->value;
}

PROGRAM("?raw_tp/same")
int third__raw_tp(struct nt_third___flavour *ctx)
{
	return ctx->value;
}

/* Asks whether there is such a field and reads none. */
PROGRAM("?raw_tp/same")
int guard__raw_tp(struct nt_guard *ctx)
{
	return __builtin_preserve_field_info(ctx->value, 2);
}
#else
int main(void)
{
	struct nt_values v;

	memset(&v, 0xee, sizeof(v));
	v.byte = 0xfe;
	v.wide = 0x1122334455667788ULL;
	v.minus = -2;
	v.half = 0xbeef;
	v.word = -70000;
	v.long_minus = -5000000000LL;
	v.yes = 1;
	v.letter = 'z';
	memcpy(v.name, "eth0\0\0\0\0\0\0\0\0\0", 13);
	for (int i = 0; i < 3; i++)
		v.numbers[i] = 100000 + i;
	for (int i = 0; i < 6; i++)
		((u16 *)v.grid)[i] = i;
	v.color = NT_BLUE;
	v.sign = NT_PLUS;
	v.small = NT_SMALL_B;
	v.point = (struct nt_point){ .x = 1, .y = -1, .tail = 3 };
	v.nameless.inner = 0x80000000;
	v.nameless.deep = (struct nt_point){ .x = 4, .y = 5, .tail = 6 };
	memcpy((void *)&v.alias, &(struct nt_point){ .x = 7, .y = 8, .tail = 9 }, sizeof(v.alias));
	memset(v.path, 0x41, sizeof(v.path));
	v.pointer = (void *)0xffff888012345678UL;
	v.tagged = (void *)16;
	v.last = 255;
	return write(1, &v, sizeof(v)) != sizeof(v);
}
#endif
