/* Segment registers and far transfers (SDM 3A, chapters 3 and 5).
 *
 * Hidden parts are loaded once, here, and trusted afterwards.  SS.attr always carries the CPL in its
 * DPL, also for a null SS in 64-bit mode.  Not done: call gates, task gates and hardware task
 * switches (they raise #GP); no 64-bit kernel uses them, and 32-bit Linux only for double faults.
 */
#include "x86/cpu.h"

static uint32_t desc_limit(uint64_t d)
{
	uint32_t limit = (uint32_t)((d & 0xffff) | (d >> 32 & 0xf0000));

	return d >> 55 & 1 ? limit << 12 | 0xfff : limit;
}

static uint32_t desc_base(uint64_t d)
{
	return (uint32_t)((d >> 16 & 0xffffff) | (d >> 32 & 0xff000000));
}

static uint16_t desc_attr(uint64_t d)
{
	return (uint16_t)(d >> 40) & 0xf0ff;
}

static void set_segment(struct segment *s, uint16_t selector, uint64_t d)
{
	s->selector = selector;
	s->base = desc_base(d);
	s->limit = desc_limit(d);
	s->attr = desc_attr(d);
}

static int table_entry(struct vcpu *v, uint16_t selector, gva_t *la, unsigned size)
{
	uint32_t offset = selector & 0xfff8;

	if (selector & 4) {
		if ((v->ldt.attr & SEG_UNUSABLE) || offset + size - 1 > v->ldt.limit)
			return X86_FAULT;
		*la = v->ldt.base + offset;
	} else {
		if (offset + size - 1 > v->gdt.limit)
			return X86_FAULT;
		*la = v->gdt.base + offset;
	}
	return 0;
}

/* Reads the descriptor of a non-null selector; a selector outside its table raises `vector`. */
static int read_descriptor(struct vcpu *v, uint16_t selector, unsigned vector, uint64_t *d,
			   gva_t *la)
{
	if (table_entry(v, selector, la, 8))
		return x86_fault_code(v, vector, selector & 0xfffc);
	return x86_read_uint(v, *la, 8, ACC_READ | ACC_IMPLICIT, d);
}

static int set_accessed(struct vcpu *v, gva_t la, uint64_t *d)
{
	if (*d >> 40 & 1)
		return 0;
	*d |= 1ull << 40;
	return x86_write_uint(v, la + 5, 1, ACC_WRITE | ACC_IMPLICIT, *d >> 40 & 0xff);
}

static void load_real(struct segment *s, uint16_t selector, bool code)
{
	s->selector = selector;
	s->base = (uint32_t)selector << 4;
	/* The limit stays what it was ("unreal mode"); attributes are those of real mode. */
	if (!s->limit)
		s->limit = 0xffff;
	s->attr = SEG_ATTR_P | SEG_ATTR_S | (code ? 0xb : 3);
}

int x86_load_segment(struct vcpu *v, unsigned seg, uint16_t selector)
{
	struct segment *s = &v->seg[seg];
	unsigned cpl = x86_cpl(v), rpl = selector & 3, dpl, type;
	uint64_t d;
	gva_t la;

	if (!x86_protected(v)) {
		load_real(s, selector, false);
		return 0;
	}
	if (!(selector & 0xfffc)) {
		if (seg == SEG_SS) {
			if (!x86_code64(v) || cpl == 3 || rpl != cpl)
				return x86_fault_code(v, VEC_GP, 0);
			s->selector = selector;
			s->attr = (uint16_t)(SEG_UNUSABLE | cpl << SEG_ATTR_DPL_SHIFT);
			return 0;
		}
		s->selector = selector;
		s->attr = SEG_UNUSABLE;
		s->base = 0;
		s->limit = 0;
		return 0;
	}
	if (read_descriptor(v, selector, VEC_GP, &d, &la))
		return X86_FAULT;
	type = d >> 40 & 0xf;
	dpl = d >> 45 & 3;
	if (!(d >> 44 & 1))
		return x86_fault_code(v, VEC_GP, selector & 0xfffc);
	if (seg == SEG_SS) {
		if (rpl != cpl || dpl != cpl || (type & 0xa) != 2)
			return x86_fault_code(v, VEC_GP, selector & 0xfffc);
		if (!(d >> 47 & 1))
			return x86_fault_code(v, VEC_SS, selector & 0xfffc);
	} else {
		bool conforming = (type & 0xc) == 0xc;

		if ((type & 0xa) == 8 || (!conforming && (rpl > dpl || cpl > dpl)))
			return x86_fault_code(v, VEC_GP, selector & 0xfffc);
		if (!(d >> 47 & 1))
			return x86_fault_code(v, VEC_NP, selector & 0xfffc);
	}
	if (set_accessed(v, la, &d))
		return X86_FAULT;
	set_segment(s, selector, d);
	return 0;
}

