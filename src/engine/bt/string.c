/* String instructions, with their repeat prefixes.
 *
 * Forward moves, stores and compares go page by page: one walk for each operand, then the host's own
 * instruction over the part that lies in both pages.  Everything else (backward, page-crossing
 * elements, MMIO, port strings) goes element by element.  A long repeat looks up at each page, so
 * interrupts are taken between iterations as the SDM says.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/interp.h"

struct string_op {
	enum { OP_MOVS, OP_CMPS, OP_SCAS, OP_LODS, OP_STOS, OP_INS, OP_OUTS } kind;
	unsigned size, addrsize, seg; /* seg: of the source */
	uint8_t rep;
};

static void advance(struct vcpu *v, unsigned reg, unsigned addrsize, uint64_t bytes)
{
	uint64_t mask = bt_size_mask(addrsize), value = v->regs[reg] + bytes;

	v->regs[reg] = addrsize == 4 ? (uint32_t)value : (v->regs[reg] & ~mask) | (value & mask);
}

static void compare_flags(struct vcpu *v, uint64_t a, uint64_t b, unsigned size)
{
	uint64_t flags;
	unsigned shift = 64 - size * 8;

	/* Compared in the top bits: all flags but AF and PF come out right; those need the low byte. */
	__asm__("cmpq %2, %1\n\tpushfq\n\tpopq %0"
		: "=r"(flags)
		: "r"(a << shift), "r"(b << shift)
		: "cc");
	v->rflags = (v->rflags & ~(uint64_t)RFLAGS_ARITH) |
		    (flags & (RFLAGS_CF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF));
	if ((a ^ b ^ (a - b)) & 0x10)
		v->rflags |= RFLAGS_AF;
	if (!(__builtin_popcount((uint8_t)(a - b)) & 1))
		v->rflags |= RFLAGS_PF;
}

static int read_element(struct bt_vcpu *bv, unsigned seg, uint64_t offset, unsigned size,
			uint64_t *value)
{
	gva_t la;

	if (bt_mem_linear(&bv->v, seg, offset, size, false, &la))
		return X86_FAULT;
	bt_watch(bv, la, size, false);
	return x86_read_uint(&bv->v, la, size, ACC_READ | x86_access_user(&bv->v), value);
}

static int write_element(struct bt_vcpu *bv, uint64_t offset, unsigned size, uint64_t value)
{
	gva_t la;

	if (bt_mem_linear(&bv->v, SEG_ES, offset, size, true, &la))
		return X86_FAULT;
	bt_watch(bv, la, size, true);
	return x86_write_uint(&bv->v, la, size, ACC_WRITE | x86_access_user(&bv->v), value);
}

/* May the element be written? */
static int probe_element(struct bt_vcpu *bv, uint64_t offset, unsigned size)
{
	unsigned access = ACC_WRITE | x86_access_user(&bv->v);
	struct page_walk walk;
	gva_t la;

	if (bt_mem_linear(&bv->v, SEG_ES, offset, size, true, &la) ||
	    x86_walk(&bv->v, la, access, &walk))
		return X86_FAULT;
	return x86_walk(&bv->v, la + size - 1, access, &walk);
}

static int element(struct bt_vcpu *bv, const struct string_op *op)
{
	struct vcpu *v = &bv->v;
	uint64_t step = v->rflags & RFLAGS_DF ? -(uint64_t)op->size : op->size,
		 mask = bt_size_mask(op->addrsize);
	uint64_t si = v->regs[GPR_RSI] & mask, di = v->regs[GPR_RDI] & mask, a, b;
	uint16_t port = (uint16_t)v->regs[GPR_RDX];
	bool uses_si = false, uses_di = true;

	switch (op->kind) {
	case OP_MOVS:
		if (read_element(bv, op->seg, si, op->size, &a) ||
		    write_element(bv, di, op->size, a))
			return X86_FAULT;
		uses_si = true;
		break;
	case OP_CMPS:
		if (read_element(bv, op->seg, si, op->size, &a) ||
		    read_element(bv, SEG_ES, di, op->size, &b))
			return X86_FAULT;
		compare_flags(v, a, b, op->size);
		uses_si = true;
		break;
	case OP_SCAS:
		if (read_element(bv, SEG_ES, di, op->size, &b))
			return X86_FAULT;
		compare_flags(v, v->regs[GPR_RAX] & bt_size_mask(op->size), b, op->size);
		break;
	case OP_LODS:
		if (read_element(bv, op->seg, si, op->size, &a))
			return X86_FAULT;
		if (op->size >= 4)
			v->regs[GPR_RAX] = a;
		else
			v->regs[GPR_RAX] = (v->regs[GPR_RAX] & ~bt_size_mask(op->size)) | a;
		uses_si = true;
		uses_di = false;
		break;
	case OP_STOS:
		if (write_element(bv, di, op->size, v->regs[GPR_RAX] & bt_size_mask(op->size)))
			return X86_FAULT;
		break;
	case OP_INS:
		/* The port has side effects: the destination must be writable before. */
		if (bt_io_allowed(bv, port, op->size) || probe_element(bv, di, op->size))
			return X86_FAULT;
		bt_platform(v);
		a = v->ops->io_read(v->platform, port, op->size);
		if (write_element(bv, di, op->size, a))
			return X86_FAULT;
		break;
	case OP_OUTS:
		if (bt_io_allowed(bv, port, op->size) ||
		    read_element(bv, op->seg, si, op->size, &a))
			return X86_FAULT;
		bt_platform(v);
		v->ops->io_write(v->platform, port, op->size, (uint32_t)a);
		uses_si = true;
		uses_di = false;
		break;
	}
	if (uses_si)
		advance(v, GPR_RSI, op->addrsize, step);
	if (uses_di)
		advance(v, GPR_RDI, op->addrsize, step);
	return 0;
}

