/* Decoding with Zydis and the classification that safety rests on: only instructions of the classes
 * listed here ever run on the host; everything else is interpreted or raises #UD. */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include <Zydis/Zydis.h>

#include "engine/bt/insn.h"
#include "engine/bt/template.h"
#include "x86/vcpu.h"

static ZydisDecoder decoders[3];
static pthread_once_t decoders_once = PTHREAD_ONCE_INIT;

static void decoders_init(void)
{
	ZydisDecoderInit(&decoders[MODE_16], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
	ZydisDecoderInit(&decoders[MODE_32], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
	ZydisDecoderInit(&decoders[MODE_64], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
}

/* Single instructions that their category would class wrongly. */
static int mnemonic_kind(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_LEA:
	case ZYDIS_MNEMONIC_LFENCE:
	case ZYDIS_MNEMONIC_MFENCE:
	case ZYDIS_MNEMONIC_SFENCE:
	case ZYDIS_MNEMONIC_PAUSE:
	case ZYDIS_MNEMONIC_LAHF:
	case ZYDIS_MNEMONIC_SAHF:
	case ZYDIS_MNEMONIC_CLC:
	case ZYDIS_MNEMONIC_STC:
	case ZYDIS_MNEMONIC_CMC:
	case ZYDIS_MNEMONIC_MOVDIRI:
	case ZYDIS_MNEMONIC_ENDBR64:
	case ZYDIS_MNEMONIC_ENDBR32: return INSN_NATIVE;
	case ZYDIS_MNEMONIC_CLFLUSH:
	case ZYDIS_MNEMONIC_CLFLUSHOPT:
	case ZYDIS_MNEMONIC_CLWB:
	case ZYDIS_MNEMONIC_CLDEMOTE:
	case ZYDIS_MNEMONIC_SERIALIZE:
	case ZYDIS_MNEMONIC_RDSSPD:
	case ZYDIS_MNEMONIC_RDSSPQ: return INSN_NOP;
	case ZYDIS_MNEMONIC_MASKMOVQ:
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
	case ZYDIS_MNEMONIC_CLI:
	case ZYDIS_MNEMONIC_STI:
	case ZYDIS_MNEMONIC_CLD:
	case ZYDIS_MNEMONIC_STD:
	case ZYDIS_MNEMONIC_INVPCID:
	case ZYDIS_MNEMONIC_XLAT:
	case ZYDIS_MNEMONIC_ENTER:
	case ZYDIS_MNEMONIC_LEAVE:
	case ZYDIS_MNEMONIC_BOUND:
	case ZYDIS_MNEMONIC_ARPL:
	case ZYDIS_MNEMONIC_SALC:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_RDPID:
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_VMCALL:
	case ZYDIS_MNEMONIC_VMMCALL: return INSN_SPECIAL;
	case ZYDIS_MNEMONIC_MONITOR:
	case ZYDIS_MNEMONIC_MWAIT:
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2: return INSN_UNKNOWN;
	default: return -1;
	}
}

static enum insn_kind category_kind(ZydisInstructionCategory c)
{
	switch (c) {
	case ZYDIS_CATEGORY_ADOX_ADCX:
	case ZYDIS_CATEGORY_AES:
	case ZYDIS_CATEGORY_AVX:
	case ZYDIS_CATEGORY_AVX2:
	case ZYDIS_CATEGORY_AVX512:
	case ZYDIS_CATEGORY_AVX512_BITALG:
	case ZYDIS_CATEGORY_AVX512_VBMI:
	case ZYDIS_CATEGORY_AVX512_VP2INTERSECT:
	case ZYDIS_CATEGORY_BINARY:
	case ZYDIS_CATEGORY_BITBYTE:
	case ZYDIS_CATEGORY_BLEND:
	case ZYDIS_CATEGORY_BMI1:
	case ZYDIS_CATEGORY_BMI2:
	case ZYDIS_CATEGORY_BROADCAST:
	case ZYDIS_CATEGORY_CMOV:
	case ZYDIS_CATEGORY_COMPRESS:
	case ZYDIS_CATEGORY_CONFLICT:
	case ZYDIS_CATEGORY_CONVERT:
	case ZYDIS_CATEGORY_DATAXFER:
	case ZYDIS_CATEGORY_EXPAND:
	case ZYDIS_CATEGORY_FCMOV:
	case ZYDIS_CATEGORY_FP16:
	case ZYDIS_CATEGORY_GFNI:
	case ZYDIS_CATEGORY_IFMA:
	case ZYDIS_CATEGORY_KMASK:
	case ZYDIS_CATEGORY_LOGICAL:
	case ZYDIS_CATEGORY_LOGICAL_FP:
	case ZYDIS_CATEGORY_LZCNT:
	case ZYDIS_CATEGORY_MMX:
	case ZYDIS_CATEGORY_PCLMULQDQ:
	case ZYDIS_CATEGORY_RDRAND:
	case ZYDIS_CATEGORY_RDSEED:
	case ZYDIS_CATEGORY_ROTATE:
	case ZYDIS_CATEGORY_SEMAPHORE:
	case ZYDIS_CATEGORY_SETCC:
	case ZYDIS_CATEGORY_SHA:
	case ZYDIS_CATEGORY_SHIFT:
	case ZYDIS_CATEGORY_SSE:
	case ZYDIS_CATEGORY_STTNI:
	case ZYDIS_CATEGORY_VAES:
	case ZYDIS_CATEGORY_VBMI2:
	case ZYDIS_CATEGORY_VFMA:
	case ZYDIS_CATEGORY_VPCLMULQDQ:
	case ZYDIS_CATEGORY_X87_ALU: return INSN_NATIVE;
	case ZYDIS_CATEGORY_NOP:
	case ZYDIS_CATEGORY_WIDENOP:
	case ZYDIS_CATEGORY_PREFETCH:
	case ZYDIS_CATEGORY_PREFETCHWT1:
	case ZYDIS_CATEGORY_MPX: return INSN_NOP;
	case ZYDIS_CATEGORY_AVX2GATHER:
	case ZYDIS_CATEGORY_GATHER:
	case ZYDIS_CATEGORY_SCATTER:
	case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_COND_BR:
	case ZYDIS_CATEGORY_DECIMAL:
	case ZYDIS_CATEGORY_FLAGOP:
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_IO:
	case ZYDIS_CATEGORY_IOSTRINGOP:
	case ZYDIS_CATEGORY_LEGACY:
	case ZYDIS_CATEGORY_POP:
	case ZYDIS_CATEGORY_PUSH:
	case ZYDIS_CATEGORY_RDWRFSGS:
	case ZYDIS_CATEGORY_RET:
	case ZYDIS_CATEGORY_SEGOP:
	case ZYDIS_CATEGORY_SMAP:
	case ZYDIS_CATEGORY_STRINGOP:
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
	case ZYDIS_CATEGORY_SYSTEM:
	case ZYDIS_CATEGORY_UNCOND_BR:
	case ZYDIS_CATEGORY_XSAVE:
	case ZYDIS_CATEGORY_XSAVEOPT: return INSN_SPECIAL;
	default: return INSN_UNKNOWN;
	}
}

static unsigned gpr_number(ZydisRegister r)
{
	ZydisRegister large = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r);

	if (large >= ZYDIS_REGISTER_RAX && large <= ZYDIS_REGISTER_R15)
		return (unsigned)(large - ZYDIS_REGISTER_RAX);
	return GPR_NONE;
}

static bool is_gpr(ZydisRegister r)
{
	switch (ZydisRegisterGetClass(r)) {
	case ZYDIS_REGCLASS_GPR8:
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR64: return true;
	default: return false;
	}
}

static unsigned segment_number(ZydisRegister r)
{
	return r >= ZYDIS_REGISTER_ES && r <= ZYDIS_REGISTER_GS ? (unsigned)(r - ZYDIS_REGISTER_ES)
								: SEG_DS;
}

static void note_memory(struct insn *in, const ZydisDecodedOperand *op)
{
	ZydisRegister base = op->mem.base, index = op->mem.index;

	in->has_mem = 1;
	in->agen = op->mem.type == ZYDIS_MEMOP_TYPE_AGEN;
	in->mem_size = (uint16_t)(op->size / 8);
	in->mem_base = base == ZYDIS_REGISTER_NONE ? GPR_NONE
		       : base == ZYDIS_REGISTER_RIP || base == ZYDIS_REGISTER_EIP
			   ? GPR_RIP
			   : (uint8_t)gpr_number(base);
	in->mem_index = index == ZYDIS_REGISTER_NONE ? GPR_NONE : (uint8_t)gpr_number(index);
	if (op->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
		in->vsib = (uint8_t)ZydisRegisterGetId(index);
	in->mem_scale = op->mem.scale ? op->mem.scale : 1;
	in->mem_seg = (uint8_t)segment_number(op->mem.segment);
	in->disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0;
	in->mem_read =
	    !!(op->actions & (ZYDIS_OPERAND_ACTION_READ | ZYDIS_OPERAND_ACTION_CONDREAD));
	in->mem_write =
	    !!(op->actions & (ZYDIS_OPERAND_ACTION_WRITE | ZYDIS_OPERAND_ACTION_CONDWRITE));
}

static bool is_plain_move(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_VMOVAPS:
	case ZYDIS_MNEMONIC_VMOVAPD:
	case ZYDIS_MNEMONIC_VMOVUPS:
	case ZYDIS_MNEMONIC_VMOVUPD:
	case ZYDIS_MNEMONIC_VMOVSS:
	case ZYDIS_MNEMONIC_VMOVSD:
	case ZYDIS_MNEMONIC_VMOVDQA32:
	case ZYDIS_MNEMONIC_VMOVDQA64:
	case ZYDIS_MNEMONIC_VMOVDQU8:
	case ZYDIS_MNEMONIC_VMOVDQU16:
	case ZYDIS_MNEMONIC_VMOVDQU32:
	case ZYDIS_MNEMONIC_VMOVDQU64: return true;
	default: return false;
	}
}

/* After note_memory: what masks the operand. */
static void note_mask(struct insn *in, const ZydisDecodedInstruction *zi,
		      const ZydisDecodedOperand *op)
{
	if (in->agen || in->vsib)
		return;
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_VMASKMOVPS:
	case ZYDIS_MNEMONIC_VPMASKMOVD:
		in->mask_kind = MASK_SIGN;
		in->mask_elem = 4;
		return;
	case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ:
		in->mask_kind = MASK_SIGN;
		in->mask_elem = 8;
		return;
	default: break;
	}
	if (zi->encoding != ZYDIS_INSTRUCTION_ENCODING_EVEX || !zi->raw.evex.aaa ||
	    in->mem_size > 64 || op->element_size < 8)
		return;
	/* Elsewhere the mask is of the destination, whose elements need not be the operand's. */
	if (zi->meta.category == ZYDIS_CATEGORY_COMPRESS ||
	    zi->meta.category == ZYDIS_CATEGORY_EXPAND)
		in->mask_kind = MASK_PACKED;
	else if (in->mem_write || is_plain_move(zi->mnemonic))
		in->mask_kind = MASK_OPMASK;
	in->mask_elem = (uint8_t)(op->element_size / 8);
}

