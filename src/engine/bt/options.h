/* What the translator can be told, and no other engine. */
#ifndef TAKT_ENGINE_BT_OPTIONS_H
#define TAKT_ENGINE_BT_OPTIONS_H

#include "base/types.h"

struct symbols;

struct bt_options {
	uint64_t code_cache_bytes; /* bound of the code cache; 0 = default */
	/* What perf(1) is told of translated code. */
	bool perf_map;                 /* write /tmp/perf-PID.map */
	const char *perf_jitdump;      /* directory for jit-PID.dump; NULL: none */
	const struct symbols *symbols; /* of the guest's kernel; outlives the machine; NULL: none */
};

#endif
