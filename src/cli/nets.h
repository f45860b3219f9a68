/* The networks of takt run: what --net says, open; and what --vsock says. */
#ifndef TAKT_CLI_NETS_H
#define TAKT_CLI_NETS_H

#include "backend/net.h"
#include "cli/options.h"
#include "machine/machine.h"

struct nets {
	struct net *net[MACHINE_NETS_MAX];
	unsigned count;
};

/* Opens what each --net names, for a machine with `cpus` processors; without one, the default.
 * -EINVAL, -EPERM, -EADDRINUSE ...  nets_close() also after an error. */
int nets_open(struct nets *nets, const struct option_list *options, unsigned cpus,
	      struct error *err);
void nets_close(struct nets *nets);

struct vsock_option {
	char path[108]; /* as long as a socket's may be */
	uint64_t cid;
};

/* PATH[,cid=N].  -EINVAL. */
int vsock_parse(struct vsock_option *v, const char *option, struct error *err);

#endif