static void note_register(struct insn *in, const ZydisDecodedOperand *op)
{
	ZydisRegister r = op->reg.value;
	unsigned bit;

	if (!is_gpr(r))
		return;
	bit = 1u << gpr_number(r);
	if (op->actions & (ZYDIS_OPERAND_ACTION_READ | ZYDIS_OPERAND_ACTION_CONDREAD))
		in->gpr_read |= bit;
	if (op->actions & (ZYDIS_OPERAND_ACTION_WRITE | ZYDIS_OPERAND_ACTION_CONDWRITE)) {
		in->gpr_write |= bit;
		if (op->size < 32 || !(op->actions & ZYDIS_OPERAND_ACTION_WRITE))
			in->gpr_read |= bit;
	}
	if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH)
		in->high8 = 1;
}

static void note_explicit(struct insn *in, const ZydisDecodedOperand *op, unsigned i)
{
	in->op[i].size = (uint8_t)(op->size / 8);
	switch (op->type) {
	case ZYDIS_OPERAND_TYPE_REGISTER: {
		ZydisRegister r = op->reg.value;

		in->op[i].reg = (uint8_t)ZydisRegisterGetId(r);
		switch (ZydisRegisterGetClass(r)) {
		case ZYDIS_REGCLASS_SEGMENT:
			in->op[i].type = OP_SEG;
			in->op[i].reg = (uint8_t)segment_number(r);
			break;
		case ZYDIS_REGCLASS_CONTROL: in->op[i].type = OP_CR; break;
		case ZYDIS_REGCLASS_DEBUG: in->op[i].type = OP_DR; break;
		case ZYDIS_REGCLASS_XMM:
		case ZYDIS_REGCLASS_YMM:
		case ZYDIS_REGCLASS_ZMM:
		case ZYDIS_REGCLASS_MMX: in->op[i].type = OP_VEC; break;
		default:
			in->op[i].type = OP_OTHER;
			if (is_gpr(r)) {
				in->op[i].type = OP_GPR;
				in->op[i].reg = (uint8_t)gpr_number(r);
				in->op[i].high8 = r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH;
			}
		}
		break;
	}
	case ZYDIS_OPERAND_TYPE_MEMORY: in->op[i].type = OP_MEM; break;
	case ZYDIS_OPERAND_TYPE_IMMEDIATE: in->op[i].type = OP_IMM; break;
	case ZYDIS_OPERAND_TYPE_POINTER: in->op[i].type = OP_FAR; break;
	default: in->op[i].type = OP_OTHER;
	}
}

