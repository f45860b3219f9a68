#include "machine/debug.h"

#include <errno.h>
#include <string.h>

#include "machine/parts.h"
#include "x86/cpu.h"

#define INT3 0xcc

/* --- registers --- */

#define CORE "org.gnu.gdb.i386.core"
#define SSE "org.gnu.gdb.i386.sse"
#define SEGMENTS "org.gnu.gdb.i386.segments"
#define SYSTEM "takt.x86.system"

#define R64(name)                       \
	{                               \
		name, "int64", CORE, 64 \
	}
#define R32(name)                       \
	{                               \
		name, "int32", CORE, 32 \
	}
#define ST(name)                           \
	{                                  \
		name, "i387_ext", CORE, 80 \
	}
#define FP(name)                      \
	{                             \
		name, "int", CORE, 32 \
	}
#define XMM(name)                        \
	{                                \
		name, "vec128", SSE, 128 \
	}
#define SYS(name)                         \
	{                                 \
		name, "int64", SYSTEM, 64 \
	}

static const struct debug_register registers[] = {
    R64("rax"),
    R64("rbx"),
    R64("rcx"),
    R64("rdx"),
    R64("rsi"),
    R64("rdi"),
    {"rbp", "data_ptr", CORE, 64},
    {"rsp", "data_ptr", CORE, 64},
    R64("r8"),
    R64("r9"),
    R64("r10"),
    R64("r11"),
    R64("r12"),
    R64("r13"),
    R64("r14"),
    R64("r15"),
    {"rip", "code_ptr", CORE, 64},
    {"eflags", "i386_eflags", CORE, 32},
    R32("cs"),
    R32("ss"),
    R32("ds"),
    R32("es"),
    R32("fs"),
    R32("gs"),
    ST("st0"),
    ST("st1"),
    ST("st2"),
    ST("st3"),
    ST("st4"),
    ST("st5"),
    ST("st6"),
    ST("st7"),
    FP("fctrl"),
    FP("fstat"),
    FP("ftag"),
    FP("fiseg"),
    FP("fioff"),
    FP("foseg"),
    FP("fooff"),
    FP("fop"),
    XMM("xmm0"),
    XMM("xmm1"),
    XMM("xmm2"),
    XMM("xmm3"),
    XMM("xmm4"),
    XMM("xmm5"),
    XMM("xmm6"),
    XMM("xmm7"),
    XMM("xmm8"),
    XMM("xmm9"),
    XMM("xmm10"),
    XMM("xmm11"),
    XMM("xmm12"),
    XMM("xmm13"),
    XMM("xmm14"),
    XMM("xmm15"),
    {"mxcsr", "int", SSE, 32},
    {"fs_base", "int64", SEGMENTS, 64},
    {"gs_base", "int64", SEGMENTS, 64},
    SYS("k_gs_base"),
    SYS("cr0"),
    SYS("cr2"),
    SYS("cr3"),
    SYS("cr4"),
    SYS("efer"),
};

/* Numbers in that table. */
enum {
	RIP = 16,
	EFLAGS,
	CS,
	ST0 = 24,
	FCTRL = 32,
	XMM0 = 40,
	MXCSR = 56,
	FS_BASE,
	GS_BASE,
	SYSTEM0
};

/* In the image that FXSAVE writes (SDM 1, 10.5.1), and XSTATE_BV behind it. */
#define FX_STATUS 2
#define FX_TAG 4
#define FX_OPCODE 6
#define FX_IP 8
#define FX_DP 16
#define FX_MXCSR 24
#define FX_ST 32
#define FX_XMM 160
#define XSTATE_BV 512
#define STATE_X87 1ull
#define STATE_SSE 2ull

static const uint8_t gpr[] = {GPR_RAX, GPR_RBX, GPR_RCX, GPR_RDX, GPR_RSI, GPR_RDI,
			      GPR_RBP, GPR_RSP, GPR_R8,  GPR_R9,  GPR_R10, GPR_R11,
			      GPR_R12, GPR_R13, GPR_R14, GPR_R15};
static const uint8_t segments[] = {SEG_CS, SEG_SS, SEG_DS, SEG_ES, SEG_FS, SEG_GS};

const struct debug_register *debug_register(unsigned n)
{
	return n < ARRAY_SIZE(registers) ? &registers[n] : NULL;
}

/* The x87 and SSE state, with what is in its initial state written out. */
static void unfold(const struct vcpu *v, uint8_t fx[512])
{
	uint64_t there;
	uint16_t control = 0x37f;

	memcpy(&there, v->xsave + XSTATE_BV, 8);
	memcpy(fx, v->xsave, 512);
	if (!(there & STATE_X87)) {
		memset(fx, 0, FX_MXCSR);
		memset(fx + FX_ST, 0, FX_XMM - FX_ST);
		memcpy(fx, &control, 2);
	}
	if (!(there & STATE_SSE))
		memset(fx + FX_XMM, 0, 256);
}

