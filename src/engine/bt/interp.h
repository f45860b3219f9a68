/* Between the interpreter's files. */
#ifndef TAKT_BT_INTERP_H
#define TAKT_BT_INTERP_H

#include <errno.h>

#include "engine/bt/bt.h"

/* What one instruction's function returns besides 0 (RIP moves on), X86_FAULT, X86_SHUTDOWN. */
#define INTERP_DONE 2    /* RIP is already where it should be */
#define INTERP_HALTED 3  /* HLT */
#define INTERP_UNKNOWN 4 /* not one of mine */

/* string.c: MOVS, CMPS, SCAS, LODS, STOS, INS, OUTS with their prefixes. */
int bt_interp_string(struct bt_vcpu *bv, const struct insn *in);
/* vector.c: gathers, scatters, masked moves to memory. */
int bt_interp_vector(struct bt_vcpu *bv, const struct insn *in);
/* Which bytes of a masked memory operand (at most 64) the instruction accesses. */
uint64_t bt_active_bytes(struct bt_vcpu *bv, const struct insn *in);

static inline uint64_t bt_size_mask(unsigned size)
{
	return size >= 8 ? ~0ull : (1ull << (size * 8)) - 1;
}

static inline uint64_t bt_reg_read(const struct vcpu *v, unsigned reg, unsigned size)
{
	return v->regs[reg] & bt_size_mask(size);
}

/* operand.c */
uint64_t bt_effective(const struct vcpu *v, const struct insn *in);
int bt_mem_read(struct bt_vcpu *bv, unsigned seg, uint64_t offset, unsigned size, uint64_t *value);
int bt_mem_write(struct bt_vcpu *bv, unsigned seg, uint64_t offset, unsigned size, uint64_t value);
int bt_operand_read(struct bt_vcpu *bv, const struct insn *in, unsigned at, unsigned size,
		    uint64_t *value);
int bt_operand_write(struct bt_vcpu *bv, const struct insn *in, unsigned at, unsigned size,
		     uint64_t value);
void bt_reg_write(struct vcpu *v, unsigned reg, unsigned size, uint64_t value);
int bt_op_read(struct bt_vcpu *bv, const struct insn *in, unsigned i, unsigned size,
	       uint64_t *value);
int bt_op_write(struct bt_vcpu *bv, const struct insn *in, unsigned i, unsigned size,
		uint64_t value);

/* native.c: instructions that run on the host */
int bt_vector_check(struct bt_vcpu *bv, enum insn_vec vec);
int bt_interp_native(struct bt_vcpu *bv, struct icache_entry *e);
int bt_interp_xstate(struct bt_vcpu *bv, const struct insn *in);
int bt_interp_x87_environment(struct bt_vcpu *bv, struct icache_entry *e);

/* flow.c */
bool bt_do_condition(const struct vcpu *v, unsigned cc);
int bt_do_relative_jump(struct bt_vcpu *bv, const struct insn *in, bool taken);
int bt_do_loop_or_jcxz(struct bt_vcpu *bv, const struct insn *in);
int bt_do_call_or_jump(struct bt_vcpu *bv, const struct insn *in, bool call);
int bt_do_ret(struct bt_vcpu *bv, const struct insn *in);
int bt_do_software_interrupt(struct bt_vcpu *bv, const struct insn *in, unsigned vector);
int bt_do_pop_flags(struct bt_vcpu *bv, unsigned size);
int bt_do_push_all(struct bt_vcpu *bv, const struct insn *in);
int bt_do_pop_all(struct bt_vcpu *bv, const struct insn *in);
int bt_do_push(struct bt_vcpu *bv, const struct insn *in);
int bt_do_pop(struct bt_vcpu *bv, const struct insn *in);
int bt_do_enter(struct bt_vcpu *bv, const struct insn *in);
int bt_do_leave(struct bt_vcpu *bv, const struct insn *in);
int bt_do_decimal(struct bt_vcpu *bv, const struct insn *in);
int bt_do_bound(struct bt_vcpu *bv, const struct insn *in);
int bt_do_arpl(struct bt_vcpu *bv, const struct insn *in);

/* system.c */
int bt_do_privileged(struct vcpu *v);
int bt_do_write_cr(struct bt_vcpu *bv, unsigned n, uint64_t value);
int bt_do_mov_special(struct bt_vcpu *bv, const struct insn *in);
int bt_do_load_far_pointer(struct bt_vcpu *bv, const struct insn *in, unsigned seg);
int bt_do_load_table(struct bt_vcpu *bv, const struct insn *in, struct desc_table *t);
int bt_do_store_table(struct bt_vcpu *bv, const struct insn *in, const struct desc_table *t);
int bt_do_store_word(struct bt_vcpu *bv, const struct insn *in, uint64_t value);
int bt_do_invpcid(struct bt_vcpu *bv, const struct insn *in);
int bt_do_read_or_write_msr(struct bt_vcpu *bv, bool write);
int bt_do_rdtsc(struct bt_vcpu *bv, bool with_aux);
int bt_do_cpuid(struct bt_vcpu *bv);
int bt_do_swapgs(struct bt_vcpu *bv);
int bt_do_fs_gs_base(struct bt_vcpu *bv, const struct insn *in, unsigned seg, bool write);
int bt_do_in_out(struct bt_vcpu *bv, const struct insn *in, bool out);
int bt_do_load_access_rights(struct bt_vcpu *bv, const struct insn *in, bool limit);
int bt_do_verify(struct bt_vcpu *bv, const struct insn *in, bool write);
int bt_do_sti(struct vcpu *v);
int bt_do_cli(struct vcpu *v);
int bt_do_hypercall(struct bt_vcpu *bv);

/* operand.c, system.c */
int bt_mem_linear(struct vcpu *v, unsigned seg, uint64_t offset, unsigned size, bool write,
		  gva_t *la);
int bt_io_allowed(struct bt_vcpu *bv, unsigned port, unsigned size);
void bt_watch(struct bt_vcpu *bv, gva_t la, unsigned size, bool write);

/* cache.c: a stub that runs `e->in` on the host and leaves. */
void bt_put_stub(struct bt_cache *m, struct icache_entry *e, uint8_t *stub);
/* run.c */
void bt_flags_to_arith(struct bt_vcpu *bv);
void bt_flags_from_arith(struct bt_vcpu *bv);

/* runtime.S: runs XSAVE & co. on `area`; the host's #GP comes back as 1. */
enum xstate_op { XSTATE_FXSAVE, XSTATE_FXRSTOR, XSTATE_XSAVE, XSTATE_XSAVEC, XSTATE_XRSTOR };
int bt_xstate_op(enum xstate_op op, bool wide, void *area, uint64_t mask);
uint64_t bt_xinuse(void); /* XGETBV(1) */

/* run.c: the standard XSAVE format on this host: where a component lies, bytes for `xcr0`. */
unsigned bt_xsave_offset(unsigned component);
unsigned bt_xsave_size(uint64_t xcr0);

#endif