/* LDT and TSS descriptors have 16 bytes in long mode. */
static int load_system(struct vcpu *v, struct segment *s, uint16_t selector, bool tss)
{
	unsigned size = x86_long_mode(v) ? 16 : 8, type;
	uint64_t d, high = 0;
	gva_t la;

	if ((selector & 4) || table_entry(v, selector, &la, size))
		return x86_fault_code(v, VEC_GP, selector & 0xfffc);
	if (x86_read_uint(v, la, 8, ACC_READ | ACC_IMPLICIT, &d) ||
	    (size == 16 && x86_read_uint(v, la + 8, 8, ACC_READ | ACC_IMPLICIT, &high)))
		return X86_FAULT;
	type = d >> 40 & 0x1f;
	if (tss ? type != 9 && (type != 1 || x86_long_mode(v)) : type != 2)
		return x86_fault_code(v, VEC_GP, selector & 0xfffc);
	if (!(d >> 47 & 1))
		return x86_fault_code(v, VEC_NP, selector & 0xfffc);
	if (tss) { /* mark busy */
		d |= 2ull << 40;
		if (x86_write_uint(v, la + 5, 1, ACC_WRITE | ACC_IMPLICIT, d >> 40 & 0xff))
			return X86_FAULT;
	}
	set_segment(s, selector, d);
	s->base |= high << 32;
	return 0;
}

int x86_load_ldt(struct vcpu *v, uint16_t selector)
{
	if (!(selector & 0xfffc)) {
		v->ldt = (struct segment){.selector = selector, .attr = SEG_UNUSABLE};
		return 0;
	}
	return load_system(v, &v->ldt, selector, false);
}

int x86_load_tr(struct vcpu *v, uint16_t selector)
{
	if (!(selector & 0xfffc))
		return x86_fault_code(v, VEC_GP, 0);
	return load_system(v, &v->tr, selector, true);
}

void x86_set_flat_code(struct vcpu *v, uint16_t selector, unsigned dpl, bool code64)
{
	v->seg[SEG_CS] = (struct segment){
	    .selector = selector,
	    .limit = 0xffffffff,
	    .attr = (uint16_t)(0xb | SEG_ATTR_S | dpl << SEG_ATTR_DPL_SHIFT | SEG_ATTR_P |
			       SEG_ATTR_G | (code64 ? SEG_ATTR_L : SEG_ATTR_DB)),
	};
}

void x86_set_flat_stack(struct vcpu *v, uint16_t selector, unsigned dpl)
{
	v->seg[SEG_SS] = (struct segment){
	    .selector = selector,
	    .limit = 0xffffffff,
	    .attr = (uint16_t)(3 | SEG_ATTR_S | dpl << SEG_ATTR_DPL_SHIFT | SEG_ATTR_P |
			       SEG_ATTR_G | SEG_ATTR_DB),
	};
}

int x86_probe_descriptor(struct vcpu *v, uint16_t selector, bool *visible, uint64_t desc[2])
{
	gva_t la;

	*visible = false;
	desc[1] = 0;
	if (!(selector & 0xfffc) || table_entry(v, selector, &la, 8))
		return 0;
	if (x86_read_uint(v, la, 8, ACC_READ | ACC_IMPLICIT, &desc[0]))
		return X86_FAULT;
	*visible = true;
	return 0;
}

