/* Delivery of exceptions and interrupts through the IDT (SDM 3A, chapter 6), with the ladder from a
 * fault during delivery to double fault to shutdown.
 *
 * A delivery works on copies and commits at its end, so a fault inside leaves the state of before.
 */
#include "x86/cpu.h"

struct delivery {
	unsigned vector;
	bool soft;     /* INT n, INT3, INTO: DPL of the gate counts */
	bool external; /* EXT bit of error codes met on the way */
	bool has_error;
	uint32_t error;
	uint64_t rip;    /* to be pushed */
	uint64_t rflags; /* to be pushed */
};

static int gate_fault(struct vcpu *v, const struct delivery *d, unsigned vector)
{
	return x86_fault_code(v, vector, d->vector * 8 + 2 + (d->soft ? 0 : 1));
}

/* The code segment of a gate: fills `cs` and the new level. */
static int gate_code(struct vcpu *v, uint16_t selector, struct segment *cs, unsigned *level)
{
	unsigned cpl = x86_cpl(v), dpl, type;
	uint64_t desc[2];
	bool visible;

	if (!(selector & 0xfffc))
		return x86_fault_code(v, VEC_GP, 1);
	if (x86_probe_descriptor(v, selector, &visible, desc))
		return X86_FAULT;
	type = desc[0] >> 40 & 0xf;
	dpl = desc[0] >> 45 & 3;
	if (!visible || !(desc[0] >> 44 & 1) || !(type & 8) || dpl > cpl)
		return x86_fault_code(v, VEC_GP, (selector & 0xfffc) + 1);
	if (x86_long_mode(v) && (!(desc[0] >> 53 & 1) || (desc[0] >> 54 & 1)))
		return x86_fault_code(v, VEC_GP, (selector & 0xfffc) + 1);
	if (!(desc[0] >> 47 & 1))
		return x86_fault_code(v, VEC_NP, (selector & 0xfffc) + 1);
	*level = type & 4 ? cpl : dpl;
	cs->selector = (uint16_t)((selector & ~3u) | *level);
	cs->base = (uint32_t)((desc[0] >> 16 & 0xffffff) | (desc[0] >> 32 & 0xff000000));
	cs->limit = (uint32_t)((desc[0] & 0xffff) | (desc[0] >> 32 & 0xf0000));
	if (desc[0] >> 55 & 1)
		cs->limit = cs->limit << 12 | 0xfff;
	cs->attr = (uint16_t)(desc[0] >> 40) & 0xf0ff;
	return 0;
}

static int deliver_long(struct vcpu *v, const struct delivery *d)
{
	unsigned cpl = x86_cpl(v), level, type, ist, n = 0;
	uint64_t gate[2], rip, rsp = v->regs[GPR_RSP], frame[6];
	struct segment cs;

	if (d->vector * 16 + 15 > v->idt.limit)
		return gate_fault(v, d, VEC_GP);
	if (x86_read(v, v->idt.base + d->vector * 16, gate, 16, ACC_READ | ACC_IMPLICIT))
		return X86_FAULT;
	type = gate[0] >> 40 & 0x1f;
	if (type != 0xe && type != 0xf)
		return gate_fault(v, d, VEC_GP);
	if (d->soft && (gate[0] >> 45 & 3) < cpl)
		return gate_fault(v, d, VEC_GP);
	if (!(gate[0] >> 47 & 1))
		return gate_fault(v, d, VEC_NP);
	if (gate_code(v, (uint16_t)(gate[0] >> 16), &cs, &level))
		return X86_FAULT;
	rip = (gate[0] & 0xffff) | (gate[0] >> 32 & 0xffff0000) | gate[1] << 32;
	if (!x86_canonical(v, rip))
		return x86_fault_code(v, VEC_GP, 0);
	ist = gate[0] >> 32 & 7;
	if (ist || level != cpl) {
		unsigned offset = ist ? 28 + ist * 8 : 4 + level * 8;

		if (offset + 7 > v->tr.limit)
			return x86_fault_code(v, VEC_TS, v->tr.selector & 0xfffc);
		if (x86_read_uint(v, v->tr.base + offset, 8, ACC_READ | ACC_IMPLICIT, &rsp))
			return X86_FAULT;
	}
	rsp &= ~15ull;
	if (d->has_error)
		frame[n++] = d->error;
	frame[n++] = d->rip;
	frame[n++] = v->seg[SEG_CS].selector;
	frame[n++] = d->rflags;
	frame[n++] = v->regs[GPR_RSP];
	frame[n++] = v->seg[SEG_SS].selector;
	rsp -= n * 8;
	if (!x86_canonical(v, rsp))
		return x86_fault_code(v, VEC_SS, 0);
	if (x86_write(v, rsp, frame, n * 8, ACC_WRITE | ACC_IMPLICIT | (level == 3 ? ACC_USER : 0)))
		return X86_FAULT;
	v->regs[GPR_RSP] = rsp;
	v->rip = rip;
	v->seg[SEG_CS] = cs;
	if (level != cpl)
		v->seg[SEG_SS] = (struct segment){
		    .selector = (uint16_t)level,
		    .attr = (uint16_t)(SEG_UNUSABLE | level << SEG_ATTR_DPL_SHIFT),
		};
	v->rflags &= ~(uint64_t)(RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM |
				 (type == 0xe ? RFLAGS_IF : 0));
	return 0;
}

