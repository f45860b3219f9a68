/* The interpreter: executes one guest instruction in any mode.
 *
 * It carries real mode, 16- and 32-bit code, single step and debug registers, and for translated
 * code everything the translator does not emit inline.  Ordinary instructions (INSN_NATIVE) are not
 * modelled at all: a stub with the memory operand replaced runs them on the host, so their results
 * and flags are the hardware's.  What is written out here is control flow, stack, string and system
 * instructions.
 *
 * Runs with the guest's vector state live in the host's registers (see x86/cpu.h).
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"
#include "engine/bt/interp.h"
#include "x86/cpuid.h"

static void charge_unknown(struct bt_vcpu *bv, const struct insn *in)
{
	struct bt_stats *st = &bv->m->stats;

	st->unknown_insns++;
	bt_world(bv);
	bt_note_unknown(st, in->mnemonic ? in->mnemonic : UNKNOWN_UNDECODABLE);
}

/* --- fetch --- */

static enum code_mode code_mode(const struct vcpu *v)
{
	if (x86_code64(v))
		return MODE_64;
	if (!x86_protected(v))
		return MODE_16;
	return v->seg[SEG_CS].attr & SEG_ATTR_DB ? MODE_32 : MODE_16;
}

static gva_t code_linear(const struct vcpu *v, uint64_t rip)
{
	return x86_code64(v) ? rip : (uint32_t)(v->seg[SEG_CS].base + rip);
}

/* Whether the INT3 at RIP was put there by a debugger. */
static bool debugger_int3(struct vcpu *v)
{
	gva_t la = code_linear(v, v->rip);

	for (unsigned i = 0; i < v->debug->nint3; i++)
		if (v->debug->int3[i] == la) {
			v->debug->hit = DEBUG_INT3;
			return true;
		}
	return false;
}

static bool same_bytes(const uint8_t *a, const uint8_t *b, unsigned n)
{
	while (n--)
		if (*a++ != *b++)
			return false;
	return true;
}

struct icache_entry *bt_fetch(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	gva_t la = code_linear(v, v->rip);
	unsigned access = ACC_EXEC | x86_access_user(v);
	unsigned first = GUEST_PAGE_SIZE - (unsigned)(la & GUEST_PAGE_MASK);
	enum code_mode mode = code_mode(v);
	struct icache_entry *e = &bv->icache[(la ^ la >> 10) & (ICACHE_ENTRIES - 1)];
	struct page_walk walk;
	uint8_t bytes[INSN_MAX];
	unsigned have;
	uint8_t *p;
	int rc;

	if (mode != MODE_64 && v->rip > v->seg[SEG_CS].limit) {
		x86_fault_code(v, VEC_GP, 0);
		return NULL;
	}
	if (bv->fetch_gpa != GPA_NONE)
		walk.gpa = bv->fetch_gpa;
	else if (x86_walk(v, la, access, &walk))
		return NULL;
	have = first < INSN_MAX ? first : INSN_MAX;
	p = ram_host(v->ram, walk.gpa, have);
	if (!p) {
		x86_fault_code(v, VEC_GP, 0); /* code outside RAM */
		return NULL;
	}
	if (e->valid && e->in.mode == mode && e->in.len <= have &&
	    same_bytes(e->in.bytes, p, e->in.len))
		return e;
	x86_copy(bytes, p, have);
	e->valid = false;
	e->has_stub = false;
	rc = 0;
	if (mode != MODE_64 || !insn_recall(&e->in, bytes, have)) {
		bt_world(bv);
		rc = insn_decode(&e->in, bytes, have, mode);
	}
	if (rc == -ENODATA && have < INSN_MAX) {
		/* The instruction goes on in the next page. */
		if (x86_walk(v, la + first, access, &walk))
			return NULL;
		p = ram_host(v->ram, walk.gpa, INSN_MAX - have);
		if (!p) {
			x86_fault_code(v, VEC_GP, 0);
			return NULL;
		}
		x86_copy(bytes + have, p, INSN_MAX - have);
		rc = insn_decode(&e->in, bytes, INSN_MAX, mode);
	}
	if (rc == -E2BIG) { /* longer than 15 bytes */
		x86_fault_code(v, VEC_GP, 0);
		return NULL;
	}
	e->valid = true;
	if (rc) {
		e->in.kind = INSN_UNKNOWN;
		e->valid = false;
	}
	return e;
}

