/* The disks of takt run: what --disk says, open. */
#ifndef TAKT_CLI_DISKS_H
#define TAKT_CLI_DISKS_H

#include "backend/disk.h"
#include "cli/options.h"
#include "machine/machine.h"

struct disks {
	struct disk *disk[MACHINE_DISKS_MAX];
	unsigned count;
};

/* Opens FILE[,ro][,snapshot][,format=raw|qcow2][,serial=TEXT][,on-error=report|pause|fail|nospace] of
 * each.  -EINVAL, -ENOENT, -EBUSY ...
 * disks_close() also after an error. */
int disks_open(struct disks *disks, const struct option_list *options, struct error *err);
/* Opens one more, behind those. -ENOSPC: there is no room; else as disk_open(). */
int disks_add(struct disks *disks, const struct disk_config *config, struct error *err);
void disks_close(struct disks *disks);

#endif