/* Checks that `d` is a code segment a far transfer may enter; `ret`: by a return to level rpl. */
static int check_code(struct vcpu *v, uint16_t selector, uint64_t d, unsigned level, bool ret)
{
	unsigned type = d >> 40 & 0xf, dpl = d >> 45 & 3, rpl = selector & 3;
	bool conforming = type & 4;

	if (!(d >> 44 & 1) || !(type & 8))
		return x86_fault_code(v, VEC_GP, selector & 0xfffc);
	if (ret ? (conforming ? dpl > rpl : dpl != rpl)
		: (conforming ? dpl > level : rpl > level || dpl != level))
		return x86_fault_code(v, VEC_GP, selector & 0xfffc);
	if (x86_long_mode(v) && (d >> 53 & 1) && (d >> 54 & 1))
		return x86_fault_code(v, VEC_GP, selector & 0xfffc);
	if (!(d >> 47 & 1))
		return x86_fault_code(v, VEC_NP, selector & 0xfffc);
	return 0;
}

/* Loads CS for a transfer to `offset` at level `cpl` and sets RIP. */
static int enter_code(struct vcpu *v, uint16_t selector, uint64_t d, gva_t la, unsigned cpl,
		      uint64_t offset)
{
	bool code64 = x86_long_mode(v) && (d >> 53 & 1);

	if (code64 ? !x86_canonical(v, offset) : offset > desc_limit(d))
		return x86_fault_code(v, VEC_GP, 0);
	if (set_accessed(v, la, &d))
		return X86_FAULT;
	set_segment(&v->seg[SEG_CS], (uint16_t)((selector & ~3u) | cpl), d);
	v->rip = offset;
	return 0;
}

int x86_far_jump(struct vcpu *v, uint16_t selector, uint64_t offset, unsigned size)
{
	uint64_t d;
	gva_t la;

	if (size < 8)
		offset &= (1ull << (size * 8)) - 1;
	if (!x86_protected(v)) {
		load_real(&v->seg[SEG_CS], selector, true);
		v->rip = offset;
		return 0;
	}
	if (!(selector & 0xfffc))
		return x86_fault_code(v, VEC_GP, 0);
	if (read_descriptor(v, selector, VEC_GP, &d, &la) ||
	    check_code(v, selector, d, x86_cpl(v), false))
		return X86_FAULT;
	return enter_code(v, selector, d, la, x86_cpl(v), offset);
}

int x86_far_call(struct vcpu *v, uint16_t selector, uint64_t offset, unsigned size,
		 uint64_t rip_next)
{
	uint64_t rsp = v->regs[GPR_RSP];
	struct segment cs = v->seg[SEG_CS], new_cs;
	uint64_t rip = v->rip, new_rip;

	/* The checks of the target come first; then CS changes the width of the stack pointer only if it is
	 * a 64-bit one, and the push is the caller's. */
	if (x86_far_jump(v, selector, offset, size))
		return X86_FAULT;
	new_cs = v->seg[SEG_CS];
	new_rip = v->rip;
	v->seg[SEG_CS] = cs;
	v->rip = rip;
	if (x86_push(v, size, cs.selector) || x86_push(v, size, rip_next))
		goto undo;
	v->seg[SEG_CS] = new_cs;
	v->rip = new_rip;
	return 0;
undo:
	v->regs[GPR_RSP] = rsp;
	v->seg[SEG_CS] = cs;
	v->rip = rip;
	return X86_FAULT;
}