static int do_iretq(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	bool kernel = x86_code64(v) && !x86_cpl(v);
	int rc = x86_iret(v, 8);

	if (!rc && kernel && x86_code64(v) && !x86_cpl(v))
		bt_fast_returned(bv);
	return rc;
}

/* Everything else by name.  0: RIP moves on; INTERP_DONE: RIP is already right. */
static int special(struct bt_vcpu *bv, struct icache_entry *e)
{
	const struct insn *in = &e->in;
	struct vcpu *v = &bv->v;
	uint64_t value;
	int rc;

	if (in->group == INSN_GROUP_STRING)
		return bt_interp_string(bv, in);
	if (in->group == INSN_GROUP_XSTATE)
		return bt_interp_xstate(bv, in);
#define TRANSFER(x) ((rc = (x)) ? rc : INTERP_DONE)
	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_JMP: return TRANSFER(bt_do_call_or_jump(bv, in, false));
	case ZYDIS_MNEMONIC_CALL: return TRANSFER(bt_do_call_or_jump(bv, in, true));
	case ZYDIS_MNEMONIC_RET: return TRANSFER(bt_do_ret(bv, in));
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ: return TRANSFER(bt_do_loop_or_jcxz(bv, in));
	case ZYDIS_MNEMONIC_IRET: return TRANSFER(x86_iret(v, 2));
	case ZYDIS_MNEMONIC_IRETD: return TRANSFER(x86_iret(v, 4));
	case ZYDIS_MNEMONIC_IRETQ: return TRANSFER(do_iretq(bv));
	case ZYDIS_MNEMONIC_SYSCALL: return TRANSFER(x86_syscall(v, v->rip + in->len));
	case ZYDIS_MNEMONIC_SYSRET: return TRANSFER(x86_sysret(v, in->rex & 8 ? 8 : 4));
	case ZYDIS_MNEMONIC_SYSENTER: return TRANSFER(x86_sysenter(v));
	case ZYDIS_MNEMONIC_SYSEXIT: return TRANSFER(x86_sysexit(v, in->rex & 8 ? 8 : 4));
	case ZYDIS_MNEMONIC_INT: return bt_do_software_interrupt(bv, in, (unsigned)in->imm & 0xff);
	case ZYDIS_MNEMONIC_INT3:
		if (unlikely(v->debug != NULL) && debugger_int3(v))
			return INTERP_STOP;
		return bt_do_software_interrupt(bv, in, VEC_BP);
	case ZYDIS_MNEMONIC_INT1: /* no INT n: the gate's DPL does not matter */
		return x86_deliver_event(v, VEC_DB, EVENT_TRAP, v->rip + in->len) ? X86_SHUTDOWN
										  : INTERP_DONE;
	case ZYDIS_MNEMONIC_INTO:
		return v->rflags & RFLAGS_OF ? bt_do_software_interrupt(bv, in, VEC_OF) : 0;

	case ZYDIS_MNEMONIC_PUSH: return bt_do_push(bv, in);
	case ZYDIS_MNEMONIC_POP: return bt_do_pop(bv, in);
	case ZYDIS_MNEMONIC_PUSHA:
	case ZYDIS_MNEMONIC_PUSHAD: return bt_do_push_all(bv, in);
	case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD: return bt_do_pop_all(bv, in);
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ:
		return x86_push(v, in->opsize, v->rflags & ~(uint64_t)(RFLAGS_VM | RFLAGS_RF));
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ: return bt_do_pop_flags(bv, in->opsize);
	case ZYDIS_MNEMONIC_ENTER: return bt_do_enter(bv, in);
	case ZYDIS_MNEMONIC_LEAVE: return bt_do_leave(bv, in);

	case ZYDIS_MNEMONIC_MOV: return bt_do_mov_special(bv, in);
	case ZYDIS_MNEMONIC_LDS: return bt_do_load_far_pointer(bv, in, SEG_DS);
	case ZYDIS_MNEMONIC_LES: return bt_do_load_far_pointer(bv, in, SEG_ES);
	case ZYDIS_MNEMONIC_LFS: return bt_do_load_far_pointer(bv, in, SEG_FS);
	case ZYDIS_MNEMONIC_LGS: return bt_do_load_far_pointer(bv, in, SEG_GS);
	case ZYDIS_MNEMONIC_LSS:
		rc = bt_do_load_far_pointer(bv, in, SEG_SS);
		v->irq_shadow = !rc;
		return rc;
	case ZYDIS_MNEMONIC_XLAT:
		if (bt_mem_read(bv, in->string_seg,
				(v->regs[GPR_RBX] + (v->regs[GPR_RAX] & 0xff)) &
				    bt_size_mask(in->addrsize),
				1, &value))
			return X86_FAULT;
		bt_reg_write(v, GPR_RAX, 1, value);
		return 0;
	case ZYDIS_MNEMONIC_SALC:
		bt_reg_write(v, GPR_RAX, 1, v->rflags & RFLAGS_CF ? 0xff : 0);
		return 0;
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS:
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS:
	case ZYDIS_MNEMONIC_AAM:
	case ZYDIS_MNEMONIC_AAD: return bt_do_decimal(bv, in);
	case ZYDIS_MNEMONIC_BOUND: return bt_do_bound(bv, in);
	case ZYDIS_MNEMONIC_ARPL: return bt_do_arpl(bv, in);

	case ZYDIS_MNEMONIC_CLI: return bt_do_cli(v);
	case ZYDIS_MNEMONIC_STI: return bt_do_sti(v);
	case ZYDIS_MNEMONIC_CLD: v->rflags &= ~(uint64_t)RFLAGS_DF; return 0;
	case ZYDIS_MNEMONIC_STD: v->rflags |= RFLAGS_DF; return 0;
	case ZYDIS_MNEMONIC_CLAC:
	case ZYDIS_MNEMONIC_STAC:
		if (x86_cpl(v) || !(v->model->leaf7_ebx >> 20 & 1))
			return x86_fault(v, VEC_UD);
		v->rflags &= ~(uint64_t)RFLAGS_AC;
		if (in->mnemonic == ZYDIS_MNEMONIC_STAC)
			v->rflags |= RFLAGS_AC;
		return 0;
	case ZYDIS_MNEMONIC_HLT: return bt_do_privileged(v) ? X86_FAULT : INTERP_HALTED;
	case ZYDIS_MNEMONIC_CLTS:
		if (bt_do_privileged(v))
			return X86_FAULT;
		v->cr0 &= ~(uint64_t)CR0_TS;
		bv->redispatch = true;
		return 0;
	case ZYDIS_MNEMONIC_LMSW:
		if (bt_do_privileged(v) || bt_op_read(bv, in, 0, 2, &value))
			return X86_FAULT;
		return bt_do_write_cr(bv, 0, (v->cr0 & ~0xeull) | (value & 0xf));
	case ZYDIS_MNEMONIC_SMSW: return bt_do_store_word(bv, in, v->cr0);
	case ZYDIS_MNEMONIC_LGDT: return bt_do_load_table(bv, in, &v->gdt);
	case ZYDIS_MNEMONIC_LIDT: return bt_do_load_table(bv, in, &v->idt);
	case ZYDIS_MNEMONIC_SGDT: return bt_do_store_table(bv, in, &v->gdt);
	case ZYDIS_MNEMONIC_SIDT: return bt_do_store_table(bv, in, &v->idt);
	case ZYDIS_MNEMONIC_SLDT: return bt_do_store_word(bv, in, v->ldt.selector);
	case ZYDIS_MNEMONIC_STR: return bt_do_store_word(bv, in, v->tr.selector);
	case ZYDIS_MNEMONIC_LLDT:
		if (bt_do_privileged(v) || bt_op_read(bv, in, 0, 2, &value))
			return X86_FAULT;
		return x86_load_ldt(v, (uint16_t)value);
	case ZYDIS_MNEMONIC_LTR:
		if (bt_do_privileged(v) || bt_op_read(bv, in, 0, 2, &value))
			return X86_FAULT;
		return x86_load_tr(v, (uint16_t)value);
	case ZYDIS_MNEMONIC_LAR: return bt_do_load_access_rights(bv, in, false);
	case ZYDIS_MNEMONIC_LSL: return bt_do_load_access_rights(bv, in, true);
	case ZYDIS_MNEMONIC_VERR: return bt_do_verify(bv, in, false);
	case ZYDIS_MNEMONIC_VERW: return bt_do_verify(bv, in, true);
	case ZYDIS_MNEMONIC_INVLPG: {
		gva_t la =
		    bt_effective(v, in) + (in->mem_seg >= SEG_FS ? v->seg[in->mem_seg].base : 0);

		if (bt_do_privileged(v))
			return X86_FAULT;
		bt_space_flush_page(bv, la);
		return 0;
	}
	case ZYDIS_MNEMONIC_INVPCID: return bt_do_invpcid(bv, in);
	case ZYDIS_MNEMONIC_INVD:
	case ZYDIS_MNEMONIC_WBINVD: return bt_do_privileged(v);
	case ZYDIS_MNEMONIC_RDMSR: return bt_do_read_or_write_msr(bv, false);
	case ZYDIS_MNEMONIC_WRMSR: return bt_do_read_or_write_msr(bv, true);
	case ZYDIS_MNEMONIC_RDTSC: return bt_do_rdtsc(bv, false);
	case ZYDIS_MNEMONIC_RDTSCP: return bt_do_rdtsc(bv, true);
	case ZYDIS_MNEMONIC_RDPID:
		bt_reg_write(v, in->op[0].reg, in->op[0].size, v->tsc_aux);
		return 0;
	case ZYDIS_MNEMONIC_RDPMC: return x86_fault_code(v, VEC_GP, 0); /* there is no counter */
	case ZYDIS_MNEMONIC_CPUID: return bt_do_cpuid(bv);
	case ZYDIS_MNEMONIC_SWAPGS: return bt_do_swapgs(bv);
	case ZYDIS_MNEMONIC_RDFSBASE: return bt_do_fs_gs_base(bv, in, SEG_FS, false);
	case ZYDIS_MNEMONIC_RDGSBASE: return bt_do_fs_gs_base(bv, in, SEG_GS, false);
	case ZYDIS_MNEMONIC_WRFSBASE: return bt_do_fs_gs_base(bv, in, SEG_FS, true);
	case ZYDIS_MNEMONIC_WRGSBASE: return bt_do_fs_gs_base(bv, in, SEG_GS, true);
	case ZYDIS_MNEMONIC_IN: return bt_do_in_out(bv, in, false);
	case ZYDIS_MNEMONIC_OUT: return bt_do_in_out(bv, in, true);
	case ZYDIS_MNEMONIC_VMCALL:
	case ZYDIS_MNEMONIC_VMMCALL: return bt_do_hypercall(bv);
	case ZYDIS_MNEMONIC_XGETBV:
		if (!(v->cr4 & CR4_OSXSAVE))
			return x86_fault(v, VEC_UD);
		if ((uint32_t)v->regs[GPR_RCX] > 1)
			return x86_fault_code(v, VEC_GP, 0);
		value = v->xcr0;
		if ((uint32_t)v->regs[GPR_RCX] == 1) {
			bt_vec_load(bv);
			value &= bt_xinuse();
		}
		v->regs[GPR_RAX] = (uint32_t)value;
		v->regs[GPR_RDX] = value >> 32;
		return 0;
	case ZYDIS_MNEMONIC_XSETBV:
		if (!(v->cr4 & CR4_OSXSAVE))
			return x86_fault(v, VEC_UD);
		if (bt_do_privileged(v))
			return X86_FAULT;
		if ((uint32_t)v->regs[GPR_RCX])
			return x86_fault_code(v, VEC_GP, 0);
		bv->redispatch = true;
		return x86_write_xcr0(v, (uint32_t)v->regs[GPR_RAX] | v->regs[GPR_RDX] << 32);
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FNSTENV: return bt_interp_x87_environment(bv, e);
	default: break;
	}
	if (in->mnemonic >= ZYDIS_MNEMONIC_JB && in->mnemonic <= ZYDIS_MNEMONIC_JZ &&
	    in->op[0].type == OP_IMM) {
		uint8_t opcode = in->bytes[in->opcode_off];

		if (opcode == 0x0f)
			opcode = in->bytes[in->opcode_off + 1];
		return TRANSFER(bt_do_relative_jump(bv, in, bt_do_condition(v, opcode & 0xf)));
	}
	if ((rc = bt_interp_vector(bv, in)) != INTERP_UNKNOWN)
		return rc;
