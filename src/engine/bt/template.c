/* Decoded instructions, kept by what of their bytes matters.
 *
 *   prefixes, REX, opcode, ModRM, SIB | displacement | immediate
 *   `------------- the key ----------'  `--- filled in ------'
 *
 * Programs repeat the same few thousand forms with different constants, and Zydis takes most of the time of
 * making a cheap block.  Invariant: what comes out equals what Zydis would say, bit for bit; forms whose
 * meaning depends on more than the key (VEX and EVEX, three-byte opcodes, shifts by zero, ...) are left to it.
 *
 * One table a thread.  Only template_keep() and insn_thread_exit() call into the C library.  SDM 2A, 2.1 and appendix A.
 */
#include "engine/bt/template.h"

#include <stddef.h>
#include <sys/mman.h>

#include "x86/cpu.h"

/* A compiler and the kernel it runs on have 25,000 forms. */
#define PAIRS_BITS 14
#define TEMPLATES (2u << PAIRS_BITS)
#define KEY_MAX 8

/* What to look for and to fill in takes the place of the bytes, which are filled in, too.  Two lines of the
 * processor's cache that are fetched together. */
union template
{
	struct {
		uint64_t key;
		uint8_t key_len;                                /* 0: empty */
		uint8_t disp_off, disp_size, imm_off, imm_size; /* sizes in bytes; 0: none */
		bool imm_signed : 1, shift : 1;                 /* shift: not of a count of zero */
	};
	struct insn in;
	uint8_t lines[128];
};
_Static_assert(offsetof(struct insn, bytes) == 0 && offsetof(union template, imm_size) + 2 <= INSN_MAX, "in the bytes");

static __thread union template *table;
#define TABLE_BYTES (TEMPLATES * sizeof(*table))

/* Opcodes with a ModRM byte, bit by bit; 0x8f may be XOP, 0xc4, 0xc5 and 0x62 are VEX and EVEX. */
static const uint32_t one_byte_modrm[8] = {
    0x0f0f0f0f, 0x0f0f0f0f, 0x00000000, 0x00000a08, 0x00007fff, 0x00000000, 0xff0f00c3, 0xc0c00000,
};
/* Of the 0f map; without those whose ModRM is peculiar (0x20 to 0x27). */
static const uint32_t two_byte_modrm[8] = {
    0xffff200f, 0x0000ff00, 0xffffffff, 0xff7fffff, 0xffff0000, 0xfffff8f8, 0xffff00ff, 0xffffffff,
};

/* 0x26, 0x2e, 0x36, 0x3e, 0x64 to 0x67, 0xf0, 0xf2, 0xf3. */
static const uint32_t prefix[8] = {
    0, 0x40404040, 0, 0x000000f0, 0, 0, 0, 0x000d0000,
};
/* Opcodes that are no templates: prefixes of other maps (0x62, 0x8f, 0xc4, 0xc5), absolute addresses (0xa0 to 0xa3),
 * two immediates (0xc8). */
static const uint32_t odd[8] = {
    0, 0, 0, 0x00000004, 0x00008000, 0x0000000f, 0x00000130, 0,
};
/* Of the 0f map: 0x0f, 0x38, 0x3a, 0x20 to 0x27. */
static const uint32_t odd_two[8] = {
    0x00008000, 0x050000ff, 0, 0, 0, 0, 0, 0,
};

static bool has_bit(const uint32_t *bits, unsigned n)
{
	return bits[n / 32] >> n % 32 & 1;
}

/* The length of the key at `bytes`, or 0: it has none.  *shift: a shift by an immediate count. */
static unsigned key_length(const uint8_t *bytes, unsigned len, bool *shift)
{
	unsigned n = 0;
	bool modrm;

	while (n < len && has_bit(prefix, bytes[n]))
		n++;
	if (n < len && (bytes[n] & 0xf0) == 0x40)
		n++;
	if (n + 3 > len)
		return 0;
	*shift = (bytes[n] & 0xfe) == 0xc0;
	if (bytes[n] == 0x0f) {
		n++;
		if (has_bit(odd_two, bytes[n]))
			return 0;
		modrm = has_bit(two_byte_modrm, bytes[n]);
		*shift = bytes[n] == 0xa4 || bytes[n] == 0xac;
	} else {
		if (has_bit(odd, bytes[n]) || has_bit(prefix, bytes[n]) || (bytes[n] & 0xf0) == 0x40)
			return 0; /* (a REX prefix counts right before the opcode only) */
		modrm = has_bit(one_byte_modrm, bytes[n]);
	}
	n++;
	if (modrm) {
		uint8_t byte;

		if (n >= len)
			return 0;
		byte = bytes[n++];
		if (byte >> 6 != 3 && (byte & 7) == 4)
			n++;
	}
	return n <= KEY_MAX && n <= len ? n : 0;
}