/* Data segments that the new, less privileged level may not use become null. */
static void drop_data_segments(struct vcpu *v, unsigned cpl)
{
	static const uint8_t segs[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};

	for (unsigned i = 0; i < ARRAY_SIZE(segs); i++) {
		struct segment *s = &v->seg[segs[i]];
		bool conforming = (s->attr & 0xc) == 0xc;

		if ((s->attr & SEG_UNUSABLE) || (s->attr >> SEG_ATTR_DPL_SHIFT & 3u) >= cpl ||
		    conforming)
			continue;
		s->selector = 0;
		s->attr = SEG_UNUSABLE;
	}
}

/* The common end of RETF and IRET: to `selector`:`offset`, and to another stack if `new_stack`. */
static int return_to(struct vcpu *v, uint16_t selector, uint64_t offset, bool new_stack,
		     uint16_t ss, uint64_t rsp)
{
	unsigned cpl = x86_cpl(v), rpl = selector & 3;
	struct segment old_ss = v->seg[SEG_SS], old_cs = v->seg[SEG_CS];
	uint64_t d, sd, rip = v->rip;
	gva_t la, sla;

	if (!(selector & 0xfffc))
		return x86_fault_code(v, VEC_GP, 0);
	if (read_descriptor(v, selector, VEC_GP, &d, &la))
		return X86_FAULT;
	if (rpl < cpl)
		return x86_fault_code(v, VEC_GP, selector & 0xfffc);
	if (check_code(v, selector, d, cpl, true) || enter_code(v, selector, d, la, rpl, offset))
		return X86_FAULT;
	if (!new_stack)
		return 0;
	if (!(ss & 0xfffc)) {
		if (!x86_code64(v) || rpl == 3 || (ss & 3) != rpl)
			goto bad_ss;
		v->seg[SEG_SS] = (struct segment){
		    .selector = ss,
		    .attr = (uint16_t)(SEG_UNUSABLE | rpl << SEG_ATTR_DPL_SHIFT),
		};
	} else {
		if (read_descriptor(v, ss, VEC_GP, &sd, &sla))
			goto undo;
		if ((ss & 3) != rpl || (sd >> 45 & 3) != rpl || !(sd >> 44 & 1) ||
		    (sd >> 40 & 0xa) != 2)
			goto bad_ss;
		if (!(sd >> 47 & 1)) {
			x86_fault_code(v, VEC_SS, ss & 0xfffc);
			goto undo;
		}
		if (set_accessed(v, sla, &sd))
			goto undo;
		set_segment(&v->seg[SEG_SS], ss, sd);
	}
	v->regs[GPR_RSP] = v->seg[SEG_SS].attr & SEG_ATTR_DB || x86_code64(v)
			       ? rsp
			       : (v->regs[GPR_RSP] & ~0xffffull) | (rsp & 0xffff);
	if (rpl > cpl)
		drop_data_segments(v, rpl);
	return 0;
bad_ss:
	x86_fault_code(v, VEC_GP, ss & 0xfffc);
undo:
	v->seg[SEG_SS] = old_ss;
	v->seg[SEG_CS] = old_cs;
	v->rip = rip;
	return X86_FAULT;
}

int x86_far_return(struct vcpu *v, unsigned size, unsigned pop_bytes)
{
	uint64_t rsp = v->regs[GPR_RSP], rip, cs, new_rsp = 0, ss = 0;
	bool outer;

	if (x86_pop(v, size, &rip) || x86_pop(v, size, &cs))
		goto undo;
	if (!x86_protected(v)) {
		load_real(&v->seg[SEG_CS], (uint16_t)cs, true);
		v->rip = rip;
		v->regs[GPR_RSP] += pop_bytes;
		return 0;
	}
	outer = (cs & 3) > x86_cpl(v);
	v->regs[GPR_RSP] += pop_bytes;
	if (outer && (x86_pop(v, size, &new_rsp) || x86_pop(v, size, &ss)))
		goto undo;
	if (return_to(v, (uint16_t)cs, rip, outer, (uint16_t)ss, new_rsp + pop_bytes))
		goto undo;
	return 0;
undo:
	v->regs[GPR_RSP] = rsp;
	return X86_FAULT;
}