static enum insn_vec vector_class(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *ops)
{
	enum insn_vec vec = VECTOR_NONE;

	if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
		return VECTOR_AVX512;
	for (unsigned i = 0; i < zi->operand_count; i++) {
		enum insn_vec c = VECTOR_NONE;

		if (ops[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		if (ops[i].reg.value == ZYDIS_REGISTER_MXCSR)
			c = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? VECTOR_AVX
									   : VECTOR_SSE;
		switch (ZydisRegisterGetClass(ops[i].reg.value)) {
		case ZYDIS_REGCLASS_X87: c = VECTOR_X87; break;
		case ZYDIS_REGCLASS_MMX: c = VECTOR_MMX; break;
		case ZYDIS_REGCLASS_XMM:
			c = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? VECTOR_AVX
									   : VECTOR_SSE;
			break;
		case ZYDIS_REGCLASS_YMM: c = VECTOR_AVX; break;
		case ZYDIS_REGCLASS_ZMM:
		case ZYDIS_REGCLASS_MASK: c = VECTOR_AVX512; break;
		default: break;
		}
		if (c > vec)
			vec = c;
	}
	if (vec == VECTOR_NONE) {
		switch (zi->meta.category) {
		case ZYDIS_CATEGORY_X87_ALU: return VECTOR_X87;
		case ZYDIS_CATEGORY_MMX: return VECTOR_MMX;
		case ZYDIS_CATEGORY_SSE: return VECTOR_SSE; /* LDMXCSR and STMXCSR */
		case ZYDIS_CATEGORY_AVX: return VECTOR_AVX; /* VZEROUPPER, VLDMXCSR */
		case ZYDIS_CATEGORY_CONVERT: /* CVTSS2SI r, m touches MXCSR though it names no XMM register */
			if (zi->meta.isa_ext == ZYDIS_ISA_EXT_BASE ||
			    zi->meta.isa_ext == ZYDIS_ISA_EXT_LONGMODE)
				return VECTOR_NONE;
			return zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? VECTOR_AVX
									      : VECTOR_SSE;
		default: break;
		}
	}
	return vec;
}

static uint8_t insn_group(const ZydisDecodedInstruction *zi)
{
	switch (zi->meta.category) {
	case ZYDIS_CATEGORY_STRINGOP:
	case ZYDIS_CATEGORY_IOSTRINGOP: return INSN_GROUP_STRING;
	default: break;
	}
	switch (zi->mnemonic) { /* XSAVES and XRSTORS are not offered */
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64: return INSN_GROUP_XSTATE;
	default: return INSN_GROUP_NONE;
	}
}

/* "Undefined" flags may be kept: for these instructions some processor does (Intel's: divisions and bit
 * tests; AMD's: multiplications, TZCNT and LZCNT, too).  All others compute them from their operands.  The
 * architecture lets them be anything, so what they were before is not kept for it. */
static bool keeps_undefined(const ZydisDecodedInstruction *zi)
{
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_MUL:
	case ZYDIS_MNEMONIC_IMUL:
	case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV:
	case ZYDIS_MNEMONIC_TZCNT:
	case ZYDIS_MNEMONIC_LZCNT: return true;
	default: return zi->meta.category == ZYDIS_CATEGORY_BITBYTE;
	}
}

static void note_flags(struct insn *in, const ZydisDecodedInstruction *zi)
{
	const ZydisAccessedFlags *f = zi->cpu_flags;
	uint32_t write, read;

	if (!f)
		return;
	write = (f->modified | f->set_0 | f->set_1 | f->undefined) & RFLAGS_ARITH;
	read = f->tested & RFLAGS_ARITH;
	/* A shift or rotate by zero leaves every flag alone. */
	if (zi->meta.category == ZYDIS_CATEGORY_SHIFT ||
	    zi->meta.category == ZYDIS_CATEGORY_ROTATE) {
		bool sure = zi->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
			    ((zi->opcode & 0xfe) == 0xd0 ||
			     (zi->raw.imm[0].size && (zi->raw.imm[0].value.u & (zi->operand_width == 64 ? 63 : 31))));

		if (!sure)
			read |= write;
		/* Rotates by more than one may keep OF. */
		if (zi->meta.category == ZYDIS_CATEGORY_ROTATE && (zi->opcode & 0xfe) != 0xd0)
			read |= write & RFLAGS_OF;
	}
	if (keeps_undefined(zi))
		in->flags_kept = (uint16_t)(f->undefined & RFLAGS_ARITH);
	if (zi->mnemonic == ZYDIS_MNEMONIC_LAHF)
		read |= RFLAGS_ARITH & ~RFLAGS_OF;
	in->flags_read = (uint16_t)read;
	in->flags_write = (uint16_t)write;
}

static void note_encoding(struct insn *in, const ZydisDecodedInstruction *zi)
{
	unsigned prefixes = zi->raw.prefix_count;

	for (unsigned i = 0; i < prefixes; i++)
		if (zi->raw.prefixes[i].value == 0x66 &&
		    zi->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY)
			in->mandatory66 = 1;
	in->opcode_off = (uint8_t)prefixes;
	switch (zi->encoding) {
	case ZYDIS_INSTRUCTION_ENCODING_VEX: in->encoding = 1; break;
	case ZYDIS_INSTRUCTION_ENCODING_EVEX: in->encoding = 2; break;
	default: in->encoding = 0;
	}
	/* Zydis counts REX among the prefixes; a REX not right before the opcode has no effect. */
	if (in->encoding == 0 && in->mode == MODE_64) {
		uint8_t last = prefixes ? in->bytes[prefixes - 1] : 0;

		if ((last & 0xf0) == 0x40)
			in->rex = last;
	}
	in->modrm_off = zi->attributes & ZYDIS_ATTRIB_HAS_MODRM ? zi->raw.modrm.offset : 0;
	in->tail_off = in->len;
	if (zi->raw.imm[0].size)
		in->tail_off = zi->raw.imm[0].offset;
	else if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_3DNOW)
		in->tail_off = in->len - 1;
	/* The register in the high nibble of an immediate (VEX is4) is no immediate to Zydis. */
	if (in->modrm_off && !zi->raw.imm[0].size) {
		unsigned end = in->modrm_off + 1u;

		if (zi->raw.modrm.mod != 3 && in->addrsize != 2 && zi->raw.modrm.rm == 4)
			end++;
		end += zi->raw.disp.size / 8;
		in->tail_off = (uint8_t)end;
	}
}