/* Two bits a register as gdb wants them, of the one that FXSAVE keeps: empty or not. */
static uint16_t tag_word(const uint8_t *fx)
{
	uint16_t tags = 0;

	for (unsigned i = 0; i < 8; i++)
		if (!(fx[FX_TAG] >> i & 1))
			tags |= (uint16_t)(3 << 2 * i);
	return tags;
}

static uint32_t x87_register(const uint8_t *fx, unsigned n)
{
	uint16_t word[12];

	memcpy(word, fx, sizeof(word));
	switch (n) {
	case 0: return word[0];
	case 1: return word[FX_STATUS / 2];
	case 2: return tag_word(fx);
	case 3: return word[(FX_IP + 4) / 2];
	case 4: return word[FX_IP / 2] | (uint32_t)word[FX_IP / 2 + 1] << 16;
	case 5: return word[(FX_DP + 4) / 2];
	case 6: return word[FX_DP / 2] | (uint32_t)word[FX_DP / 2 + 1] << 16;
	default: return word[FX_OPCODE / 2] & 0x7ff;
	}
}

static uint64_t system_register(const struct vcpu *v, unsigned n)
{
	switch (n) {
	case FS_BASE: return v->seg[SEG_FS].base;
	case GS_BASE: return v->seg[SEG_GS].base;
	case SYSTEM0: return v->kernel_gs_base;
	case SYSTEM0 + 1: return v->cr0;
	case SYSTEM0 + 2: return v->cr2;
	case SYSTEM0 + 3: return v->cr3;
	case SYSTEM0 + 4: return v->cr4;
	default: return v->efer;
	}
}

int debug_register_read(struct vcpu *v, unsigned n, uint8_t value[DEBUG_REGISTER_MAX])
{
	uint8_t fx[512];
	uint64_t word;

	if (n >= ARRAY_SIZE(registers))
		return -ENOENT;
	memset(value, 0, DEBUG_REGISTER_MAX);
	vcpu_settle(v, NULL);
	unfold(v, fx);
	if (n >= ST0 && n < FCTRL) {
		memcpy(value, fx + FX_ST + 16 * (n - ST0), 10);
		return 0;
	}
	if (n >= XMM0 && n < MXCSR) {
		memcpy(value, fx + FX_XMM + 16 * (n - XMM0), 16);
		return 0;
	}
	if (n < RIP)
		word = v->regs[gpr[n]];
	else if (n == RIP)
		word = v->rip;
	else if (n == EFLAGS)
		word = v->rflags;
	else if (n < ST0)
		word = v->seg[segments[n - CS]].selector;
	else if (n < XMM0)
		word = x87_register(fx, n - FCTRL);
	else if (n == MXCSR) {
		uint32_t mxcsr;

		memcpy(&mxcsr, v->xsave + FX_MXCSR, 4);
		word = mxcsr;
	} else {
		word = system_register(v, n);
	}
	memcpy(value, &word, 8);
	return 0;
}

static void write_fx(struct vcpu *v, unsigned at, const uint8_t *value, unsigned size,
		     uint64_t state)
{
	uint64_t there;
	uint8_t fx[512];

	unfold(v, fx);
	memcpy(fx + at, value, size);
	memcpy(v->xsave, fx, sizeof(fx));
	memcpy(&there, v->xsave + XSTATE_BV, 8);
	there |= state | STATE_X87 | STATE_SSE;
	memcpy(v->xsave + XSTATE_BV, &there, 8);
}

int debug_register_write(struct machine *m, struct vcpu *v, unsigned n,
			 const uint8_t value[DEBUG_REGISTER_MAX])
{
	uint64_t word;
	uint32_t mxcsr;

	vcpu_settle(v, NULL);
	memcpy(&word, value, 8);
	if (n < RIP) {
		v->regs[gpr[n]] = word;
	} else if (n == RIP) {
		v->rip = word;
	} else if (n == EFLAGS) {
		/* Not VM, IOPL and what a write by a program could not change either. */
		uint64_t may =
		    RFLAGS_ARITH | RFLAGS_TF | RFLAGS_IF | RFLAGS_DF | RFLAGS_AC | RFLAGS_ID;

		v->rflags = (v->rflags & ~may) | (word & may) | RFLAGS_FIXED;
	} else if (n >= ST0 && n < FCTRL) {
		write_fx(v, FX_ST + 16 * (n - ST0), value, 10, STATE_X87);
	} else if (n == FCTRL || n == FCTRL + 1) {
		write_fx(v, 2 * (n - FCTRL), value, 2, STATE_X87);
	} else if (n >= XMM0 && n < MXCSR) {
		write_fx(v, FX_XMM + 16 * (n - XMM0), value, 16, STATE_SSE);
	} else if (n == MXCSR) {
		mxcsr = (uint32_t)word & 0xffbf;
		memcpy(v->xsave + FX_MXCSR, &mxcsr, 4);
	} else if (n == FS_BASE || n == GS_BASE) {
		if (!x86_canonical(v, word))
			return -EPERM;
		v->seg[n == FS_BASE ? SEG_FS : SEG_GS].base = word;
		m->engine->state_loaded(v);
	} else {
		/* The rest decides how others are understood: it may be written as it is. */
		uint8_t now[DEBUG_REGISTER_MAX];

		if (debug_register_read(v, n, now))
			return -ENOENT;
		return memcmp(now, value, registers[n].bits / 8) ? -EPERM : 0;
	}
	return 0;
}