static int deliver_protected(struct vcpu *v, const struct delivery *d)
{
	unsigned cpl = x86_cpl(v), level, type, size, n = 0;
	struct segment cs, old_ss = v->seg[SEG_SS], old_cs = v->seg[SEG_CS];
	uint64_t gate, old_rsp = v->regs[GPR_RSP], rip, words[6];

	if (d->vector * 8 + 7 > v->idt.limit)
		return gate_fault(v, d, VEC_GP);
	if (x86_read_uint(v, v->idt.base + d->vector * 8, 8, ACC_READ | ACC_IMPLICIT, &gate))
		return X86_FAULT;
	type = gate >> 40 & 0x1f;
	if ((type & ~9u) != 6) /* 6, 7: 16-bit interrupt and trap gates; 14, 15: 32-bit */
		return gate_fault(v, d, VEC_GP);
	if (d->soft && (gate >> 45 & 3) < cpl)
		return gate_fault(v, d, VEC_GP);
	if (!(gate >> 47 & 1))
		return gate_fault(v, d, VEC_NP);
	if (gate_code(v, (uint16_t)(gate >> 16), &cs, &level))
		return X86_FAULT;
	size = type & 8 ? 4 : 2;
	rip = (gate & 0xffff) | (type & 8 ? gate >> 32 & 0xffff0000 : 0);
	if (rip > cs.limit)
		return x86_fault_code(v, VEC_GP, 0);
	if (level != cpl) {
		bool wide = v->tr.attr & 8; /* 32-bit TSS */
		unsigned offset = wide ? 4 + level * 8 : 2 + level * 4;
		uint64_t sp, ss;

		if (offset + (wide ? 5 : 3) > v->tr.limit)
			return x86_fault_code(v, VEC_TS, v->tr.selector & 0xfffc);
		if (x86_read_uint(v, v->tr.base + offset, wide ? 4 : 2, ACC_READ | ACC_IMPLICIT,
				  &sp) ||
		    x86_read_uint(v, v->tr.base + offset + (wide ? 4 : 2), 2,
				  ACC_READ | ACC_IMPLICIT, &ss))
			return X86_FAULT;
		/* Load SS at the new level: the check wants CPL = level. */
		v->seg[SEG_SS].attr =
		    (uint16_t)((old_ss.attr & ~0x60u) | level << SEG_ATTR_DPL_SHIFT);
		if (x86_load_segment(v, SEG_SS, (uint16_t)ss))
			goto undo;
		v->regs[GPR_RSP] = sp;
		words[n++] = old_ss.selector;
		words[n++] = old_rsp;
	}
	words[n++] = d->rflags;
	words[n++] = old_cs.selector;
	words[n++] = d->rip;
	if (d->has_error)
		words[n++] = d->error;
	v->seg[SEG_CS] = cs;
	for (unsigned i = 0; i < n; i++)
		if (x86_push(v, size, words[i]))
			goto undo;
	v->rip = rip;
	v->rflags &=
	    ~(uint64_t)(RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM | (type & 1 ? 0 : RFLAGS_IF));
	return 0;
undo:
	v->seg[SEG_SS] = old_ss;
	v->seg[SEG_CS] = old_cs;
	v->regs[GPR_RSP] = old_rsp;
	return X86_FAULT;
}

