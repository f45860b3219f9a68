/* Re-encodes an instruction for the host with another memory operand (Intel SDM 2, chapter 2). */
#include "engine/bt/insn.h"

/* A few bytes: a loop is faster than the string instruction of x86_copy(). */
static void copy(uint8_t *to, const uint8_t *from, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		to[i] = from[i];
}

/* ModRM (and what follows it) for `mem`, register field of `modrm`.  EVEX scales an 8-bit displacement:
 * `wide` takes 32 bits. */
static unsigned put_operand(uint8_t modrm, struct host_mem mem, bool wide, uint8_t *out)
{
	unsigned mod = mem.disp == 0 && (mem.base & 7) != 5                       ? 0
		       : mem.disp == (int8_t)mem.disp && (!wide || !mem.disp) ? 1
									      : 2;
	bool sib = mem.index != GPR_NONE || (mem.base & 7) == 4;
	unsigned n = 0;

	out[n++] = (uint8_t)(mod << 6 | (modrm & 0x38) | (sib ? 4 : mem.base & 7));
	if (sib)
		out[n++] = (uint8_t)((mem.index == GPR_NONE ? 4 : mem.index & 7) << 3 |
				     (mem.base & 7));
	if (mod == 1)
		out[n++] = (uint8_t)mem.disp;
	for (unsigned i = 0; mod == 2 && i < 4; i++)
		out[n++] = (uint8_t)((uint32_t)mem.disp >> (8 * i));
	return n;
}

static unsigned put_tail(const struct insn *in, uint8_t *out)
{
	unsigned n = in->len - in->tail_off;

	copy(out, in->bytes + in->tail_off, n);
	return n;
}

static bool has_high_index(struct host_mem mem)
{
	return mem.index != GPR_NONE && mem.index >= 8;
}

/* The X and B bits of VEX and EVEX, which are inverted. */
static uint8_t inverted_xb(struct host_mem mem)
{
	return (uint8_t)((has_high_index(mem) ? 0 : 0x40) | (mem.base & 8 ? 0 : 0x20));
}

static unsigned encode_legacy(const struct insn *in, struct host_mem mem, uint8_t *out)
{
	unsigned n = 0, i, opcode_end = in->modrm_off ? in->modrm_off : in->tail_off;
	uint8_t rex = in->rex;
	bool has66 = false;

	for (i = 0; i < in->opcode_off; i++) {
		uint8_t b = in->bytes[i];

		switch (b) {
		case 0x66: has66 = true; break;
		case 0x67:
		case 0x26:
		case 0x2e:
		case 0x36:
		case 0x3e:
		case 0x64:
		case 0x65: break;
		default:
			if (!(in->mode == MODE_64 && (b & 0xf0) == 0x40))
				out[n++] = b;
		}
	}
	/* 16-bit code: the prefix means the other size. */
	if (in->mode == MODE_16 && !in->mandatory66)
		has66 = !has66;
	if (has66)
		out[n++] = 0x66;
	if (in->has_mem)
		rex = (uint8_t)((rex & ~3u) | mem.base >> 3 | (has_high_index(mem) ? 2 : 0));
	if (rex & 0x0f)
		rex |= 0x40;
	if (rex)
		out[n++] = rex;
	if (in->mode != MODE_64 && (in->bytes[in->opcode_off] & 0xf0) == 0x40) {
		/* INC and DEC of a register: their one-byte form is REX in 64-bit mode. */
		uint8_t op = in->bytes[in->opcode_off];

		out[n++] = 0xff;
		out[n++] = 0xc0 | (op & 0xf);
		return n;
	}
	if (in->has_mem && !in->modrm_off) {
		/* MOV with an absolute address (A0 to A3): the form with ModRM, register rax. */
		static const uint8_t form[] = {0x8a, 0x8b, 0x88, 0x89};

		out[n++] = form[in->bytes[in->opcode_off] & 3];
		return n + put_operand(0, mem, false, out + n);
	}
	copy(out + n, in->bytes + in->opcode_off, opcode_end - in->opcode_off);
	n += opcode_end - in->opcode_off;
	if (in->has_mem)
		n += put_operand(in->bytes[in->modrm_off], mem, false, out + n);
	else if (in->modrm_off)
		out[n++] = in->bytes[in->modrm_off];
	return n + put_tail(in, out + n);
}

static unsigned encode_vex(const struct insn *in, struct host_mem mem, uint8_t *out)
{
	const uint8_t *b = in->bytes + in->opcode_off;
	uint8_t p1, p2;
	unsigned n = 0;

	if (b[0] == 0xc5) {
		p1 = (b[1] & 0x80) | 0x60 | 1;
		p2 = b[1] & 0x7f;
	} else {
		p1 = b[1];
		p2 = b[2];
	}
	if (in->has_mem)
		p1 = (uint8_t)((p1 & ~0x60u) | inverted_xb(mem));
	if (in->mode != MODE_64) {
		p1 |= 0xc0;
		p2 |= 0x40; /* vvvv bit 3 is ignored there */
	}
	if ((p1 & 0x7f) == 0x61 && !(p2 & 0x80)) {
		out[n++] = 0xc5;
		out[n++] = (p1 & 0x80) | (p2 & 0x7f);
	} else {
		out[n++] = 0xc4;
		out[n++] = p1;
		out[n++] = p2;
	}
	out[n++] = in->bytes[in->modrm_off - 1];
	if (in->has_mem)
		n += put_operand(in->bytes[in->modrm_off], mem, false, out + n);
	else
		out[n++] = in->bytes[in->modrm_off];
	return n + put_tail(in, out + n);
}

static unsigned encode_evex(const struct insn *in, struct host_mem mem, uint8_t *out)
{
	const uint8_t *b = in->bytes + in->opcode_off;
	unsigned n = 0;

	out[n++] = 0x62;
	out[n++] = in->has_mem ? (uint8_t)((b[1] & ~0x60u) | inverted_xb(mem)) : b[1];
	out[n++] = b[2];
	out[n++] = b[3];
	out[n++] = in->bytes[in->modrm_off - 1];
	if (in->has_mem)
		n += put_operand(in->bytes[in->modrm_off], mem, true, out + n);
	else
		out[n++] = in->bytes[in->modrm_off];
	return n + put_tail(in, out + n);
}

unsigned insn_encode(const struct insn *in, struct host_mem mem, uint8_t *out)
{
	if (in->encoding == 1 && !in->modrm_off) { /* VZEROUPPER, VZEROALL */
		copy(out, in->bytes, in->len);
		return in->len;
	}
	switch (in->encoding) {
	case 1: return encode_vex(in, mem, out);
	case 2: return encode_evex(in, mem, out);
	default: return encode_legacy(in, mem, out);
	}
}
