/* Writing host instructions.  Only forms the translator needs; registers by number (REG_*). */
#ifndef TAKT_BT_EMIT_H
#define TAKT_BT_EMIT_H

#include "engine/bt/bt.h"

#define GS_OFFSET(member) ((uint32_t)offsetof(struct bt_vcpu, member) - (uint32_t)GS_BIAS)
#define GS_REG(r) ((uint32_t)((r)*8) - (uint32_t)GS_BIAS)

struct emit {
	uint8_t *p;
};

static inline void e8(struct emit *e, unsigned b)
{
	*e->p++ = (uint8_t)b;
}
static inline void e16(struct emit *e, unsigned w)
{
	e8(e, w & 0xff);
	e8(e, w >> 8);
}
static inline void e32(struct emit *e, uint32_t d)
{
	__builtin_memcpy(e->p, &d, 4);
	e->p += 4;
}
static inline void e64(struct emit *e, uint64_t q)
{
	__builtin_memcpy(e->p, &q, 8);
	e->p += 8;
}

/* The instruction as it is; what is behind its bytes is overwritten. */
static inline void e_insn(struct emit *e, const struct insn *in)
{
	_Static_assert(offsetof(struct insn, bytes) == 0 && sizeof(struct insn) >= 16, "one copy for all lengths");
	__builtin_memcpy(e->p, in, 16);
	e->p += in->len;
}

/* gs:[disp32] with `reg` in ModRM; rexw: 64-bit. */
static inline void e_gs(struct emit *e, unsigned opcode, unsigned reg, bool rexw, uint32_t off)
{
	e8(e, 0x65);
	if (rexw || reg >= 8)
		e8(e, 0x40 | (rexw ? 8 : 0) | (reg >= 8 ? 4 : 0));
	if (opcode > 0xff)
		e8(e, opcode >> 8);
	e8(e, opcode);
	e8(e, 0x04 | (reg & 7) << 3);
	e8(e, 0x25);
	e32(e, off);
}
static inline void e_load_gs(struct emit *e, unsigned reg, uint32_t off)
{
	e_gs(e, 0x8b, reg, true, off);
}
static inline void e_store_gs(struct emit *e, uint32_t off, unsigned reg)
{
	e_gs(e, 0x89, reg, true, off);
}
static inline void e_store_gs_imm32(struct emit *e, uint32_t off, uint32_t value) /* dword */
{
	e_gs(e, 0xc7, 0, false, off);
	e32(e, value);
}
static inline void e_store_gs_imm8(struct emit *e, uint32_t off, unsigned value) /* byte */
{
	e_gs(e, 0xc6, 0, false, off);
	e8(e, value);
}
static inline void e_add_gs(struct emit *e, unsigned reg, uint32_t off)
{
	e_gs(e, 0x03, reg, true, off);
}

static inline void e_rr(struct emit *e, unsigned opcode, unsigned rm, unsigned reg, bool rexw)
{
	unsigned rex = (rexw ? 8 : 0) | (reg >= 8 ? 4 : 0) | (rm >= 8 ? 1 : 0);

	if (rex)
		e8(e, 0x40 | rex);
	e8(e, opcode);
	e8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
}
static inline void e_mov(struct emit *e, unsigned dst, unsigned src)
{
	e_rr(e, 0x89, dst, src, true);
}
static inline void e_mov32(struct emit *e, unsigned dst, unsigned src)
{
	e_rr(e, 0x89, dst, src, false);
}

static inline void e_mov_imm(struct emit *e, unsigned reg, uint64_t value)
{
	if (value == (uint32_t)value) {
		if (reg >= 8)
			e8(e, 0x41);
		e8(e, 0xb8 | (reg & 7));
		e32(e, (uint32_t)value);
	} else if ((int64_t)value == (int32_t)value) {
		e8(e, 0x48 | (reg >= 8));
		e8(e, 0xc7);
		e8(e, 0xc0 | (reg & 7));
		e32(e, (uint32_t)value);
	} else {
		e8(e, 0x48 | (reg >= 8));
		e8(e, 0xb8 | (reg & 7));
		e64(e, value);
	}
}