/* By Zydis. */
static int decode(struct insn *in, const uint8_t *bytes, unsigned len, enum code_mode mode,
		  ZydisDecodedInstruction *decoded)
{
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	ZyanStatus status;
	int kind;

	pthread_once(&decoders_once, decoders_init);
	memset(in, 0, sizeof(*in));
	in->mode = (uint8_t)mode;
	in->kind = INSN_UNKNOWN;
	in->mem_base = in->mem_index = GPR_NONE;
	if (len > INSN_MAX)
		len = INSN_MAX;
	memcpy(in->bytes, bytes, len); /* once: another vcpu may change them meanwhile */
	status = ZydisDecoderDecodeFull(&decoders[mode], in->bytes, len, &zi, ops);
	if (ZYAN_FAILED(status)) {
		in->len = 1;
		if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ||
		    (status == ZYDIS_STATUS_NO_MORE_DATA && len >= INSN_MAX))
			return -E2BIG;
		return status == ZYDIS_STATUS_NO_MORE_DATA && len < INSN_MAX ? -ENODATA : -EINVAL;
	}
	in->len = zi.length;
	in->mnemonic = (uint16_t)zi.mnemonic;
	in->opsize = zi.operand_width / 8 ? zi.operand_width / 8 : 1;
	in->addrsize = zi.address_width / 8;
	in->lock = !!(zi.attributes & ZYDIS_ATTRIB_HAS_LOCK);
	in->rep = zi.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE) ? 0xf3
		  : zi.attributes & ZYDIS_ATTRIB_HAS_REPNE                       ? 0xf2
										 : 0;
	for (unsigned i = 0; i < zi.operand_count; i++) {
		const ZydisDecodedOperand *op = &ops[i];

		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
			note_register(in, op);
		} else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			unsigned b = gpr_number(op->mem.base), x = gpr_number(op->mem.index);

			if (b < GPR_NONE)
				in->gpr_addr |= 1u << b;
			if (x < GPR_NONE)
				in->gpr_addr |= 1u << x;
			if (op->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
				note_memory(in, op);
				note_mask(in, &zi, op);
			} else if (op->mem.segment != ZYDIS_REGISTER_ES &&
				   op->mem.segment != ZYDIS_REGISTER_SS)
				in->string_seg = (uint8_t)segment_number(op->mem.segment);
		}
	}
	in->gpr_operands = in->gpr_read | in->gpr_write;
	in->gpr_read |= in->gpr_addr;
	in->nops = zi.operand_count_visible < 4 ? zi.operand_count_visible : 4;
	for (unsigned i = 0; i < in->nops; i++)
		note_explicit(in, &ops[i], i);
	for (unsigned i = 0, n = 0; i < zi.operand_count_visible; i++) {
		if (ops[i].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
			if (n++ == 0)
				in->imm = ops[i].imm.value.u;
			else
				in->imm2 = ops[i].imm.value.u;
		} else if (ops[i].type == ZYDIS_OPERAND_TYPE_POINTER) {
			in->imm = ops[i].ptr.offset;
			in->imm2 = ops[i].ptr.segment;
		}
	}
	note_flags(in, &zi);
	note_encoding(in, &zi);
	in->vec = (uint8_t)vector_class(&zi, ops);
	in->group = insn_group(&zi);
	kind = mnemonic_kind(zi.mnemonic);
	in->kind = kind >= 0 ? (uint8_t)kind : (uint8_t)category_kind(zi.meta.category);
	if (in->kind == INSN_NATIVE) {
		/* Moves to and from segment, control and debug registers. */
		for (unsigned i = 0; i < in->nops; i++)
			if (in->op[i].type == OP_SEG || in->op[i].type == OP_CR ||
			    in->op[i].type == OP_DR)
				in->kind = INSN_SPECIAL;
		if (zi.meta.category == ZYDIS_CATEGORY_BITBYTE && in->has_mem &&
		    in->op[1].type == OP_GPR)
			in->bitmem = 1;
		if (zi.encoding == ZYDIS_INSTRUCTION_ENCODING_XOP ||
		    zi.encoding == ZYDIS_INSTRUCTION_ENCODING_3DNOW ||
		    zi.encoding == ZYDIS_INSTRUCTION_ENCODING_MVEX)
			in->kind = INSN_UNKNOWN;
		/* The memory operand of LDS, LES and friends, and anything with two of them. */
		for (unsigned i = 0, n = 0; i < zi.operand_count; i++)
			if (ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
			    ops[i].mem.type != ZYDIS_MEMOP_TYPE_AGEN &&
			    (++n > 1 || ops[i].visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT))
				in->kind = INSN_SPECIAL;
		/* A memory operand that insn_encode could not replace must never run as it stands. */
		if (in->has_mem && !in->agen &&
		    (in->mem_size == 0 ||
		     (!in->modrm_off &&
		      (in->encoding || (in->bytes[in->opcode_off] & 0xfc) != 0xa0))))
			in->kind = INSN_UNKNOWN;
		if (zi.mnemonic == ZYDIS_MNEMONIC_LEA)
			in->agen = 1;
	}
	*decoded = zi;
	return 0;
}

int insn_decode_anew(struct insn *in, const uint8_t *bytes, unsigned len, enum code_mode mode)
{
	ZydisDecodedInstruction zi;

	return decode(in, bytes, len, mode, &zi);
}

int insn_decode(struct insn *in, const uint8_t *bytes, unsigned len, enum code_mode mode)
{
	ZydisDecodedInstruction zi;
	int rc;

	if (mode == MODE_64 && insn_recall(in, bytes, len))
		return 0;
	rc = decode(in, bytes, len, mode, &zi);
	if (!rc && mode == MODE_64)
		template_keep(in, &zi);
	return rc;
}

const char *insn_name(const struct insn *in)
{
	const char *name = ZydisMnemonicGetString((ZydisMnemonic)in->mnemonic);

	return name && in->mnemonic ? name : "(undecodable)";
}