#undef TRANSFER
	charge_unknown(bv, in);
	return x86_fault(v, VEC_UD);
}

/* Instruction breakpoints are faults, before anything happens; a debugger's is INTERP_STOP. */
static int instruction_break(struct vcpu *v, gva_t la)
{
	unsigned hits = 0;

	if (likely(!x86_breaks(v)) || (v->rflags & RFLAGS_RF))
		return 0;
	for (unsigned i = 0; v->debug && i < 4; i++) {
		struct vcpu_debug *d = v->debug;

		if ((d->dr7 >> (i * 2) & 3) && !(d->dr7 >> (16 + i * 4) & 3) && d->dr[i] == la) {
			d->hit = DEBUG_BREAK;
			d->hit_dr = (uint8_t)i;
			return INTERP_STOP;
		}
	}
	for (unsigned i = 0; i < 4; i++)
		if ((v->dr7 >> (i * 2) & 3) && !(v->dr7 >> (16 + i * 4) & 3) && v->dr[i] == la)
			hits |= 1u << i;
	if (!hits)
		return 0;
	v->dr6 = (v->dr6 & ~0xfull) | hits;
	return x86_fault(v, VEC_DB);
}

/* What an instruction pushed or popped, for data breakpoints. */
static void watch_stack(struct bt_vcpu *bv, const struct insn *in, uint64_t rsp)
{
	struct vcpu *v = &bv->v;
	uint64_t now = v->regs[GPR_RSP], base = x86_code64(v) ? 0 : v->seg[SEG_SS].base;

	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_PUSHA:
	case ZYDIS_MNEMONIC_PUSHAD:
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ:
	case ZYDIS_MNEMONIC_CALL: bt_watch(bv, base + now, (unsigned)(rsp - now), true); break;
	case ZYDIS_MNEMONIC_ENTER: bt_watch(bv, base + rsp - in->opsize, in->opsize, true); break;
	case ZYDIS_MNEMONIC_POP:
	case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD:
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
	case ZYDIS_MNEMONIC_RET: bt_watch(bv, base + rsp, in->opsize, false); break;
	case ZYDIS_MNEMONIC_LEAVE: bt_watch(bv, base + now - in->opsize, in->opsize, false); break;
	default: break;
	}
}