/* dst = src rotated right.  No flags (BMI2). */
static inline void e_rorx(struct emit *e, unsigned dst, unsigned src, unsigned n)
{
	e8(e, 0xc4);
	e8(e, (dst >= 8 ? 0 : 0x80) | 0x40 | (src >= 8 ? 0 : 0x20) | 3);
	e8(e, 0xfb);
	e8(e, 0xf0);
	e8(e, 0xc0 | (dst & 7) << 3 | (src & 7));
	e8(e, n);
}
static inline void e_movzx8(struct emit *e, unsigned dst, unsigned src)
{
	e8(e, 0x40 | (dst >= 8 ? 4 : 0) | (src >= 8 ? 1 : 0));
	e8(e, 0x0f);
	e8(e, 0xb6);
	e8(e, 0xc0 | (dst & 7) << 3 | (src & 7));
}
/* opcode reg, gs:[index * 8 + off], 64 bits. */
static inline void e_gs_index8(struct emit *e, unsigned opcode, unsigned reg, unsigned index, uint32_t off)
{
	e8(e, 0x65);
	e8(e, 0x48 | (reg >= 8 ? 4 : 0) | (index >= 8 ? 2 : 0));
	e8(e, opcode);
	e8(e, 0x04 | (reg & 7) << 3);
	e8(e, 0xc5 | (index & 7) << 3);
	e32(e, off);
}

/* mov reg, gs:[(index * 8 + off) mod 2^32], 64 bits. */
static inline void e_load_area(struct emit *e, unsigned reg, unsigned index, uint32_t off)
{
	e8(e, 0x67);
	e_gs_index8(e, 0x8b, reg, index, off);
}

/* lea reg, [rip + to]; returns where the rel32 is. */
static inline uint8_t *e_lea_code(struct emit *e, unsigned reg, const void *to)
{
	e8(e, 0x48 | (reg >= 8 ? 4 : 0));
	e8(e, 0x8d);
	e8(e, 0x05 | (reg & 7) << 3);
	e32(e, (uint32_t)((const uint8_t *)to - (e->p + 4)));
	return e->p - 4;
}

/* opcode reg, [base + index * scale + disp]; base or index may be GPR_NONE. */
static inline void e_mem(struct emit *e, unsigned opcode, unsigned reg, unsigned base,
			 unsigned index, unsigned scale, int32_t disp, bool rexw)
{
	unsigned ss = scale == 8 ? 3 : scale == 4 ? 2 : scale == 2 ? 1 : 0;
	unsigned rex = (rexw ? 8 : 0) | (reg >= 8 ? 4 : 0);
	bool sib = index != GPR_NONE || base == GPR_NONE || (base & 7) == 4;
	unsigned mod;

	if (index != GPR_NONE && index >= 8)
		rex |= 2;
	if (base != GPR_NONE && base >= 8)
		rex |= 1;
	if (rex)
		e8(e, 0x40 | rex);
	e8(e, opcode);
	if (base == GPR_NONE)
		mod = 0;
	else if (disp == 0 && (base & 7) != 5)
		mod = 0;
	else
		mod = disp == (int8_t)disp ? 1 : 2;
	if (sib) {
		e8(e, mod << 6 | (reg & 7) << 3 | 4);
		e8(e, ss << 6 | (index == GPR_NONE ? 4 : index & 7) << 3 |
			  (base == GPR_NONE ? 5 : base & 7));
	} else {
		e8(e, mod << 6 | (reg & 7) << 3 | (base & 7));
	}
	if (mod == 1)
		e8(e, (uint8_t)disp);
	else if (mod == 2 || base == GPR_NONE)
		e32(e, (uint32_t)disp);
}
static inline void e_lea(struct emit *e, unsigned dst, unsigned base, int32_t disp)
{
	e_mem(e, 0x8d, dst, base, GPR_NONE, 1, disp, true);
}
static inline void e_load(struct emit *e, unsigned dst, unsigned base, int32_t disp)
{
	e_mem(e, 0x8b, dst, base, GPR_NONE, 1, disp, true);
}
/* movzx dst32, byte [base + disp]; dst is one of the first eight. */
static inline void e_movzx8_mem(struct emit *e, unsigned dst, unsigned base, int32_t disp)
{
	if (base >= 8)
		e8(e, 0x41);
	e8(e, 0x0f);
	e8(e, 0xb6);
	e8(e, 0x80 | (dst & 7) << 3 | (base & 7));
	if ((base & 7) == 4)
		e8(e, 0x24);
	e32(e, (uint32_t)disp);
}
static inline void e_store(struct emit *e, unsigned base, int32_t disp, unsigned src)
{
	e_mem(e, 0x89, src, base, GPR_NONE, 1, disp, true);
}

