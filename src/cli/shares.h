/* The shares of takt run: what --share says, open. */
#ifndef TAKT_CLI_SHARES_H
#define TAKT_CLI_SHARES_H

#include "backend/hostdir.h"
#include "cli/options.h"
#include "machine/machine.h"

#define SHARES_MAX 16

struct shares {
	struct machine_share share[SHARES_MAX];
	unsigned count;
};

/* Opens DIR:TAG[,ro][,cache=auto|always|none][,locks][,acl][,squash] of each.  -EINVAL, -ENOENT ...
 * shares_close() also after an error. */
int shares_open(struct shares *shares, const struct option_list *options, struct error *err);
/* Opens one more. */
int shares_add(struct shares *shares, const struct hostdir_config *config, const char *tag, struct error *err);
void shares_close(struct shares *shares);

#endif
