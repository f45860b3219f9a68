/* Forms of instructions that were decoded before; for decode.c. */
#ifndef TAKT_BT_TEMPLATE_H
#define TAKT_BT_TEMPLATE_H

#include <Zydis/Zydis.h>

#include "engine/bt/insn.h"

/* What insn_decode() made of an instruction that it found to be good. */
void template_keep(const struct insn *in, const ZydisDecodedInstruction *zi);

#endif