static int deliver_real(struct vcpu *v, const struct delivery *d)
{
	uint64_t entry, rsp = v->regs[GPR_RSP];

	if (d->vector * 4 + 3 > v->idt.limit)
		return x86_fault(v, VEC_GP);
	if (x86_read_uint(v, v->idt.base + d->vector * 4, 4, ACC_READ, &entry))
		return X86_FAULT;
	if (x86_push(v, 2, d->rflags) || x86_push(v, 2, v->seg[SEG_CS].selector) ||
	    x86_push(v, 2, d->rip)) {
		v->regs[GPR_RSP] = rsp;
		return X86_FAULT;
	}
	v->seg[SEG_CS].selector = (uint16_t)(entry >> 16);
	v->seg[SEG_CS].base = (entry >> 16) << 4;
	v->rip = entry & 0xffff;
	v->rflags &= ~(uint64_t)(RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | RFLAGS_RF);
	return 0;
}

static int deliver_once(struct vcpu *v, const struct delivery *d)
{
	if (!x86_protected(v))
		return deliver_real(v, d);
	return x86_long_mode(v) ? deliver_long(v, d) : deliver_protected(v, d);
}

static bool contributory(unsigned vector)
{
	return vector == VEC_DE || (vector >= VEC_TS && vector <= VEC_GP);
}

/* SDM 3A, table 6-5. */
static bool makes_double_fault(unsigned first, unsigned second)
{
	if (first == VEC_PF)
		return contributory(second) || second == VEC_PF;
	return contributory(first) && contributory(second);
}

static int deliver(struct vcpu *v, struct delivery d)
{
	while (deliver_once(v, &d)) {
		unsigned second = v->fault.vector;

		if (d.vector == VEC_DF)
			return X86_SHUTDOWN;
		if (!d.soft && !d.external && makes_double_fault(d.vector, second)) {
			d.vector = VEC_DF;
			d.has_error = x86_protected(v);
			d.error = 0;
		} else {
			d.vector = second;
			d.has_error = v->fault.has_error && x86_protected(v);
			d.error = v->fault.error;
			if (second == VEC_PF)
				v->cr2 = v->fault.cr2;
		}
		d.rip = v->rip; /* the fault is the interrupted instruction's */
		d.rflags |= RFLAGS_RF;
		d.soft = d.external = false;
	}
	v->irq_shadow = 0;
	return 0;
}

int x86_deliver_fault(struct vcpu *v)
{
	struct delivery d = {
	    .vector = v->fault.vector,
	    .has_error = v->fault.has_error && x86_protected(v),
	    .error = v->fault.error,
	    .rip = v->rip,
	    .rflags = v->rflags,
	};

	if (d.vector == VEC_PF)
		v->cr2 = v->fault.cr2;
	if (d.vector != VEC_DB)
		d.rflags |= RFLAGS_RF; /* faults resume past an instruction breakpoint */
	return deliver(v, d);
}

int x86_deliver_event(struct vcpu *v, unsigned vector, enum x86_event type, uint64_t return_rip)
{
	struct delivery d = {
	    .vector = vector,
	    .soft = type == EVENT_SOFT_INT,
	    .external = type == EVENT_EXTERNAL,
	    .rip = return_rip,
	    .rflags = v->rflags,
	};

	return deliver(v, d);
}