/* Whether the single-step trap follows, TF having been set before the instruction (SDM 3B, 18.3.1.4).
 * INT and SYSCALL have cleared it; MOV SS and POP SS hold it off. */
static bool step_traps(const struct vcpu *v, const struct insn *in)
{
	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_INT:
	case ZYDIS_MNEMONIC_INT1:
	case ZYDIS_MNEMONIC_INT3:
	case ZYDIS_MNEMONIC_INTO:
	case ZYDIS_MNEMONIC_SYSCALL: return v->rflags & RFLAGS_TF;
	case ZYDIS_MNEMONIC_STI: return true;
	default: return !v->irq_shadow;
	}
}

static bool returns_from_interrupt(const struct insn *in)
{
	return in->mnemonic == ZYDIS_MNEMONIC_IRET || in->mnemonic == ZYDIS_MNEMONIC_IRETD ||
	       in->mnemonic == ZYDIS_MNEMONIC_IRETQ;
}

/* A string instruction with a repeat prefix: opcodes 6c to 6f, a4 to a7, aa to af. */
static bool is_repeat(const struct insn *in)
{
	uint8_t opcode = in->bytes[in->opcode_off];

	return in->rep && (opcode >> 2 == 0x6c >> 2 || opcode >> 2 == 0xa4 >> 2 ||
			   opcode >> 1 == 0xaa >> 1 || opcode >> 2 == 0xac >> 2);
}