/* --- memory --- */

/* The tables of one mode: levels of `index_bits` each, entries of `entry` bytes. */
struct paging {
	unsigned levels, index_bits, entry;
	gpa_t root;
};

static struct paging paging_of(const struct vcpu *v)
{
	if (v->efer & EFER_LMA)
		return (struct paging){v->cr4 & CR4_LA57 ? 5 : 4, 9, 8,
				       v->cr3 & 0x000ffffffffff000ull};
	if (v->cr4 & CR4_PAE)
		return (struct paging){3, 9, 8, v->cr3 & 0xffffffe0u};
	return (struct paging){2, 10, 4, v->cr3 & 0xfffff000u};
}

/* Where `la` is, whoever may access it.  Nothing is marked as accessed.  Returns whether it is
 * mapped. */
static bool translate(struct machine *m, const struct vcpu *v, gva_t la, gpa_t *gpa)
{
	struct paging p = paging_of(v);
	gpa_t table = p.root;

	if (!(v->efer & EFER_LMA))
		la = (uint32_t)la;
	*gpa = la;
	if (!(v->cr0 & CR0_PG))
		return true;
	if ((v->efer & EFER_LMA) && !x86_canonical(v, la))
		return false;
	for (unsigned level = p.levels; level; level--) {
		unsigned shift = 12 + (level - 1) * p.index_bits;
		uint64_t index = la >> shift & ((1u << p.index_bits) - 1), entry = 0;
		/* A large page; only a 4-byte entry's may be of 4 MiB, if CR4 says so. */
		bool may_end = level == 2 || (level == 3 && p.levels > 3);
		const void *at = ram_host(&m->ram, table + index * p.entry, p.entry);

		if (!at)
			return false;
		memcpy(&entry, at, p.entry);
		if (!(entry & 1))
			return false;
		table = entry & (p.entry == 8 ? 0x000ffffffffff000ull : 0xfffff000u);
		if (level == 1 || (may_end && entry & 0x80)) {
			uint64_t inside = (1ull << shift) - 1;

			*gpa = (table & ~inside) | (la & inside);
			return true;
		}
	}
	return false;
}

/* A piece of memory that lies in one page, or NULL. */
static uint8_t *piece(struct machine *m, const struct vcpu *v, uint64_t at, uint64_t len,
		      gpa_t *gpa, uint64_t *n)
{
	*n = MIN(len, GUEST_PAGE_SIZE - (at & GUEST_PAGE_MASK));
	*gpa = at;
	if (v && !translate(m, v, at, gpa))
		return NULL;
	return ram_host(&m->ram, *gpa, *n);
}

uint64_t debug_read(const struct debug_breakpoints *b, struct machine *m, const struct vcpu *v,
		    uint64_t at, uint8_t *buf, uint64_t len)
{
	uint64_t done, n;
	gpa_t gpa;

	for (done = 0; done < len; done += n) {
		const uint8_t *host = piece(m, v, at + done, len - done, &gpa, &n);

		if (!host)
			break;
		memcpy(buf + done, host, n);
		/* As it was before its breakpoints. */
		for (unsigned i = 0; i < b->nsoftware; i++) {
			uint64_t in = b->software[i].gpa - gpa;

			if (in < n && host[in] == INT3)
				buf[done + in] = b->software[i].saved;
		}
	}
	return done;
}

uint64_t debug_write(struct machine *m, const struct vcpu *v, uint64_t at, const uint8_t *buf,
		     uint64_t len)
{
	uint64_t done, n;
	gpa_t gpa;

	for (done = 0; done < len; done += n) {
		uint8_t *host = piece(m, v, at + done, len - done, &gpa, &n);

		if (!host)
			break;
		memcpy(host, buf + done, n);
		ram_written(&m->ram, gpa, n);
	}
	return done;
}

/* --- vcpus --- */

void debug_attach(struct machine *m)
{
	for (unsigned i = 0; i < m->nvcpus; i++) {
		memset(&m->slots[i].debug, 0, sizeof(m->slots[i].debug));
		m->slots[i].vcpu->debug = &m->slots[i].debug;
	}
}