/* Host pointer to the elements from `offset` on that lie in its page; *count is cut to them.  NULL
 * (and *count untouched) if the first element must go the long way. */
static void *run_of(struct bt_vcpu *bv, unsigned seg, uint64_t offset, unsigned size, bool write,
		    uint64_t *count, gpa_t *gpa)
{
	struct vcpu *v = &bv->v;
	struct page_walk walk;
	uint64_t n;
	void *p;
	gva_t la;

	if (bt_mem_linear(v, seg, offset, size, write, &la))
		return NULL;
	n = (GUEST_PAGE_SIZE - (la & GUEST_PAGE_MASK)) / size;
	if (n && bv->fetch_gpa != GPA_NONE) {
		const struct tlb_entry *t =
		    &bv->space->tlb[la >> GUEST_PAGE_SHIFT & (TLB_ENTRIES - 1)];
		uint64_t at = la + (write ? t->write_tag : t->read_tag);

		if (at < GUEST_PAGE_SIZE) {
			*count = MIN(n, *count);
			/* Where a write tag stands, no write needs to be told, but that it may fall by another
			 * vcpu's note while this one writes. */
			*gpa = v->ram->concurrent ? ram_gpa(v->ram, (void *)(t->host + at)) : GPA_NONE;
			return (void *)(t->host + at);
		}
	}
	if (n == 0 || x86_walk(v, la, (write ? ACC_WRITE : ACC_READ) | x86_access_user(v), &walk))
		return NULL;
	if (n > *count)
		n = *count;
	if (!x86_code64(v)) {
		uint64_t room =
		    v->seg[seg].limit - offset + 1; /* checked above: at least one element */

		if (v->seg[seg].attr & 4)
			return NULL; /* expand down or conforming: rare */
		if (n > room / size)
			n = room / size;
	}
	p = ram_host(v->ram, walk.gpa, n * size);
	if (!p)
		return NULL;
	*gpa = walk.gpa;
	*count = n;
	return p;
}

#define REPEAT(insn)                                             \
	switch (size) {                                          \
	case 1:                                                  \
		__asm__ volatile("rep " insn "b"                 \
				 : "+D"(dst), "+S"(src), "+c"(n) \
				 : "a"(rax)                      \
				 : "memory");                    \
		break;                                           \
	case 2:                                                  \
		__asm__ volatile("rep " insn "w"                 \
				 : "+D"(dst), "+S"(src), "+c"(n) \
				 : "a"(rax)                      \
				 : "memory");                    \
		break;                                           \
	case 4:                                                  \
		__asm__ volatile("rep " insn "l"                 \
				 : "+D"(dst), "+S"(src), "+c"(n) \
				 : "a"(rax)                      \
				 : "memory");                    \
		break;                                           \
	default:                                                 \
		__asm__ volatile("rep " insn "q"                 \
				 : "+D"(dst), "+S"(src), "+c"(n) \
				 : "a"(rax)                      \
				 : "memory");                    \
	}

static void host_move(void *dst, const void *src, uint64_t n, unsigned size)
{
	uint64_t rax = 0;

	REPEAT("movs")
}

static void host_store(void *dst, uint64_t n, unsigned size, uint64_t rax)
{
	const void *src = NULL;

	REPEAT("stos")
}

