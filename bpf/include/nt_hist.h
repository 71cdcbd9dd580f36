/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_hist - histogram of times, per CPU, read without being reset
 *
 * Slots are log2 with four sub-slots: value v of 2^e has slot
 * ((e - 2) << 2) + (v >> (e - 2)). Kept are the slots of 256 ns to 2^36 ns
 * (68 s); what lies outside is counted in `under` and `over`. count, sum, min
 * and max are exact. Slots are 32 bits wide: the reader adds up differences
 * modulo 2^32. min and max exist twice: the reader raises the epoch and takes
 * the cell that is no longer written; `gen` says which epoch a cell belongs to
 * (0 = never written), so that an idle CPU cannot pass on an old extreme.
 */
#ifndef NT_HIST_H
#define NT_HIST_H

#define NT_HIST_FIRST 28	/* slot of 256 */
#define NT_HIST_SLOTS 112

struct nt_hist {
	__u64 count;
	__u64 sum;
	__u64 min[2];
	__u64 max[2];
	__u32 gen[2];
	__u32 under;
	__u32 over;
	__u32 slots[NT_HIST_SLOTS];
};

/* floor(log2(v)) for v > 0, without a loop: the 4.19 verifier refuses back edges. */
static __always_inline __u32 nt_log2(__u64 v)
{
	__u32 r = 0;

	if (v >> 32) {
		v >>= 32;
		r += 32;
	}
	if (v >> 16) {
		v >>= 16;
		r += 16;
	}
	if (v >> 8) {
		v >>= 8;
		r += 8;
	}
	if (v >> 4) {
		v >>= 4;
		r += 4;
	}
	if (v >> 2) {
		v >>= 2;
		r += 2;
	}
	return r + (v >> 1);
}

/* A constant index per branch: a variable one would need a bound check for the verifier. */
#define NT_HIST_EXTREME(h, i, value, epoch)                                                        \
	do {                                                                                       \
		if ((h)->gen[i] != (epoch)) {                                                      \
			(h)->gen[i] = (epoch);                                                     \
			(h)->min[i] = (value);                                                     \
			(h)->max[i] = (value);                                                     \
		} else if ((value) < (h)->min[i]) {                                                \
			(h)->min[i] = (value);                                                     \
		} else if ((value) > (h)->max[i]) {                                                \
			(h)->max[i] = (value);                                                     \
		}                                                                                  \
	} while (0)

static __always_inline void nt_hist_add(struct nt_hist *h, __u64 value, __u32 epoch)
{
	__u32 e, slot;

	h->count += 1;
	h->sum += value;
	if (epoch & 1)
		NT_HIST_EXTREME(h, 1, value, epoch);
	else
		NT_HIST_EXTREME(h, 0, value, epoch);
	if (value < 256) {
		h->under += 1;
		return;
	}
	e = nt_log2(value);
	slot = ((e - 2) << 2) + (__u32)(value >> (e - 2)) - NT_HIST_FIRST;
	if (slot >= NT_HIST_SLOTS)
		h->over += 1;
	else
		h->slots[slot] += 1;
}

#endif