int bt_interp(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	bool step = v->rflags & RFLAGS_TF, shadow = v->irq_shadow;
	uint64_t rsp = v->regs[GPR_RSP];
	struct icache_entry *e;
	int rc;

	bv->data_break = false;
	bv->m->stats.interp_insns++;
	rc = instruction_break(v, code_linear(v, v->rip));
	if (rc)
		return rc == INTERP_STOP ? rc : x86_deliver_fault(v);
	e = bt_fetch(bv);
	if (!e)
		return x86_deliver_fault(v);
	bv->m->stats.interp_by_mnemonic[e->in.mnemonic & 2047]++;
	bt_phase(bv, (e->in.kind == INSN_NATIVE ? PHASE_NATIVE : PHASE_HELPER) |
			 (uint32_t)e->in.mnemonic << PHASE_MNEMONIC_SHIFT);
	if (e->in.lock && e->in.kind == INSN_SPECIAL) {
		rc = x86_fault(v, VEC_UD);
	} else {
		switch (e->in.kind) {
		case INSN_NATIVE: rc = bt_interp_native(bv, e); break;
		case INSN_NOP: rc = 0; break;
		case INSN_SPECIAL: rc = special(bv, e); break;
		default:
			if (e->in.mnemonic != ZYDIS_MNEMONIC_UD2 &&
			    e->in.mnemonic != ZYDIS_MNEMONIC_UD1 &&
			    e->in.mnemonic != ZYDIS_MNEMONIC_UD0)
				charge_unknown(bv, &e->in);
			rc = x86_fault(v, VEC_UD);
		}
	}
	if (rc == X86_FAULT)
		return x86_deliver_fault(v);
	if (rc == X86_SHUTDOWN || rc == INTERP_STOP)
		return rc;
	if (rc == 0 || rc == INTERP_HALTED)
		v->rip = (v->rip + e->in.len) & (e->in.mode == MODE_64 ? ~0ull : 0xffffffffull);
	if (!returns_from_interrupt(&e->in)) /* IRET loads RF for the instruction it returns to */
		v->rflags &= ~(uint64_t)RFLAGS_RF;
	if (rc == INTERP_DONE && is_repeat(&e->in))
		v->rflags |= RFLAGS_RF; /* whatever comes now comes inside the instruction */
	if (shadow)
		v->irq_shadow = 0;
	if (unlikely(x86_breaks(v)) && e->in.kind == INSN_SPECIAL)
		watch_stack(bv, &e->in, rsp);
	if (step && step_traps(v, &e->in)) {
		v->dr6 |= DR6_BS;
		bv->data_break = true;
	}
	if (unlikely(bv->data_break)) {
		if (x86_deliver_event(v, VEC_DB, EVENT_TRAP, v->rip))
			return X86_SHUTDOWN;
		return 0;
	}
	return rc == INTERP_HALTED ? INTERP_HALT : 0;
}
