// SPDX-License-Identifier: GPL-2.0-only
/*
 * softirq - is network work waiting because ksoftirqd, a NAPI thread or the softirq starts late
 *
 * Attaches: sched_wakeup, sched_wakeup_new, sched_switch, softirq_raise, softirq_entry,
 *           softirq_exit, napi_poll (tracepoints)
 * Reads:    name, flags, state and CPU of tasks
 * Keeps:    threads, 4096 x 44 bytes; 18 KiB of histograms and counters per CPU
 * Emits:    struct nt_softirq_event per wait over the threshold, only with --details
 * Cost:     a switch between other tasks: two loads and a test (raw_tp: two probe reads), with an
 *           idle CPU a few more; a vector that was not chosen: one array lookup
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>

#include "nt_attach.h"
#include "nt_softirq.h"

/* PF_KTHREAD and TASK_RUNNING: macros in 5.10 to 7.3, so no BTF has them; the same in all. */
#define NT_KTHREAD 0x00200000
#define NT_RUNNABLE 0

/* Up to 8 characters of a name as they are in memory; the rest of the word may be masked out. */
#define NT_WORD(a, b, c, d, e, f, g, h)                                                            \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 |   \
	 (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)
#define NT_FIVE 0xffffffffffULL

struct napi_struct;

static __always_inline __u32 nt_class_of_name(__u64 name)
{
	if (name == NT_WORD('k', 's', 'o', 'f', 't', 'i', 'r', 'q'))
		return NT_CLASS_KSOFTIRQD;
	if ((name & NT_FIVE) == NT_WORD('n', 'a', 'p', 'i', '/', 0, 0, 0))
		return NT_CLASS_NAPI;
	if (name == NT_WORD('b', 'a', 'c', 'k', 'l', 'o', 'g', '_'))
		return NT_CLASS_BACKLOG;
	if ((name & NT_FIVE) == NT_WORD('r', 'c', 'u', 'c', '/', 0, 0, 0))
		return NT_CLASS_RCUC;
	return NT_CLASS_NONE;
}

/* Runs at every context switch: most tasks are done with after one load and a test. */
static __always_inline __u32 nt_class_of(struct task_struct *p, const int direct)
{
	__u64 name = 0;

	if (!(NT_GET(p, flags) & NT_KTHREAD))
		return NT_CLASS_NONE;
	if (direct)
		name = *(__u64 *)p->comm;
	else
		bpf_core_read(&name, sizeof(name), &p->comm);
	return nt_class_of_name(name);
}

/*
 * Since v5.14 __state (Linux commit 2f064a59a11f "sched: Change task_struct::state"; found in BTF
 * of 6.1 to 7.3), before that state (found in BTF of 5.10).
 */
static __always_inline __u64 nt_state(struct task_struct *p, const int direct)
{
	struct task_struct___v5_13 *old = (void *)p;

	if (bpf_core_field_exists(p->__state))
		return NT_GET(p, __state);
	if (bpf_core_field_exists(old->state))
		return NT_GET(old, state);
	return !NT_RUNNABLE;
}

/*
 * Since v5.16 in thread_info (Linux commit bcf9033e5449 "sched: move CPU field back into
 * thread_info if THREAD_INFO_IN_TASK=y"), before that in the task (found in BTF of 5.10).
 */
static __always_inline __u32 nt_cpu_of(struct task_struct *p, const int direct)
{
	struct task_struct___v5_15 *old = (void *)p;

	if (bpf_core_field_exists(p->thread_info.cpu))
		return NT_GET(p, thread_info.cpu);
	if (bpf_core_field_exists(old->cpu))
		return NT_GET(old, cpu);
	return bpf_get_smp_processor_id();
}

static __always_inline const struct nt_softirq_cfg *nt_softirq_on(void)
{
	const struct nt_softirq_cfg *cfg;
	__u32 zero = 0;

	cfg = bpf_map_lookup_elem(&nt_cfg, &zero);
	return cfg && cfg->enabled ? cfg : 0;
}

static __always_inline int nt_softirq_awake(const struct nt_softirq_cfg *cfg, __u64 *now)
{
	*now = bpf_ktime_get_ns();
	return !nt_guard_asleep(&cfg->guard, *now);
}

static __always_inline int nt_skip(const struct nt_softirq_cfg *cfg, __u32 why)
{
	__u64 *count;

	if (cfg->flags & NT_SOFTIRQ_EXPLAIN) {
		count = bpf_map_lookup_elem(&rejects, &why);
		if (count)
			__sync_fetch_and_add(count, 1);
	}
	return 0;
}

static __always_inline int nt_cpu_chosen(const struct nt_softirq_cfg *cfg, __u32 cpu)
{
	return (cfg->cpus[(cpu >> 6) & (NT_SOFTIRQ_CPUS / 64 - 1)] >> (cpu & 63)) & 1;
}