int x86_iret(struct vcpu *v, unsigned size)
{
	uint64_t old_rsp = v->regs[GPR_RSP], rip, cs, flags, rsp = 0, ss = 0;
	unsigned cpl = x86_cpl(v);
	uint64_t change =
	    RFLAGS_ARITH | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT | RFLAGS_RF | RFLAGS_AC | RFLAGS_ID;
	bool new_stack, whole = false;

	if ((v->rflags & RFLAGS_NT) && x86_protected(v))
		return x86_fault_code(v, VEC_GP, 0); /* nested task */
	if (size == 8 && cpl == 0 && x86_code64(v) && x86_canonical(v, old_rsp) && x86_canonical(v, old_rsp + 39)) {
		uint64_t frame[5]; /* the usual case: at once */

		if (x86_read(v, old_rsp, frame, sizeof(frame), ACC_READ))
			goto undo;
		rip = frame[0];
		cs = frame[1];
		flags = frame[2];
		rsp = frame[3];
		ss = frame[4];
		v->regs[GPR_RSP] += sizeof(frame);
		whole = true;
	} else if (x86_pop(v, size, &rip) || x86_pop(v, size, &cs) || x86_pop(v, size, &flags)) {
		goto undo;
	}
	if (!x86_protected(v)) {
		load_real(&v->seg[SEG_CS], (uint16_t)cs, true);
		v->rip = rip;
		change |= RFLAGS_IF | RFLAGS_IOPL;
		goto flags;
	}
	if (!x86_long_mode(v) && (flags & RFLAGS_VM) && size == 4 && cpl == 0) {
		x86_fault_code(v, VEC_GP, 0); /* virtual-8086 mode is not there */
		goto undo;
	}
	new_stack = x86_code64(v) || (cs & 3) > cpl;
	if (new_stack && !whole && (x86_pop(v, size, &rsp) || x86_pop(v, size, &ss)))
		goto undo;
	if (return_to(v, (uint16_t)cs, rip, new_stack, (uint16_t)ss, rsp))
		goto undo;
	if (cpl == 0)
		change |= RFLAGS_IOPL | RFLAGS_VIF | RFLAGS_VIP;
	if (cpl <= (v->rflags >> RFLAGS_IOPL_SHIFT & 3))
		change |= RFLAGS_IF;
flags:
	if (size == 2)
		change &= 0xffff;
	v->rflags = (v->rflags & ~change) | (flags & change) | RFLAGS_FIXED;
	v->nmi_blocked = 0;
	return 0;
undo:
	v->regs[GPR_RSP] = old_rsp;
	return X86_FAULT;
}

/* --- stack --- */

/* Bits of RSP that count as the stack pointer. */
static uint64_t stack_mask(const struct vcpu *v)
{
	if (x86_code64(v))
		return ~0ull;
	return v->seg[SEG_SS].attr & SEG_ATTR_DB ? 0xffffffffull : 0xffffull;
}

static gva_t stack_linear(const struct vcpu *v, uint64_t sp)
{
	return x86_code64(v) ? sp : (uint32_t)(v->seg[SEG_SS].base + sp);
}

int x86_push(struct vcpu *v, unsigned size, uint64_t value)
{
	uint64_t mask = stack_mask(v), sp = (v->regs[GPR_RSP] - size) & mask;

	if (x86_code64(v) && !x86_canonical(v, sp))
		return x86_fault_code(v, VEC_SS, 0);
	if (x86_check_alignment(v, stack_linear(v, sp), size) ||
	    x86_write_uint(v, stack_linear(v, sp), size, ACC_WRITE | x86_access_user(v), value))
		return X86_FAULT;
	v->regs[GPR_RSP] = (v->regs[GPR_RSP] & ~mask) | sp;
	return 0;
}

