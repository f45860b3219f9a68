/* What the fuzz targets share.  A target is LLVMFuzzerTestOneInput() in a file of its own: bytes that
 * a guest, a file or a peer would choose become calls, and whatever they are, takt does not crash, hang
 * or do what it promises not to.
 *
 * The host is spared: files end at FUZZ_FILE_MAX, and live in a scratch directory that goes at exit. */
#ifndef TAKT_TESTS_FUZZ_H
#define TAKT_TESTS_FUZZ_H

#include <stddef.h>

#include "base/types.h"

#define FUZZ_FILE_MAX (4 * MiB)

/* What is left of the input; zeroes come when it is used up. */
struct fuzz_input {
	const uint8_t *at, *end;
};

static inline size_t fuzz_left(const struct fuzz_input *in)
{
	return (size_t)(in->end - in->at);
}

static inline uint8_t fuzz_u8(struct fuzz_input *in)
{
	return in->at < in->end ? *in->at++ : 0;
}

static inline uint16_t fuzz_u16(struct fuzz_input *in)
{
	uint16_t low = fuzz_u8(in);

	return (uint16_t)(low | fuzz_u8(in) << 8);
}

static inline uint32_t fuzz_u32(struct fuzz_input *in)
{
	uint32_t low = fuzz_u16(in);

	return low | (uint32_t)fuzz_u16(in) << 16;
}

static inline uint64_t fuzz_u64(struct fuzz_input *in)
{
	uint64_t low = fuzz_u32(in);

	return low | (uint64_t)fuzz_u32(in) << 32;
}

/* At most `max` bytes of the input, *n of them. */
static inline const uint8_t *fuzz_bytes(struct fuzz_input *in, size_t max, size_t *n)
{
	const uint8_t *p = in->at;

	*n = MIN(max, fuzz_left(in));
	in->at += *n;
	return p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

/* A finding: says what and aborts. */
void fuzz_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
#define fuzz_check(condition) \
	((condition) ? (void)0 : fuzz_fail("%s:%d: %s", __FILE__, __LINE__, #condition))

/* The scratch directory, made by the first call. */
const char *fuzz_directory(void);
/* All that is in a directory, and not the directory itself. */
void fuzz_empty(const char *directory);

/* A machine on the script engine with every device there is, one in each slot from FUZZ_RNG on.  Its disk
 * has 1 MiB, its share is the scratch directory's "share", its network gives back what is sent. */
enum fuzz_slot { FUZZ_RNG = 1, FUZZ_CONSOLE, FUZZ_BLK, FUZZ_NET, FUZZ_FS, FUZZ_BALLOON, FUZZ_VSOCK };
struct machine *fuzz_machine(void);
/* At power-on, its share as it was. */
void fuzz_machine_reset(void);
/* A program of the host's wants the guest's vsock port 1000. */
void fuzz_host_connects(void);
/* Lets what was begun end, and the host's programs answer. */
void fuzz_machine_settle(void);

#endif
