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

/* Needed by both. */
int bt_mem_linear(struct vcpu *v, unsigned seg, uint64_t offset, unsigned size, bool write,
                  gva_t *la);
int bt_io_allowed(struct bt_vcpu *bv, unsigned port, unsigned size);
void bt_watch(struct bt_vcpu *bv, gva_t la, unsigned size, bool write);

/* cache.c: a stub that runs `e->in` on the host and leaves. */
void bt_put_stub(struct bt_machine *m, struct icache_entry *e, uint8_t *stub);
/* run.c */
void bt_note_unknown(struct bt_stats *st, const struct insn *in);
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