static inline uint8_t *e_jmp(struct emit *e, const void *to) /* returns where the rel32 is */
{
	e8(e, 0xe9);
	e32(e, (uint32_t)((const uint8_t *)to - (e->p + 4)));
	return e->p - 4;
}
static inline uint8_t *e_jcc(struct emit *e, unsigned cc, const void *to)
{
	e8(e, 0x0f);
	e8(e, 0x80 | cc);
	e32(e, (uint32_t)((const uint8_t *)to - (e->p + 4)));
	return e->p - 4;
}
/* One store, so that code that runs meanwhile jumps to the old place or the new one. */
static inline void e_patch(uint8_t *rel, const void *to)
{
	uint32_t d = (uint32_t)((const uint8_t *)to - (rel + 4));

	__asm__ volatile("movl %1, (%0)" : : "r"(rel), "r"(d) : "memory");
}

enum { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A };

/* Jumps if the current space does not show a binding's page; returns where the rel32 is.  Destroys flags and
 * `scratch`. */
static inline uint8_t *e_test_shows(struct emit *e, unsigned scratch, uint32_t id)
{
	e_load_gs(e, scratch, GS_OFFSET(space)); /* cmp byte [space + shows + id], 0 */
	e_mem(e, 0x80, 7, scratch, GPR_NONE, 1, (int32_t)(offsetof(struct bt_space, shows) + id),
	      false);
	e8(e, 0);
	return e_jcc(e, CC_E, e->p);
}

/* Flags to `arith`; `free` is a scratch register (rax itself if rax is scratch). */
static inline void e_flags_save(struct emit *e, unsigned scratch, bool rax_free)
{
	if (!rax_free)
		e_mov(e, scratch, GPR_RAX);
	e8(e, 0x9f); /* lahf */
	e8(e, 0x0f); /* seto al */
	e8(e, 0x90);
	e8(e, 0xc0);
	e8(e, 0x65); /* mov gs:[arith], ax */
	e8(e, 0x66);
	e8(e, 0x89);
	e8(e, 0x04);
	e8(e, 0x25);
	e32(e, GS_OFFSET(arith));
	if (!rax_free)
		e_mov(e, GPR_RAX, scratch);
}

/* Flags from `arith`; `scratch` is free and not rax; rax is kept. */
static inline void e_flags_restore(struct emit *e, unsigned scratch)
{
	e_mov(e, scratch, GPR_RAX);
	e_gs(e, 0x0fb7, GPR_RAX, false, GS_OFFSET(arith)); /* movzx eax, word */
	e8(e, 0x04);                                       /* add al, 0x7f */
	e8(e, 0x7f);
	e8(e, 0x9e); /* sahf */
	e_mov(e, GPR_RAX, scratch);
}

/* Makes `to` the scratch pair instead of `from`. */
static inline void e_convert_pair(struct emit *e, unsigned from, unsigned to)
{
	unsigned old[2] = {from >> 4, from & 15}, new[2] = {to >> 4, to & 15};

	for (unsigned i = 0; i < 2; i++)
		if (new[i] != old[0] && new[i] != old[1])
			e_store_gs(e, GS_REG(new[i]), new[i]);
	for (unsigned i = 0; i < 2; i++)
		if (old[i] != new[0] && old[i] != new[1])
			e_load_gs(e, old[i], GS_REG(old[i]));
}

#endif