/* The first `len` bytes of an instruction, at most INSN_MAX, and zeros behind them. */
union copy {
	uint8_t bytes[16];
	uint64_t half[2];
};

/* Reads each byte once: another vcpu may change it meanwhile. */
static union copy copy_of(const uint8_t *bytes, unsigned len)
{
	union copy c = {.half = {0, 0}};

	if (len > INSN_MAX) {
		x86_copy(&c.half[0], bytes, 8);
		x86_copy(&c.half[1], bytes + 8, 8);
		c.bytes[INSN_MAX] = 0;
		return c;
	}
	for (unsigned i = 0; i < len; i++)
		c.bytes[i] = ((const volatile uint8_t *)bytes)[i];
	return c;
}

static uint64_t key_of(const union copy *c, unsigned n)
{
	return c->half[0] & ~0ull >> (64 - 8 * n);
}

/* The two places where the form may be. */
static union template *place(uint64_t key, unsigned n)
{
	return &table[((key + n) * 0x9e3779b97f4a7c15ull) >> (64 - PAIRS_BITS) << 1];
}

static bool is_form(const union template *t, uint64_t key, unsigned n)
{
	return t->key == key && t->key_len == n;
}

static uint64_t constant(const union copy *c, unsigned off, unsigned size, bool is_signed)
{
	unsigned unused = 64 - size * 8;
	uint64_t value;

	__builtin_memcpy(&value, c->bytes + MIN(off, 8u), 8);
	value = value >> (off - MIN(off, 8u)) * 8 << unused;
	return is_signed ? (uint64_t)((int64_t)value >> unused) : value >> unused;
}

/* By words: compilers make a call of memcpy() of an assignment. */
static void copy_insn(struct insn *to, const struct insn *from)
{
	_Static_assert(sizeof(*to) % 8 == 0 && _Alignof(struct insn) == 8, "whole words");
	for (unsigned i = 0; i < sizeof(*to); i += 8)
		__builtin_memcpy((char *)to + i, (const char *)from + i, 8);
}

bool insn_recall(struct insn *in, const uint8_t *bytes, unsigned len)
{
	const union template *t;
	bool shift = false;
	union copy c;
	unsigned n;

	if (unlikely(!table))
		return false;
	c = copy_of(bytes, len);
	len = MIN(len, (unsigned)INSN_MAX);
	n = key_length(c.bytes, len, &shift);
	if (!n)
		return false;
	t = place(key_of(&c, n), n);
	if (!is_form(t, key_of(&c, n), n) && !is_form(++t, key_of(&c, n), n))
		return false;
	if (t->in.len > len ||
	    (t->shift && !(c.bytes[t->imm_off] & 31)))
		return false;
	copy_insn(in, &t->in);
	__builtin_memcpy(in->bytes, c.bytes, 8);
	__builtin_memcpy(in->bytes + INSN_MAX - 8, c.bytes + INSN_MAX - 8, 8);
	if (t->disp_size)
		in->disp = (int64_t)constant(&c, t->disp_off, t->disp_size, true);
	if (t->imm_size)
		in->imm = constant(&c, t->imm_off, t->imm_size, t->imm_signed);
	return true;
}

static union template *map_table(void)
{
	void *p = mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

void template_keep(const struct insn *in, const ZydisDecodedInstruction *zi)
{
	union template t, *at;
	union copy c = copy_of(in->bytes, INSN_MAX);
	bool shift = false;
	unsigned n = key_length(in->bytes, INSN_MAX, &shift);

	if (!n || n > in->len || zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY ||
	    zi->raw.imm[1].size || zi->raw.disp.size > 32)
		return;
	copy_insn(&t.in, in);
	if (!table)
		table = map_table();
	if (!table)
		return;
	t.key = key_of(&c, n);
	t.key_len = (uint8_t)n;
	t.shift = shift;
	t.disp_off = zi->raw.disp.offset;
	t.disp_size = zi->raw.disp.size / 8;
	t.imm_off = zi->raw.imm[0].offset;
	t.imm_size = zi->raw.imm[0].size / 8;
	t.imm_signed = zi->raw.imm[0].is_signed;
	/* What Zydis made of the constants must be what is made of them here. */
	if ((shift && (!t.imm_size || !(in->bytes[t.imm_off] & 31))) ||
	    (t.disp_size && in->has_mem &&
	     constant(&c, t.disp_off, t.disp_size, true) != (uint64_t)in->disp) ||
	    (t.imm_size && constant(&c, t.imm_off, t.imm_size, t.imm_signed) != in->imm))
		return;
	at = place(t.key, n);
	if (!is_form(at, t.key, n))
		copy_insn(&at[1].in, &at[0].in);
	copy_insn(&at[0].in, &t.in);
}

void insn_thread_exit(void)
{
	if (table)
		munmap(table, TABLE_BYTES);
	table = NULL;
}