void debug_detach(struct machine *m)
{
	for (unsigned i = 0; i < m->nvcpus; i++)
		m->slots[i].vcpu->debug = NULL;
}

/* --- breakpoints --- */

/* Tells the vcpus. */
static void arm(struct debug_breakpoints *b, struct machine *m)
{
	static const unsigned rw[] = {
	    [DEBUG_HARDWARE] = 0, [DEBUG_WRITE] = 1, [DEBUG_READ] = 3, [DEBUG_ACCESS] = 3};
	uint64_t dr7 = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(b->hardware); i++) {
		const struct debug_hardware *h = &b->hardware[i];
		uint64_t len = h->len == 8 ? 2 : h->len - 1;

		if (h->used)
			dr7 |= 1ull << 2 * i | (rw[h->kind] | len << 2) << (16 + 4 * i);
	}
	for (unsigned i = 0; i < b->nsoftware; i++)
		b->addresses[i] = b->software[i].at;
	for (unsigned i = 0; i < m->nvcpus; i++) {
		struct vcpu_debug *d = &m->slots[i].debug;

		d->int3 = b->addresses;
		d->nint3 = b->nsoftware;
		d->dr7 = dr7;
		for (unsigned k = 0; k < 4; k++)
			d->dr[k] = b->hardware[k].at;
	}
}

static int insert_software(struct debug_breakpoints *b, struct machine *m, const struct vcpu *v,
			   gva_t at)
{
	struct debug_software *s = &b->software[b->nsoftware];
	uint8_t int3 = INT3;
	uint8_t *host;
	uint64_t n;

	for (unsigned i = 0; i < b->nsoftware; i++)
		if (b->software[i].at == at)
			return 0;
	if (b->nsoftware == DEBUG_BREAKPOINTS_MAX)
		return -ENOSPC;
	host = piece(m, v, at, 1, &s->gpa, &n);
	if (!host)
		return -EFAULT;
	s->at = at;
	s->saved = *host;
	b->nsoftware++;
	debug_write(m, NULL, s->gpa, &int3, 1);
	return 0;
}

static void remove_software(struct debug_breakpoints *b, struct machine *m, gva_t at)
{
	/* From the last to the first: two addresses may be one byte. */
	for (unsigned i = b->nsoftware; i--;) {
		struct debug_software s = b->software[i];
		const uint8_t *host = ram_host(&m->ram, s.gpa, 1);

		if (s.at != at)
			continue;
		/* What the guest has written there since is the guest's. */
		if (host && *host == INT3)
			debug_write(m, NULL, s.gpa, &s.saved, 1);
		memmove(&b->software[i], &b->software[i + 1],
			(b->nsoftware - i - 1) * sizeof(b->software[0]));
		b->nsoftware--;
	}
}

static struct debug_hardware *find_hardware(struct debug_breakpoints *b, bool used,
					    enum debug_break kind, gva_t at, uint64_t len)
{
	for (unsigned i = 0; i < ARRAY_SIZE(b->hardware); i++) {
		struct debug_hardware *h = &b->hardware[i];

		if (h->used == used && (!used || (h->kind == kind && h->at == at && h->len == len)))
			return h;
	}
	return NULL;
}

int debug_insert(struct debug_breakpoints *b, struct machine *m, const struct vcpu *v,
		 enum debug_break kind, gva_t at, uint64_t len)
{
	struct debug_hardware *h;
	int ret = 0;

	if (kind == DEBUG_SOFTWARE) {
		ret = insert_software(b, m, v, at);
	} else {
		if (kind == DEBUG_HARDWARE)
			len = 1;
		if ((len != 1 && len != 2 && len != 4 && len != 8) || at & (len - 1))
			return -EINVAL;
		if (find_hardware(b, true, kind, at, len))
			return 0;
		h = find_hardware(b, false, kind, at, len);
		if (!h)
			return -ENOSPC;
		*h = (struct debug_hardware){true, kind, at, len};
	}
	arm(b, m);
	return ret;
}

int debug_remove(struct debug_breakpoints *b, struct machine *m, enum debug_break kind, gva_t at,
		 uint64_t len)
{
	struct debug_hardware *h;

	if (kind == DEBUG_SOFTWARE) {
		remove_software(b, m, at);
	} else {
		h = find_hardware(b, true, kind, at, kind == DEBUG_HARDWARE ? 1 : len);
		if (h)
			memset(h, 0, sizeof(*h));
	}
	arm(b, m);
	return 0;
}

void debug_remove_all(struct debug_breakpoints *b, struct machine *m)
{
	while (b->nsoftware)
		remove_software(b, m, b->software[b->nsoftware - 1].at);
	memset(b->hardware, 0, sizeof(b->hardware));
	arm(b, m);
}