int x86_pop(struct vcpu *v, unsigned size, uint64_t *value)
{
	uint64_t mask = stack_mask(v), sp = v->regs[GPR_RSP] & mask;

	if (x86_code64(v) && !x86_canonical(v, sp))
		return x86_fault_code(v, VEC_SS, 0);
	if (x86_check_alignment(v, stack_linear(v, sp), size) ||
	    x86_read_uint(v, stack_linear(v, sp), size, ACC_READ | x86_access_user(v), value))
		return X86_FAULT;
	v->regs[GPR_RSP] = (v->regs[GPR_RSP] & ~mask) | ((sp + size) & mask);
	return 0;
}

/* --- fast system calls (SDM 2, SYSCALL, SYSRET, SYSENTER, SYSEXIT) --- */

int x86_syscall(struct vcpu *v, uint64_t rip_next)
{
	uint16_t cs = (uint16_t)(v->star >> 32) & 0xfffc;

	if (!(v->efer & EFER_SCE) || !x86_code64(v))
		return x86_fault(v, VEC_UD); /* Intel: SYSCALL exists in 64-bit mode only */
	v->regs[GPR_RCX] = rip_next;
	v->regs[GPR_R11] = v->rflags & ~(uint64_t)RFLAGS_RF;
	v->rip = v->lstar;
	v->rflags &= ~(v->sfmask | RFLAGS_RF);
	v->rflags |= RFLAGS_FIXED;
	x86_set_flat_code(v, cs, 0, true);
	x86_set_flat_stack(v, cs + 8, 0);
	return 0;
}

int x86_sysret(struct vcpu *v, unsigned size)
{
	uint16_t base = (uint16_t)(v->star >> 48);

	if (!(v->efer & EFER_SCE) || !x86_code64(v))
		return x86_fault(v, VEC_UD);
	if (x86_cpl(v) != 0 || (size == 8 && !x86_canonical(v, v->regs[GPR_RCX])))
		return x86_fault_code(v, VEC_GP, 0);
	v->rip = size == 8 ? v->regs[GPR_RCX] : (uint32_t)v->regs[GPR_RCX];
	v->rflags = (v->regs[GPR_R11] & 0x3c7fd7) | RFLAGS_FIXED;
	x86_set_flat_code(v, (uint16_t)((size == 8 ? base + 16 : base) | 3), 3, size == 8);
	x86_set_flat_stack(v, (uint16_t)((base + 8) | 3), 3);
	return 0;
}

int x86_sysenter(struct vcpu *v)
{
	uint16_t cs = (uint16_t)v->sysenter_cs & 0xfffc;

	if (!x86_protected(v) || !cs)
		return x86_fault_code(v, VEC_GP, 0);
	v->rflags &= ~(uint64_t)(RFLAGS_VM | RFLAGS_IF);
	x86_set_flat_code(v, cs, 0, x86_long_mode(v));
	x86_set_flat_stack(v, cs + 8, 0);
	v->rip = x86_long_mode(v) ? v->sysenter_eip : (uint32_t)v->sysenter_eip;
	v->regs[GPR_RSP] = x86_long_mode(v) ? v->sysenter_esp : (uint32_t)v->sysenter_esp;
	return 0;
}

int x86_sysexit(struct vcpu *v, unsigned size)
{
	uint16_t cs = (uint16_t)v->sysenter_cs & 0xfffc;
	bool code64 = size == 8;

	if (!cs || !x86_protected(v) || x86_cpl(v) != 0)
		return x86_fault_code(v, VEC_GP, 0);
	if (code64 && (!x86_canonical(v, v->regs[GPR_RCX]) || !x86_canonical(v, v->regs[GPR_RDX])))
		return x86_fault_code(v, VEC_GP, 0);
	x86_set_flat_code(v, (uint16_t)((code64 ? cs + 32 : cs + 16) | 3), 3, code64);
	x86_set_flat_stack(v, (uint16_t)((code64 ? cs + 40 : cs + 24) | 3), 3);
	v->rip = code64 ? v->regs[GPR_RDX] : (uint32_t)v->regs[GPR_RDX];
	v->regs[GPR_RSP] = code64 ? v->regs[GPR_RCX] : (uint32_t)v->regs[GPR_RCX];
	return 0;
}
