/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_attach - one body, one program per way to attach it
 *
 *	NT_TRACE(dev_rx, netif_receive_skb, struct sk_buff *, skb) { ... }
 *		-> dev_rx__tp_btf, dev_rx__raw_tp
 *	NT_ENTRY(ovs_in, ovs_vport_receive, struct vport *, vport, struct sk_buff *, skb) { ... }
 *		-> ovs_in__fentry, ovs_in__kprobe
 *
 * The text before the first "__" is the point; a label behind it
 * (NT_ENTRY(gro__old, ...)) is another target of the same point. The loader
 * reads mechanism and target from the section name and needs nothing else.
 *
 * The body receives ctx and the constant `direct`: 1 where the verifier knows
 * the types of the arguments (tp_btf, fentry). NT_GET() then is a plain load;
 * elsewhere it is a checked probe read. Use NT_GET only on pointers that come
 * from the arguments, directly or through other NT_GETs. New kernels mark
 * tracepoint arguments as nullable: test a pointer before the first NT_GET.
 */
#ifndef NT_ATTACH_H
#define NT_ATTACH_H

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#define NT_GET(p, field)                                                                           \
	({                                                                                         \
		typeof((p)->field) nt_value;                                                       \
		if (direct)                                                                        \
			nt_value = (p)->field;                                                     \
		else                                                                               \
			bpf_core_read(&nt_value, sizeof(nt_value), &(p)->field);                   \
		nt_value;                                                                          \
	})

/* (type, name) pairs: declaration list, and the cast of argument N. */
#define NT_PAIRS(...) NT_PAIRS_(__VA_ARGS__, 6, x, 5, x, 4, x, 3, x, 2, x, 1, x, 0)
#define NT_PAIRS_(a, b, c, d, e, f, g, h, i, j, k, l, n, ...) n
#define NT_CAT(a, b) NT_CAT_(a, b)
#define NT_CAT_(a, b) a##b

#define NT_DECL(...) NT_CAT(NT_DECL_, NT_PAIRS(__VA_ARGS__))(__VA_ARGS__)
#define NT_DECL_1(t, n) t n
#define NT_DECL_2(t, n, ...) t n, NT_DECL_1(__VA_ARGS__)
#define NT_DECL_3(t, n, ...) t n, NT_DECL_2(__VA_ARGS__)
#define NT_DECL_4(t, n, ...) t n, NT_DECL_3(__VA_ARGS__)
#define NT_DECL_5(t, n, ...) t n, NT_DECL_4(__VA_ARGS__)

/* The argument words of tracing programs and raw tracepoints. */
#define NT_CTX(...) NT_CAT(NT_CTX_, NT_PAIRS(__VA_ARGS__))(__VA_ARGS__)
#define NT_CTX_1(t, n) (t)ctx[0]
#define NT_CTX_2(t, n, u, m) (t)ctx[0], (u)ctx[1]
#define NT_CTX_3(t, n, u, m, v, o) (t)ctx[0], (u)ctx[1], (v)ctx[2]
#define NT_CTX_4(t, n, u, m, v, o, w, p) (t)ctx[0], (u)ctx[1], (v)ctx[2], (w)ctx[3]
#define NT_CTX_5(t, n, u, m, v, o, w, p, x, q)                                                     \
	(t)ctx[0], (u)ctx[1], (v)ctx[2], (w)ctx[3], (x)ctx[4]

/* The argument registers at function entry. */
#define NT_REGS(...) NT_CAT(NT_REGS_, NT_PAIRS(__VA_ARGS__))(__VA_ARGS__)
#define NT_REGS_1(t, n) (t)PT_REGS_PARM1(ctx)
#define NT_REGS_2(t, n, u, m) NT_REGS_1(t, n), (u)PT_REGS_PARM2(ctx)
#define NT_REGS_3(t, n, u, m, v, o) NT_REGS_2(t, n, u, m), (v)PT_REGS_PARM3(ctx)
#define NT_REGS_4(t, n, u, m, v, o, w, p) NT_REGS_3(t, n, u, m, v, o), (w)PT_REGS_PARM4(ctx)
#define NT_REGS_5(t, n, u, m, v, o, w, p, x, q)                                                    \
	NT_REGS_4(t, n, u, m, v, o, w, p), (x)PT_REGS_PARM5(ctx)

#define NT_BODY(name, ...)                                                                         \
	static __always_inline int name##__body(void *ctx __attribute__((unused)),                 \
						const int direct __attribute__((unused)),          \
						NT_DECL(__VA_ARGS__))

#define NT_TRACE(name, tracepoint, ...)                                                            \
	NT_BODY(name, __VA_ARGS__);                                                                \
	SEC("?tp_btf/" #tracepoint)                                                                \
	int name##__tp_btf(__u64 *ctx)                                                             \
	{                                                                                          \
		return name##__body(ctx, 1, NT_CTX(__VA_ARGS__));                                  \
	}                                                                                          \
	SEC("?raw_tp/" #tracepoint)                                                                \
	int name##__raw_tp(__u64 *ctx)                                                             \
	{                                                                                          \
		return name##__body(ctx, 0, NT_CTX(__VA_ARGS__));                                  \
	}                                                                                          \
	NT_BODY(name, __VA_ARGS__)

#define NT_ENTRY(name, function, ...)                                                              \
	NT_BODY(name, __VA_ARGS__);                                                                \
	SEC("?fentry/" #function)                                                                  \
	int name##__fentry(__u64 *ctx)                                                             \
	{                                                                                          \
		return name##__body(ctx, 1, NT_CTX(__VA_ARGS__));                                  \
	}                                                                                          \
	SEC("?kprobe/" #function)                                                                  \
	int name##__kprobe(struct pt_regs *ctx)                                                    \
	{                                                                                          \
		return name##__body(ctx, 0, NT_REGS(__VA_ARGS__));                                 \
	}                                                                                          \
	NT_BODY(name, __VA_ARGS__)

#endif
