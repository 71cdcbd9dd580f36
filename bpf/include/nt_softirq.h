/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_softirq - what is known of softirqs, and of the kernel threads that run them
 *
 * Counters and histograms are per CPU: of the CPU where something ran. They are written with
 * interrupts off or inside a softirq, so nothing comes between load and store; NAPI may be polled
 * from an interrupt too (netpoll), and its counters are atomic.
 */
#ifndef NT_SOFTIRQ_H
#define NT_SOFTIRQ_H

#include "nt_channel.h"
#include "nt_guard.h"
#include "nt_hist.h"
#include "nt_map.h"

enum nt_softirq_size {
	NT_SOFTIRQ_VECTORS = 10,
	NT_SOFTIRQ_CPUS = 8192,
	NT_SOFTIRQ_THREADS = 4096,
	NT_SOFTIRQ_COMM = 16,
};

/* Kernel threads that do work of softirqs. */
enum nt_softirq_class {
	NT_CLASS_NONE,
	NT_CLASS_KSOFTIRQD,
	NT_CLASS_NAPI,
	NT_CLASS_BACKLOG,
	NT_CLASS_RCUC,
	NT_CLASS_MAX,
};

/* What was waited for; the first two are of threads. */
enum nt_softirq_wait {
	NT_WAIT_WAKE,	 /* woken -> running */
	NT_WAIT_PREEMPT, /* taken off the CPU while runnable -> running again */
	NT_WAIT_RAISE,	 /* first raise since the last entry -> entry */
};

/* On top of what a vector ran. */
enum nt_softirq_context {
	NT_CONTEXT_IDLE,
	NT_CONTEXT_KSOFTIRQD,
	NT_CONTEXT_TASK,
	NT_CONTEXT_MAX,
};

/* Histograms of a CPU: three per class of threads, then two per vector. */
enum nt_softirq_hist {
	NT_SH_WAKE,
	NT_SH_PREEMPT,
	NT_SH_TURN,
	NT_SH_PER_CLASS,
	NT_SH_DELAY = 0,
	NT_SH_RUN,
	NT_SH_PER_VECTOR,
	NT_SH_VECTORS = NT_SH_PER_CLASS * (NT_CLASS_MAX - 1),
	NT_SH_MAX = NT_SH_VECTORS + NT_SH_PER_VECTOR * NT_SOFTIRQ_VECTORS,
};

enum nt_softirq_skip {
	NT_SKIP_THREAD, /* switches and wake-ups of threads that were not chosen */
	NT_SKIP_VECTOR,
	NT_SKIP_CPU,
	NT_SKIP_MAX,
};

enum nt_softirq_flag {
	NT_SOFTIRQ_EXPLAIN = 1 << 0,
	NT_SOFTIRQ_EVENTS = 1 << 1,
};

struct nt_softirq_cfg {
	struct nt_guard guard;
	__u64 threshold_ns;
	__u32 enabled;
	__u32 epoch;
	__u32 flags;   /* enum nt_softirq_flag */
	__u32 vectors; /* bit per number */
	__u32 classes; /* bit per enum nt_softirq_class */
	__u32 unused;
	__u64 cpus[NT_SOFTIRQ_CPUS / 64];
};

/* One watched thread. The run queue's lock is held by everybody who writes here. */
struct nt_thread {
	__u64 since_ns; /* it waits since, 0: it does not */
	__u64 run_ns;	/* it runs since, 0: it does not */
	__u32 cpu;	/* where it waits */
	__u8 class;
	__u8 wait; /* enum nt_softirq_wait */
	__u8 unused[2];
	char comm[NT_SOFTIRQ_COMM];
};

/* runs = samples of NT_SH_WAKE and NT_SH_PREEMPT + unknown. */
struct nt_class {
	__u64 runs;
	__u64 unknown; /* nobody saw the wait begin */
	__u64 over;    /* waits of at least the threshold */
};

/* entries = the sum of ran[] = samples of NT_SH_DELAY + unknown. */
struct nt_vector {
	__u64 entries;
	__u64 unknown; /* no raise since the last entry was seen */
	__u64 over;
	__u64 ran[NT_CONTEXT_MAX];
	__u64 ran_ns[NT_CONTEXT_MAX];
};

/* Not with the counters: user space clears it when the programs have slept. */
struct nt_pending {
	__u64 raised_ns;
	__u64 entered_ns;
	__u64 context;
};

struct nt_napi {
	__u64 polls;
	__u64 packets;
	__u64 exhausted;
};

/* ksoftirqd of this CPU, and who ran before it. */
struct nt_here {
	__u32 ksoftirqd;
	__u32 prev_pid;
	__s32 prev_prio;
	__u32 unused;
	char prev_comm[NT_SOFTIRQ_COMM];
};

struct nt_softirq_event {
	__u64 ts_ns; /* when it began to run */
	__u64 delay_ns;
	__u32 cpu;
	__u32 pid; /* the thread that waited; of vectors 0 */
	__u32 prev_pid; /* who held the CPU until then */
	__s32 prev_prio;
	__u8 wait; /* enum nt_softirq_wait */
	__u8 what; /* enum nt_softirq_class, or the vector */
	__u8 context;
	__u8 unused[5];
	char comm[NT_SOFTIRQ_COMM];
	char prev_comm[NT_SOFTIRQ_COMM];
};

struct nt_manifest {
	struct nt_softirq_event events;
	struct nt_softirq_cfg cfg;
	enum nt_loss loss;
	enum nt_guard_flag guard_flag;
	enum nt_guard_size guard_size;
	enum nt_softirq_size size;
	enum nt_softirq_class class;
	enum nt_softirq_wait wait;
	enum nt_softirq_context context;
	enum nt_softirq_hist hist;
	enum nt_softirq_skip skip;
	enum nt_softirq_flag flag;
};
const struct nt_manifest nt_manifest SEC(".ntools") = {};

NT_MAP(nt_cfg, ARRAY, 1, __u32, struct nt_softirq_cfg);

NT_CHANNEL(events, struct nt_softirq_event, 1 << 20);

NT_MAP(threads, HASH, NT_SOFTIRQ_THREADS, __u32, struct nt_thread);
NT_MAP(classes, PERCPU_ARRAY, NT_CLASS_MAX, __u32, struct nt_class);
NT_MAP(vectors, PERCPU_ARRAY, NT_SOFTIRQ_VECTORS, __u32, struct nt_vector);
NT_MAP(pending, PERCPU_ARRAY, NT_SOFTIRQ_VECTORS, __u32, struct nt_pending);
NT_MAP(hists, PERCPU_ARRAY, NT_SH_MAX, __u32, struct nt_hist);
NT_MAP(napis, PERCPU_ARRAY, 1, __u32, struct nt_napi);
NT_MAP(here, PERCPU_ARRAY, 1, __u32, struct nt_here);
NT_MAP(rejects, PERCPU_ARRAY, NT_SKIP_MAX, __u32, __u64);

#endif