static __always_inline void nt_softirq_time(const struct nt_softirq_cfg *cfg, __u32 index,
					    __u64 ns)
{
	struct nt_hist *hist = bpf_map_lookup_elem(&hists, &index);

	if (hist)
		nt_hist_add(hist, ns, cfg->epoch);
}

/* The state of a watched thread; of one that is not known yet, a new one. */
static __always_inline struct nt_thread *nt_thread_of(struct task_struct *p, __u32 pid,
						      __u32 class, const int direct)
{
	struct nt_thread fresh = { .class = class };
	struct nt_thread *thread = bpf_map_lookup_elem(&threads, &pid);

	if (thread)
		return thread;
	bpf_core_read(&fresh.comm, sizeof(fresh.comm), &p->comm);
	bpf_map_update_elem(&threads, &pid, &fresh, BPF_NOEXIST);
	thread = bpf_map_lookup_elem(&threads, &pid);
	if (!thread)
		nt_lost(NT_LOSS_MAP_FULL);
	return thread;
}

/*
 * It waits from now on, unless it does already, for the first wake-up is the one that counts; or
 * unless it runs: then it is woken before it could go to sleep.
 */
static __always_inline void nt_waits(struct nt_thread *thread, const __u8 wait, __u32 cpu,
				     __u64 now)
{
	if (!thread || thread->since_ns || thread->run_ns)
		return;
	thread->cpu = cpu;
	thread->wait = wait;
	thread->since_ns = now;
}

/* An identity for sampling: the high bits decide. */
static __always_inline __u64 nt_mixed(__u64 now)
{
	return now * 0x9e3779b97f4a7c15ULL;
}

static __always_inline int nt_is_told(const struct nt_softirq_cfg *cfg, __u64 now)
{
	return (cfg->flags & NT_SOFTIRQ_EVENTS) &&
	       NT_GUARD_PASS(&cfg->guard, now, nt_mixed(now));
}

static __always_inline struct nt_softirq_event *nt_tell(__u64 now, __u64 ns, __u8 wait, __u8 what)
{
	struct nt_softirq_event *e = NT_RESERVE(events);

	if (!e)
		return 0;
	__builtin_memset(e, 0, sizeof(*e));
	e->ts_ns = now;
	e->delay_ns = ns;
	e->cpu = bpf_get_smp_processor_id();
	e->wait = wait;
	e->what = what;
	return e;
}

/* A watched thread leaves the CPU. */
static __always_inline void nt_left(const struct nt_softirq_cfg *cfg, struct task_struct *prev,
				    __u32 class, int runnable, __u32 cpu, __u64 now,
				    const int direct)
{
	struct nt_thread *thread = nt_thread_of(prev, NT_GET(prev, pid), class, direct);

	if (!thread)
		return;
	if (thread->run_ns && nt_cpu_chosen(cfg, cpu))
		nt_softirq_time(cfg, (class - 1) * NT_SH_PER_CLASS + NT_SH_TURN,
				now - thread->run_ns);
	thread->run_ns = 0;
	/* If it was woken meanwhile, before its first turn that we saw: it did not wait. */
	thread->since_ns = 0;
	if (runnable)
		nt_waits(thread, NT_WAIT_PREEMPT, cpu, now);
}

/* A watched thread gets the CPU. */
static __always_inline void nt_took(void *ctx, const struct nt_softirq_cfg *cfg,
				    struct task_struct *prev, struct task_struct *next,
				    __u32 class, __u32 cpu, __u64 now, const int direct)
{
	const __u32 pid = NT_GET(next, pid);
	struct nt_softirq_event *e;
	struct nt_thread *thread;
	struct nt_class *counts;
	struct nt_here *mine;
	__u64 since = 0;
	__u32 zero = 0;
	__u8 wait = 0;

	thread = nt_thread_of(next, pid, class, direct);
	if (thread) {
		since = thread->since_ns;
		wait = thread->wait;
		thread->since_ns = 0;
		thread->run_ns = now;
	}
	if (!nt_cpu_chosen(cfg, cpu)) {
		nt_skip(cfg, NT_SKIP_CPU);
		return;
	}
	mine = bpf_map_lookup_elem(&here, &zero);
	if (mine && class == NT_CLASS_KSOFTIRQD) {
		mine->ksoftirqd = pid;
		if (cfg->flags & NT_SOFTIRQ_EVENTS) {
			mine->prev_pid = NT_GET(prev, pid);
			mine->prev_prio = NT_GET(prev, prio);
			bpf_core_read(&mine->prev_comm, sizeof(mine->prev_comm), &prev->comm);
		}
	}
	counts = bpf_map_lookup_elem(&classes, &class);
	if (!counts)
		return;
	counts->runs += 1;
	if (!since) {
		counts->unknown += 1;
		return;
	}
	/* It was woken by another CPU, whose clock may be ahead by a little. */
	since = (__s64)(now - since) < 0 ? 0 : now - since;
	nt_softirq_time(cfg,
			(class - 1) * NT_SH_PER_CLASS +
				(wait == NT_WAIT_PREEMPT ? NT_SH_PREEMPT : NT_SH_WAKE),
			since);
	if (since < cfg->threshold_ns)
		return;
	counts->over += 1;
	if (!nt_is_told(cfg, now))
		return;
	e = nt_tell(now, since, wait, class);
	if (!e)
		return;
	e->pid = pid;
	bpf_core_read(&e->comm, sizeof(e->comm), &next->comm);
	e->prev_pid = NT_GET(prev, pid);
	e->prev_prio = NT_GET(prev, prio);
	bpf_core_read(&e->prev_comm, sizeof(e->prev_comm), &prev->comm);
	NT_SUBMIT(ctx, events, e);
}

