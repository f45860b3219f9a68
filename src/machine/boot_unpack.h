/* Unpacks the payload of a bzImage: every compression arch/x86/boot/compressed knows. */
#ifndef TAKT_MACHINE_BOOT_UNPACK_H
#define TAKT_MACHINE_BOOT_UNPACK_H

#include "base/error.h"
#include "base/types.h"

#define BOOT_UNPACKED_MAX (1 * GiB) /* KERNEL_IMAGE_SIZE: a kernel cannot be larger */

/* Unpacks `len` bytes at `in`, as payload_offset and payload_length delimit them: compressed data,
 * then its unpacked size in four bytes.  *out is a fresh mapping of *out_len bytes, released with
 * boot_unpack_free().  -EINVAL: damaged, -ENOEXEC: unknown compression, -ENOMEM. */
int boot_unpack(const uint8_t *in, uint64_t len, uint8_t **out, uint64_t *out_len,
		struct error *err);
void boot_unpack_free(uint8_t *out, uint64_t out_len);

/* The name of the compression at `in` ("lz4", "xz", ...), or NULL. */
const char *boot_unpack_name(const uint8_t *in, uint64_t len);

#endif
