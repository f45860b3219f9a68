/* Instructions decoded by what earlier ones have taught must come out as if decoded anew. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/bt/insn.h"

static uint64_t seed = 88172645463325252ull;

static unsigned number(unsigned below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (unsigned)(seed >> 33) % below;
}

/* Constants that matter: small, negative, zero. */
static uint8_t constant(void)
{
	static const uint8_t some[] = {0, 0, 1, 0x20, 0x7f, 0x80, 0xff, 0xff};

	return number(2) ? (uint8_t)number(256) : some[number(sizeof(some))];
}

static void make(uint8_t *bytes)
{
	static const uint8_t prefixes[] = {0x66, 0x66, 0xf2, 0xf3, 0x67, 0xf0, 0x64, 0x65, 0x2e, 0x36};
	unsigned n = 0;

	for (unsigned i = 0; i < INSN_MAX; i++)
		bytes[i] = constant();
	if (!number(8))
		return;
	for (unsigned i = number(8); i >= 6; i = number(8))
		if (n < 4)
			bytes[n++] = prefixes[number(sizeof(prefixes))];
	if (number(2))
		bytes[n++] = (uint8_t)(0x40 | number(16));
	if (number(3) == 0)
		bytes[n++] = 0x0f;
	bytes[n++] = (uint8_t)number(256);
	bytes[n++] = (uint8_t)number(256);
	bytes[n] = (uint8_t)number(256);
}

static void learning_changes_nothing(void **state)
{
	unsigned good = 0;

	(void)state;
	for (unsigned i = 0; i < 1500000; i++) {
		struct insn learnt, anew;
		uint8_t bytes[INSN_MAX];
		unsigned len = number(16) ? INSN_MAX : 1 + number(INSN_MAX);
		int rc, want;

		make(bytes);
		want = insn_decode_anew(&anew, bytes, len, MODE_64);
		for (unsigned k = 0; k < 2; k++) {
			rc = insn_decode(&learnt, bytes, len, MODE_64);
			if (rc != want || (!rc && memcmp(&learnt, &anew, sizeof(anew)))) {
				for (unsigned b = 0; b < len; b++)
					fprintf(stderr, "%02x ", bytes[b]);
				fail_msg("%s: %d, not %d; length %u, displacement %llx and %llx, immediate %llx and %llx",
					 insn_name(&anew), rc, want, learnt.len, (unsigned long long)learnt.disp,
					 (unsigned long long)anew.disp, (unsigned long long)learnt.imm,
					 (unsigned long long)anew.imm);
			}
		}
		good += !rc;
	}
	assert_true(good > 500000);
	insn_thread_exit();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(learning_changes_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
