/* Kernel modules that a guest needs before it has a file system to load them from. */
#ifndef TAKT_CLI_MODULES_H
#define TAKT_CLI_MODULES_H

#include "base/error.h"
#include "base/types.h"

struct module {
	struct module *next;
	char name[64];
	uint8_t *bytes; /* the ELF file, unpacked */
	size_t size;
};

/* Finds those of `names` (ending in NULL) that `kernel` has as modules, and what they depend on, in the order
 * to load them in.  Looks in `dir` (a root of modules, with lib/modules/VERSION or that itself), or, if NULL,
 * in KERNEL.modules, beside the kernel, and on this host.  What is found nowhere is taken to be built in.
 * -EINVAL: a damaged module or kernel, -ENOENT: no modules of this kernel in `dir`, -ENOMEM. */
int modules_find(struct module **modules, const char *kernel, const char *dir, const char *const *names,
		 struct error *err);
void modules_free(struct module *modules);

#endif