NT_TRACE(sched_switch, sched_switch, bool, preempt, struct task_struct *, prev,
	 struct task_struct *, next)
{
	const __u32 out = nt_class_of(prev, direct), in = nt_class_of(next, direct);
	const struct nt_softirq_cfg *cfg;
	__u32 cpu, left, took;
	__u64 now;

	if (!(out | in))
		return 0;
	cfg = nt_softirq_on();
	if (!cfg)
		return 0;
	left = cfg->classes >> out & 1;
	took = cfg->classes >> in & 1;
	if (!(left | took))
		return nt_skip(cfg, NT_SKIP_THREAD);
	if (!nt_softirq_awake(cfg, &now) || nt_guard_counts_one(&cfg->guard))
		return 0;
	cpu = bpf_get_smp_processor_id();
	if (left)
		nt_left(cfg, prev, out, preempt || nt_state(prev, direct) == NT_RUNNABLE, cpu, now,
			direct);
	if (took)
		nt_took(ctx, cfg, prev, next, in, cpu, now, direct);
	return 0;
}

/* Whatever CPU it is to run on, it may run on another one: --cpu is asked where it runs. */
static __always_inline int nt_woken(struct task_struct *p, const int direct)
{
	const __u32 class = nt_class_of(p, direct);
	const struct nt_softirq_cfg *cfg;
	__u64 now;

	if (!class)
		return 0;
	cfg = nt_softirq_on();
	if (!cfg)
		return 0;
	if (!(cfg->classes >> class & 1))
		return nt_skip(cfg, NT_SKIP_THREAD);
	if (!nt_softirq_awake(cfg, &now) || (cfg->guard.flags & NT_GUARD_COUNT_ONLY))
		return 0;
	nt_waits(nt_thread_of(p, NT_GET(p, pid), class, direct), NT_WAIT_WAKE,
		 nt_cpu_of(p, direct), now);
	return 0;
}

NT_TRACE(sched_wakeup, sched_wakeup, struct task_struct *, p)
{
	return nt_woken(p, direct);
}

NT_TRACE(sched_new, sched_wakeup_new, struct task_struct *, p)
{
	return nt_woken(p, direct);
}

/* The configuration if this vector is wanted on this CPU. */
static __always_inline const struct nt_softirq_cfg *nt_vector_on(__u32 vec)
{
	const struct nt_softirq_cfg *cfg = nt_softirq_on();

	if (!cfg)
		return 0;
	if (vec >= NT_SOFTIRQ_VECTORS || !(cfg->vectors >> vec & 1)) {
		nt_skip(cfg, NT_SKIP_VECTOR);
		return 0;
	}
	if (!nt_cpu_chosen(cfg, bpf_get_smp_processor_id())) {
		nt_skip(cfg, NT_SKIP_CPU);
		return 0;
	}
	return cfg;
}

/* ksoftirqd is known by its pid, from its first turn or from here on. */
static __always_inline __u32 nt_context(struct nt_here *mine)
{
	const __u32 pid = (__u32)bpf_get_current_pid_tgid();
	__u64 name[NT_SOFTIRQ_COMM / 8] = {};

	if (!pid)
		return NT_CONTEXT_IDLE;
	if (mine->ksoftirqd)
		return pid == mine->ksoftirqd ? NT_CONTEXT_KSOFTIRQD : NT_CONTEXT_TASK;
	bpf_get_current_comm(name, sizeof(name));
	if (nt_class_of_name(name[0]) != NT_CLASS_KSOFTIRQD ||
	    !(BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), flags) & NT_KTHREAD))
		return NT_CONTEXT_TASK;
	mine->ksoftirqd = pid;
	return NT_CONTEXT_KSOFTIRQD;
}

