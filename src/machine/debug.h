/* A debugger's view of a machine that does not run: registers, memory, breakpoints.  Nothing here is
 * seen by the guest but what the debugger writes, and the INT3s of its software breakpoints.
 */
#ifndef TAKT_MACHINE_DEBUG_H
#define TAKT_MACHINE_DEBUG_H

#include "base/types.h"

struct machine;
struct vcpu;

/* From here on, until debug_detach(), each vcpu has a `debug` (x86/vcpu.h). */
void debug_attach(struct machine *m);
void debug_detach(struct machine *m);

#define DEBUG_REGISTER_MAX 16 /* bytes */
#define DEBUG_BREAKPOINTS_MAX 256

/* A register as gdb knows it; `feature` is that of gdb's target descriptions. */
struct debug_register {
	const char *name, *type, *feature;
	unsigned bits;
};
/* Register `n` in the order of gdb's numbers; NULL: there is none. */
const struct debug_register *debug_register(unsigned n);
/* Little-endian.  -ENOENT: no such register; -EPERM: one that is only read. */
int debug_register_read(struct vcpu *v, unsigned n, uint8_t value[DEBUG_REGISTER_MAX]);
int debug_register_write(struct machine *m, struct vcpu *v, unsigned n,
			 const uint8_t value[DEBUG_REGISTER_MAX]);

/* Guest RAM by the vcpu's page tables (whatever they allow), or by physical address with v == NULL.
 * Devices are not touched.  Returns how many bytes there were: less than `len` where the next is not
 * RAM. */
struct debug_breakpoints;
uint64_t debug_read(const struct debug_breakpoints *b, struct machine *m, const struct vcpu *v,
		    uint64_t at, uint8_t *buf, uint64_t len);
uint64_t debug_write(struct machine *m, const struct vcpu *v, uint64_t at, const uint8_t *buf,
		     uint64_t len);

/* As gdb's Z packets have them. */
enum debug_break { DEBUG_SOFTWARE, DEBUG_HARDWARE, DEBUG_WRITE, DEBUG_READ, DEBUG_ACCESS };

struct debug_breakpoints {
	struct debug_software {
		gva_t at;
		gpa_t gpa;
		uint8_t saved;
	} software[DEBUG_BREAKPOINTS_MAX];
	gva_t addresses[DEBUG_BREAKPOINTS_MAX]; /* of `software`, for the vcpus */
	unsigned nsoftware;
	struct debug_hardware {
		bool used;
		enum debug_break kind;
		gva_t at;
		uint64_t len;
	} hardware[4];
};

/* For all vcpus; `v`: whose page tables say where a software breakpoint is.  Inserting one that is
 * there, or removing one that is not, is no error.  -EFAULT: not RAM; -ENOSPC; -EINVAL: a length that
 * the architecture does not have. */
int debug_insert(struct debug_breakpoints *b, struct machine *m, const struct vcpu *v,
		 enum debug_break kind, gva_t at, uint64_t len);
int debug_remove(struct debug_breakpoints *b, struct machine *m, enum debug_break kind, gva_t at,
		 uint64_t len);
void debug_remove_all(struct debug_breakpoints *b, struct machine *m);

#endif
