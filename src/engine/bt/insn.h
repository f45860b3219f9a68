/* A guest instruction, decoded once into what the translator and the interpreter need.
 *
 * Zydis does the decoding; this struct keeps the conclusions: may the instruction run as it stands on
 * the host (INSN_NATIVE), where its memory operand lies, which registers and flags it touches and
 * where its bytes can be edited.
 */
#ifndef TAKT_BT_INSN_H
#define TAKT_BT_INSN_H

#include "base/types.h"
#include "x86/defs.h"

#define INSN_MAX 15

enum insn_kind {
	INSN_NATIVE,  /* runs on the host with its memory operand (if any) replaced */
	INSN_NOP,     /* has no architectural effect under takt (prefetch, hints) */
	INSN_SPECIAL, /* by mnemonic: branches, stack, strings, system */
	INSN_UNKNOWN, /* #UD */
};

enum insn_vec { VECTOR_NONE, VECTOR_X87, VECTOR_MMX, VECTOR_SSE, VECTOR_AVX, VECTOR_AVX512 };

/* Specials that one function handles. */
enum insn_group { INSN_GROUP_NONE, INSN_GROUP_STRING, INSN_GROUP_XSTATE };

/* Masked vector accesses touch, and fault on, only what their mask selects. */
enum insn_mask {
	MASK_NONE,
	MASK_OPMASK, /* element i by bit i of the opmask */
	MASK_PACKED, /* as many elements as the opmask has bits: compress, expand */
	MASK_SIGN,   /* by the elements' signs in a vector: VMASKMOV, VPMASKMOV */
};

enum insn_op { OP_NONE, OP_GPR, OP_SEG, OP_CR, OP_DR, OP_MEM, OP_IMM, OP_FAR, OP_VEC, OP_OTHER };

#define GPR_NONE 16
#define GPR_RIP 17

enum code_mode { MODE_16, MODE_32, MODE_64 };

struct insn {
	uint8_t bytes[INSN_MAX];
	uint8_t len;
	uint16_t mnemonic; /* ZydisMnemonic */
	uint8_t kind;      /* enum insn_kind */
	uint8_t mode;      /* enum code_mode */
	uint8_t opsize;    /* effective operand size in bytes: 2, 4, 8 */
	uint8_t addrsize;  /* effective address size in bytes: 2, 4, 8 */
	uint8_t vec;       /* enum insn_vec */
	uint8_t group;     /* enum insn_group */
	uint8_t rep;       /* 0xf3, 0xf2 or 0 */
	uint8_t lock;

	/* The memory operand: seg:[base + index * scale + disp], or none (mem_size 0, !has_mem). */
	uint8_t has_mem, mem_base, mem_index, mem_scale, mem_seg;
	uint8_t mem_read, mem_write;
	uint8_t agen;      /* LEA: address only */
	uint8_t bitmem;    /* BT family with register offset: the bit may lie outside the operand */
	uint8_t mask_kind; /* enum insn_mask: which elements of the operand are accessed */
	uint8_t mask_elem; /* bytes of an element */
	uint8_t vsib;      /* gathers, scatters: the index vector */
	uint8_t string_seg; /* hidden operands: segment of the source, prefixes applied */
	uint16_t mem_size;
	int64_t disp;

	/* Explicit operands, for specials. */
	uint8_t nops;
	struct {
		uint8_t type; /* enum insn_op */
		uint8_t reg;
		uint8_t size; /* bytes */
		uint8_t high8;
	} op[4];
	uint64_t imm; /* of the first immediate, sign-extended; branch: displacement */
	uint64_t imm2;

	uint16_t gpr_read;     /* hidden operands included; partial writes count as reads */
	uint16_t gpr_write;    /* likewise */
	uint16_t gpr_addr;     /* base and index of the memory operand */
	uint16_t gpr_operands; /* used other than for the address */
	uint8_t high8;         /* names ah, ch, dh or bh */
	uint16_t flags_read;   /* RFLAGS_ARITH bits it needs (or keeps on some path) */
	uint16_t flags_write;  /* bits it surely overwrites */
	uint16_t flags_kept;   /* of these, undefined ones that some processor leaves as they were */

	/* Where to edit. */
	uint8_t encoding;    /* 0 legacy, 1 VEX, 2 EVEX */
	uint8_t rex;         /* the REX byte or 0 */
	uint8_t opcode_off;  /* legacy: first opcode byte; VEX/EVEX: the C4/C5/62 byte */
	uint8_t modrm_off;   /* 0 = no ModRM */
	uint8_t tail_off;    /* immediate bytes after ModRM/SIB/disp */
	uint8_t mandatory66; /* the 66 prefix selects the opcode, not the operand size */
};

/* Decodes at most `len` bytes.  0, -ENODATA when the bytes end inside the instruction, -E2BIG when it
 * is longer than 15 bytes (#GP), -EINVAL for
 * none that exists (kind INSN_UNKNOWN is set and len is 1 at least).  Uses vector registers. */
int insn_decode(struct insn *in, const uint8_t *bytes, unsigned len, enum code_mode mode);

/* The same for 64-bit mode, but only if it is a form that was decoded before: else false.  Uses no vector registers. */
bool insn_recall(struct insn *in, const uint8_t *bytes, unsigned len);

/* insn_decode() without what earlier calls on this thread have learnt. */
int insn_decode_anew(struct insn *in, const uint8_t *bytes, unsigned len, enum code_mode mode);
/* Frees what insn_decode() keeps for the calling thread. */
void insn_thread_exit(void);

/* The instruction's name, for statistics. */
const char *insn_name(const struct insn *in);

/* A memory operand on the host: [base + index + disp]; base: a GPR number, index: one but rsp, or
 * GPR_NONE. */
struct host_mem {
	uint8_t base, index;
	int32_t disp;
};

/* Writes the instruction for 64-bit mode with its memory operand, if it has one, replaced by `mem` (whose
 * registers must be below 8 if in->high8).  Returns the length (at most INSN_MAX + 8). */
unsigned insn_encode(const struct insn *in, struct host_mem mem, uint8_t *out);

#endif