NT_TRACE(soft_raise, softirq_raise, unsigned int, vec)
{
	const struct nt_softirq_cfg *cfg = nt_vector_on(vec);
	struct nt_pending *wait;
	__u32 index = vec;
	__u64 now;

	if (!cfg)
		return 0;
	wait = bpf_map_lookup_elem(&pending, &index);
	if (!wait || wait->raised_ns || (cfg->guard.flags & NT_GUARD_COUNT_ONLY))
		return 0;
	if (nt_softirq_awake(cfg, &now))
		wait->raised_ns = now;
	return 0;
}

static __always_inline void nt_late(void *ctx, const struct nt_here *mine, __u32 vec,
				    __u32 context, __u64 ns, __u64 now)
{
	struct nt_softirq_event *e = nt_tell(now, ns, NT_WAIT_RAISE, vec);
	struct task_struct *current;

	if (!e)
		return;
	e->context = context;
	if (context == NT_CONTEXT_KSOFTIRQD) {
		e->prev_pid = mine->prev_pid;
		e->prev_prio = mine->prev_prio;
		__builtin_memcpy(e->prev_comm, mine->prev_comm, sizeof(e->prev_comm));
	} else {
		current = (struct task_struct *)bpf_get_current_task();
		e->prev_pid = (__u32)bpf_get_current_pid_tgid();
		e->prev_prio = BPF_CORE_READ(current, prio);
		bpf_get_current_comm(e->prev_comm, sizeof(e->prev_comm));
	}
	NT_SUBMIT(ctx, events, e);
}

NT_TRACE(soft_entry, softirq_entry, unsigned int, vec)
{
	const struct nt_softirq_cfg *cfg = nt_vector_on(vec);
	struct nt_vector *counts;
	struct nt_pending *wait;
	struct nt_here *mine;
	__u32 index = vec, zero = 0, context;
	__u64 now, raised;

	if (!cfg || !nt_softirq_awake(cfg, &now) || nt_guard_counts_one(&cfg->guard))
		return 0;
	wait = bpf_map_lookup_elem(&pending, &index);
	counts = bpf_map_lookup_elem(&vectors, &index);
	mine = bpf_map_lookup_elem(&here, &zero);
	if (!wait || !counts || !mine)
		return 0;
	context = nt_context(mine);
	counts->entries += 1;
	counts->ran[context] += 1;
	wait->context = context;
	wait->entered_ns = now;
	/* Interrupts are on: what is raised just here may be lost, and then its entry is unknown. */
	raised = wait->raised_ns;
	if (!raised) {
		counts->unknown += 1;
		return 0;
	}
	wait->raised_ns = 0;
	raised = (__s64)(now - raised) < 0 ? 0 : now - raised;
	nt_softirq_time(cfg, NT_SH_VECTORS + vec * NT_SH_PER_VECTOR + NT_SH_DELAY, raised);
	if (raised < cfg->threshold_ns)
		return 0;
	counts->over += 1;
	if (nt_is_told(cfg, now))
		nt_late(ctx, mine, vec, context, raised, now);
	return 0;
}

NT_TRACE(soft_exit, softirq_exit, unsigned int, vec)
{
	const struct nt_softirq_cfg *cfg = nt_vector_on(vec);
	struct nt_vector *counts;
	struct nt_pending *wait;
	__u32 index = vec, context;
	__u64 now;

	if (!cfg)
		return 0;
	wait = bpf_map_lookup_elem(&pending, &index);
	counts = bpf_map_lookup_elem(&vectors, &index);
	if (!wait || !counts || !wait->entered_ns || !nt_softirq_awake(cfg, &now))
		return 0;
	now -= wait->entered_ns;
	wait->entered_ns = 0;
	context = wait->context;
	if (context >= NT_CONTEXT_MAX)
		return 0;
	counts->ran_ns[context] += now;
	nt_softirq_time(cfg, NT_SH_VECTORS + vec * NT_SH_PER_VECTOR + NT_SH_RUN, now);
	return 0;
}

NT_TRACE(napi_poll, napi_poll, struct napi_struct *, napi, int, work, int, budget)
{
	const struct nt_softirq_cfg *cfg = nt_softirq_on();
	struct nt_napi *counts;
	__u32 zero = 0;
	__u64 now;

	if (!cfg || !nt_cpu_chosen(cfg, bpf_get_smp_processor_id()) ||
	    !nt_softirq_awake(cfg, &now) || (cfg->guard.flags & NT_GUARD_COUNT_ONLY))
		return 0;
	counts = bpf_map_lookup_elem(&napis, &zero);
	if (!counts)
		return 0;
	__sync_fetch_and_add(&counts->polls, 1);
	if (work > 0)
		__sync_fetch_and_add(&counts->packets, work);
	/* netpoll has a budget of 0. */
	if (budget > 0 && work >= budget)
		__sync_fetch_and_add(&counts->exhausted, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
