#include "backend/unix.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 64

static int make_address(struct sockaddr_un *a, const char *path)
{
	*a = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (!path[0] || strlen(path) >= sizeof(a->sun_path))
		return -ENAMETOOLONG;
	strcpy(a->sun_path, path);
	return 0;
}

static int make_socket(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	return fd < 0 ? -errno : fd;
}

int unix_connect(const char *path)
{
	struct sockaddr_un a;
	int fd, code;

	if (make_address(&a, path))
		return -ENAMETOOLONG;
	fd = make_socket();
	if (fd < 0 || !connect(fd, (struct sockaddr *)&a, sizeof(a)))
		return fd;
	code = errno;
	close(fd);
	return -code;
}

/* A socket that its owner, killed, has left behind. */
static int remove_stale(const char *path)
{
	struct stat st;
	int fd;

	if (lstat(path, &st))
		return 0;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	fd = unix_connect(path);
	if (fd >= 0)
		close(fd);
	if (fd != -ECONNREFUSED)
		return -EADDRINUSE;
	return unlink(path) ? -errno : 0;
}

int unix_listen(const char *path, const char *option, struct error *err)
{
	struct sockaddr_un a;
	int ret = make_address(&a, path), fd = -1;

	if (ret)
		return error_set(err, ENAMETOOLONG,
				 "%s %.150s: a socket's path has 1 to %zu characters", option, path,
				 sizeof(a.sun_path) - 1);
	ret = remove_stale(path);
	if (!ret)
		fd = ret = make_socket();
	if (fd >= 0) {
		ret =
		    bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, BACKLOG) ? -errno : 0;
		if (ret)
			close(fd);
	}
	if (!ret)
		return fd;
	if (ret == -EADDRINUSE)
		return error_set(err, -ret,
				 "%s %s: another program listens there: choose another path",
				 option, path);
	if (ret == -EEXIST)
		return error_set(err, -ret,
				 "%s %s: there is a file of that name that is no socket: choose "
				 "another path",
				 option, path);
	return error_set(err, -ret, "%s %s: cannot listen there: %s", option, path, strerror(-ret));
}

int unix_accept(int fd)
{
	int got = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	return got < 0 ? -errno : got;
}