/* As many elements as one look-up of each operand covers.  0: none, go the long way. */
static uint64_t bulk(struct bt_vcpu *bv, const struct string_op *op, uint64_t count)
{
	struct vcpu *v = &bv->v;
	uint64_t mask = bt_size_mask(op->addrsize), n = count;
	uint64_t si = v->regs[GPR_RSI] & mask, di = v->regs[GPR_RDI] & mask;
	gpa_t from, to;
	void *src, *dst;

	if ((v->rflags & (RFLAGS_DF | RFLAGS_TF)) || x86_breaks(v))
		return 0;
	if (op->kind == OP_MOVS) {
		src = run_of(bv, op->seg, si, op->size, false, &n, &from);
		dst = src ? run_of(bv, SEG_ES, di, op->size, true, &n, &to) : NULL;
		if (!dst)
			return 0;
		host_move(dst, src, n, op->size);
		advance(v, GPR_RSI, op->addrsize, n * op->size);
	} else if (op->kind == OP_STOS) {
		dst = run_of(bv, SEG_ES, di, op->size, true, &n, &to);
		if (!dst)
			return 0;
		host_store(dst, n, op->size, v->regs[GPR_RAX]);
	} else {
		return 0;
	}
	if (to != GPA_NONE)
		ram_written(v->ram, to, n * op->size);
	advance(v, GPR_RDI, op->addrsize, n * op->size);
	return n;
}

/* REPE/REPNE CMPS and SCAS over what one look-up covers; *done says that the condition ended it. */
static uint64_t bulk_compare(struct bt_vcpu *bv, const struct string_op *op, uint64_t count,
			     bool *done)
{
	struct vcpu *v = &bv->v;
	uint64_t mask = bt_size_mask(op->addrsize), n = count, i, a = 0, b = 0;
	uint64_t si = v->regs[GPR_RSI] & mask, di = v->regs[GPR_RDI] & mask;
	bool while_equal = op->rep == 0xf3;
	const uint8_t *p = NULL, *q;
	gpa_t gpa;

	if ((v->rflags & (RFLAGS_DF | RFLAGS_TF)) || x86_breaks(v))
		return 0;
	if (op->kind == OP_CMPS) {
		p = run_of(bv, op->seg, si, op->size, false, &n, &gpa);
		if (!p)
			return 0;
	}
	q = run_of(bv, SEG_ES, di, op->size, false, &n, &gpa);
	if (!q)
		return 0;
	a = v->regs[GPR_RAX] & bt_size_mask(op->size);
	for (i = 0; i < n;) {
		b = 0;
		x86_copy(&b, q + i * op->size, op->size);
		if (p) {
			a = 0;
			x86_copy(&a, p + i * op->size, op->size);
		}
		i++;
		if ((a == b) != while_equal) {
			*done = true;
			break;
		}
	}
	compare_flags(v, a, b, op->size);
	if (p)
		advance(v, GPR_RSI, op->addrsize, i * op->size);
	advance(v, GPR_RDI, op->addrsize, i * op->size);
	return i;
}

static void decode_op(const struct insn *in, struct string_op *op)
{
	uint8_t opcode = in->bytes[in->opcode_off];

	switch (opcode & 0xfe) {
	case 0x6c: op->kind = OP_INS; break;
	case 0x6e: op->kind = OP_OUTS; break;
	case 0xa4: op->kind = OP_MOVS; break;
	case 0xa6: op->kind = OP_CMPS; break;
	case 0xaa: op->kind = OP_STOS; break;
	case 0xac: op->kind = OP_LODS; break;
	default: op->kind = OP_SCAS;
	}
	op->size = opcode & 1 ? in->opsize : 1;
	if (op->kind >= OP_INS && op->size == 8)
		op->size = 4;
	op->addrsize = in->addrsize;
	op->seg = in->string_seg;
	op->rep = 0;
	for (unsigned i = 0; i < in->opcode_off; i++)
		if (in->bytes[i] == 0xf3 || in->bytes[i] == 0xf2)
			op->rep = in->bytes[i];
}

int bt_interp_string(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	struct string_op op;
	uint64_t mask;

	decode_op(in, &op);
	if (!op.rep)
		return element(bv, &op);
	mask = bt_size_mask(op.addrsize);
	for (;;) {
		uint64_t count = v->regs[GPR_RCX] & mask, n = 0;
		bool compares = op.kind == OP_CMPS || op.kind == OP_SCAS, done = false;

		if (count == 0)
			break;
		n = compares ? bulk_compare(bv, &op, count, &done) : bulk(bv, &op, count);
		if (n == 0) {
			if (element(bv, &op))
				return X86_FAULT;
			n = 1;
			done = compares && !!(v->rflags & RFLAGS_ZF) != (op.rep == 0xf3);
		}
		advance(v, GPR_RCX, op.addrsize, -n);
		if (done || !(v->regs[GPR_RCX] & mask))
			break;
		/* Interrupted, or stepped: RIP stays at the instruction. */
		if (atomic_load_explicit(&v->attention, memory_order_relaxed) ||
		    (v->rflags & RFLAGS_TF) || bv->data_break || (v->debug && v->debug->hit))
			return INTERP_DONE;
	}
	return 0;
}
