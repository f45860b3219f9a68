/* Unix stream sockets, none of whose calls block. */
#ifndef TAKT_BACKEND_UNIX_H
#define TAKT_BACKEND_UNIX_H

#include "base/error.h"

/* Listens at `path`; a socket that is there but that nobody listens to any more is replaced.
 * Returns the descriptor, or -EADDRINUSE, -EEXIST (another file), -EACCES ... */
int unix_listen(const char *path, const char *option, struct error *err);
/* Returns a descriptor, or -errno. */
int unix_connect(const char *path);
/* The next who connected, or -errno. */
int unix_accept(int fd);

#endif
