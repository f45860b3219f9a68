/* takt image build: a bootable Debian system in a disk image.
 *
 *   mmdebstrap ─ tar ─▶ finish (a shell script, below) ─ mke2fs -d ─▶ temporary file ─▶ FILE
 *
 * mmdebstrap does what a Debian installer does; the script adds what makes the system one for a
 * virtual machine, and makes a file system of the tree.  Neither needs privileges: where takt is not
 * run by root, both run in a user namespace (mmdebstrap's --unshare-helper), in which the tree's files
 * belong to its users.  No loop device, nothing mounted.
 *
 * The file system is the whole disk: no partitions, no boot loader; takt reads the kernel out of it
 * (cli/images.c). */
#include <crypt.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/image.h"
#include "cli/options.h"

#define SIZE_DEFAULT (4 * GiB)
#define SIZE_LEAST (512 * MiB)
#define NOT_RUN 127 /* the shell's status for a command that is not there */

/* systemd's own network and name services, so that nothing else is needed for them. */
#define PACKAGES                                                                                \
	"linux-image-cloud-amd64,initramfs-tools,zstd,systemd-sysv,systemd-resolved,udev,dbus," \
	"libpam-systemd,kmod,e2fsprogs,iproute2,iputils-ping,procps,login,passwd"

/* Before the kernel is installed, which makes its initramfs: drivers of the disks that virtual
 * machines have, not of all there are. */
static const char initramfs_hook[] =
    "mkdir -p \"$1/etc/initramfs-tools/conf.d\" && "
    "echo MODULES=list >\"$1/etc/initramfs-tools/conf.d/takt\" && "
    "printf '%s\\n' virtio_pci virtio_blk virtio_scsi sd_mod nvme ext4 "
    ">\"$1/etc/initramfs-tools/modules\"";

/* Its standard input is the tree. */
static const char finish[] =
    "set -eu\n"
    "work=$(mktemp -d \"$TAKT_TMP/takt-image-XXXXXX\")\n"
    "trap 'rm -rf --one-file-system \"$work\"' EXIT\n"
    "trap 'exit 1' HUP INT TERM\n"
    "chmod 755 \"$work\"\n"
    "tree=$work/tree\n"
    "mkdir \"$tree\"\n"
    /* What is in /dev is the kernel's; an unprivileged tar could not make it. */
    "tar -C \"$tree\" --exclude='./dev/*' --numeric-owner -xpf -\n"
    "cat >/dev/null\n"
    "uuid=$(cat /proc/sys/kernel/random/uuid)\n"
    "printf '%s / ext4 errors=remount-ro 0 1\\n' \"UUID=$uuid\" >\"$tree/etc/fstab\"\n"
    "printf '%s\\n' \"$TAKT_HOSTNAME\" >\"$tree/etc/hostname\"\n"
    "printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n::1 localhost ip6-localhost\\n' "
    "\"$TAKT_HOSTNAME\" >\"$tree/etc/hosts\"\n"
    /* Each machine makes its own. */
    ": >\"$tree/etc/machine-id\"\n"
    "rm -f \"$tree/var/lib/dbus/machine-id\" \"$tree/var/lib/systemd/random-seed\"\n"
    "printf '[Match]\\nType=ether\\n\\n[Network]\\nDHCP=yes\\n' "
    ">\"$tree/etc/systemd/network/80-ether-dhcp.network\"\n"
    "ln -sf ../run/systemd/resolve/stub-resolv.conf \"$tree/etc/resolv.conf\"\n"
    "chroot \"$tree\" systemctl -q enable systemd-networkd systemd-resolved serial-getty@ttyS0\n"
    "chroot \"$tree\" usermod -p \"$TAKT_PASSWORD\" root\n"
    "if [ \"$TAKT_AUTOLOGIN\" = 1 ]; then\n"
    "	mkdir -p \"$tree/etc/systemd/system/serial-getty@ttyS0.service.d\"\n"
    "	printf '[Service]\\nExecStart=\\nExecStart=-/sbin/agetty --autologin root --keep-baud "
    "115200,57600,38400,9600 - $TERM\\n' "
    ">\"$tree/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf\"\n"
    "fi\n"
    "mke2fs -q -F -t ext4 -L root -U \"$uuid\" -m 1 -d \"$tree\" \"$TAKT_IMAGE\"\n";

struct build_options {
	const char *output, *format, *suite, *include, *hostname, *password, *mirror;
	uint64_t size;
	bool autologin, compress, force;
};

static const struct option_spec specs[] = {
    {"output", "FILE", "the image; -o FILE is the same", OPTION_TEXT,
     .offset = offsetof(struct build_options, output)},
    {"format", "NAME", "raw or qcow2 (default: by FILE's name)", OPTION_TEXT,
     .offset = offsetof(struct build_options, format)},
    {"size", "SIZE", "of the disk (default: 4G); what is not used takes no room", OPTION_SIZE,
     .offset = offsetof(struct build_options, size)},
    {"suite", "NAME", "the Debian release (default: bookworm)", OPTION_TEXT,
     .offset = offsetof(struct build_options, suite)},
    {"include", "PACKAGE,...", "packages to install as well", OPTION_TEXT,
     .offset = offsetof(struct build_options, include)},
    {"hostname", "NAME", "of the system (default: debian)", OPTION_TEXT,
     .offset = offsetof(struct build_options, hostname)},
    {"root-password", "TEXT", "of root (default: none is asked for, at the console only)",
     OPTION_TEXT, .offset = offsetof(struct build_options, password)},
    {"autologin", NULL, "root is logged in at the serial console", OPTION_FLAG,
     .offset = offsetof(struct build_options, autologin)},
    {"mirror", "URL", "where Debian comes from (default: deb.debian.org)", OPTION_TEXT,
     .offset = offsetof(struct build_options, mirror)},
    {"compress", NULL, "with zstd, for a qcow2 FILE", OPTION_FLAG,
     .offset = offsetof(struct build_options, compress)},
    {"force", NULL, "replace FILE if it exists", OPTION_FLAG,
     .offset = offsetof(struct build_options, force)},
};

/* --- what the user wants --- */

/* As in RFC 1123, without dots. */
static bool is_hostname(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-");

	return n && n < 64 && !name[n] && name[0] != '-' && name[n - 1] != '-';
}

static int check_options(struct build_options *o, struct error *err)
{
	if (!o->output)
		return error_set(err, EINVAL, "where shall the image go? give -o FILE");
	o->format = image_format(o->format, o->output, err);
	if (!o->format)
		return -err->code;
	if (o->compress && strcmp(o->format, "qcow2"))
		return error_set(err, EINVAL, "--compress is for qcow2: give --format qcow2");
	if (o->size < SIZE_LEAST || o->size > INT64_MAX || o->size % 4096)
		return error_set(err, EINVAL,
				 "--size: a Debian system needs at least 512M, in steps of 4K");
	if (!is_hostname(o->hostname))
		return error_set(err, EINVAL,
				 "--hostname %s: give up to 63 letters, digits and dashes",
				 o->hostname);
	/* mmdebstrap would take it for an option. */
	if (o->suite[0] == '-' || (o->mirror && o->mirror[0] == '-'))
		return error_set(err, EINVAL, "--suite and --mirror do not begin with a dash");
	return 0;
}

/* What /etc/shadow shall have. */
static int hash_password(const struct build_options *o, char *hash, size_t size, struct error *err)
{
	char random[32], salt[CRYPT_GENSALT_OUTPUT_SIZE];
	struct crypt_data data = {0};
	const char *result = "";

	if (o->password && o->password[0]) {
		result = NULL;
		if (getrandom(random, sizeof(random), 0) == sizeof(random) &&
		    crypt_gensalt_rn("$6$", 0, random, sizeof(random), salt, sizeof(salt)))
			result = crypt_r(o->password, salt, &data);
		if (!result || result[0] == '*')
			return error_set(err, EINVAL, "--root-password: it cannot be encrypted");
	}
	snprintf(hash, size, "%s", result);
	return 0;
}

/* --- running the two programs --- */

/* A program that ends with takt. */
static pid_t start(const char *const *argv, int in, int out, int errors)
{
	pid_t parent = getpid(), pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	signal(SIGPIPE, SIG_DFL);
	if (getppid() == parent && dup2(in, STDIN_FILENO) >= 0 && dup2(out, STDOUT_FILENO) >= 0 &&
	    dup2(errors, STDERR_FILENO) >= 0)
		execvp(argv[0], (char *const *)argv);
	_exit(NOT_RUN);
}

static int wait_for(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return NOT_RUN;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The last lines of what the programs said. */
static void show_end(int fd)
{
	char text[2049];
	off_t end = lseek(fd, 0, SEEK_END), start = MAX(end - 2048, 0);
	ssize_t n = pread(fd, text, sizeof(text) - 1, start);
	char *p = text;

	if (n <= 0)
		return;
	text[n] = 0;
	if (start && strchr(p, '\n'))
		p = strchr(p, '\n') + 1;
	fputs(p, stderr);
}

/* mmdebstrap's output becomes the script's input.  `errors`: where they say what they do. */
static int run_both(const struct build_options *o, int errors, struct error *err)
{
	bool root = !geteuid();
	char packages[4096], hook[sizeof(initramfs_hook) + 32];
	const char *const bootstrap[] = {"mmdebstrap",
					 root ? "--mode=root" : "--mode=unshare",
					 "--variant=minbase",
					 "--format=tar",
					 packages,
					 hook,
					 o->suite,
					 "-",
					 o->mirror,
					 NULL};
	const char *const plain[] = {"sh", "-c", finish, NULL};
	const char *const mapped[] = {"mmdebstrap", "--unshare-helper", "sh", "-c", finish, NULL};
	int pipe_fds[2], null = open("/dev/null", O_RDWR | O_CLOEXEC), status[2];
	pid_t pids[2];

	snprintf(hook, sizeof(hook), "--essential-hook=%s", initramfs_hook);
	if ((size_t)snprintf(packages, sizeof(packages), "--include=" PACKAGES "%s%s",
			     o->include ? "," : "",
			     o->include ? o->include : "") >= sizeof(packages))
		return error_set(err, E2BIG, "--include: too many packages");
	if (null < 0 || pipe2(pipe_fds, O_CLOEXEC))
		return error_set(err, errno, "cannot start mmdebstrap: %s", strerror(errno));
	pids[0] = start(bootstrap, null, pipe_fds[1], errors);
	pids[1] = start(root ? plain : mapped, pipe_fds[0], null, errors);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	close(null);
	for (int i = 0; i < 2; i++)
		status[i] = pids[i] < 0 ? NOT_RUN : wait_for(pids[i]);
	if (status[0] == NOT_RUN)
		return error_set(err, ENOENT,
				 "takt image build needs mmdebstrap: install it with 'apt install "
				 "mmdebstrap uidmap'");
	if (status[0])
		return error_set(err, EIO,
				 "mmdebstrap could not make the system (its messages are above)%s",
				 root ? ""
				      : ": who is not root needs package uidmap and an entry in "
					"/etc/subuid");
	if (status[1])
		return error_set(err, EIO,
				 "no file system could be made of the tree (messages are above): "
				 "does --size suffice? is e2fsprogs installed?");
	return 0;
}

/* --- all of it --- */

/* A large file without a name.  Everybody may write to it who can reach it, which are takt and its
 * children: in a user namespace they are other users. */
static int temporary(const char *dir, struct error *err)
{
	int fd = open(dir, O_TMPFILE | O_RDWR, 0600);

	if (fd >= 0 && !fchmod(fd, 0666))
		return fd;
	return error_set(
	    err, errno, "cannot make a temporary file in %s: %s: let TMPDIR name another directory",
	    dir, strerror(errno));
}

static void set_environment(const struct build_options *o, const char *dir, int image,
			    const char *hash)
{
	const char *path = getenv("PATH");
	char text[4096];

	/* Users have no mke2fs in theirs. */
	snprintf(text, sizeof(text), "%s:/usr/sbin:/sbin", path ? path : "/usr/bin:/bin");
	setenv("PATH", text, 1);
	snprintf(text, sizeof(text), "/proc/self/fd/%d", image);
	setenv("TAKT_IMAGE", text, 1);
	setenv("TAKT_TMP", dir, 1);
	setenv("TMPDIR", dir, 1);
	setenv("TAKT_HOSTNAME", o->hostname, 1);
	setenv("TAKT_PASSWORD", hash, 1);
	setenv("TAKT_AUTOLOGIN", o->autologin ? "1" : "", 1);
	setenv("LC_ALL", "C", 1);
}

static int make_file_system(const struct build_options *o, int image, const char *dir,
			    struct error *err)
{
	char hash[CRYPT_OUTPUT_SIZE];
	/* Without somebody who watches, only what went wrong is of interest. */
	bool watched = isatty(STDERR_FILENO);
	int errors = watched ? dup(STDERR_FILENO) : temporary(dir, err), ret;

	if (errors < 0)
		return -EIO;
	ret = hash_password(o, hash, sizeof(hash), err);
	if (!ret && ftruncate(image, (off_t)o->size))
		ret =
		    error_set(err, errno, "--size: no room for it in %s: %s", dir, strerror(errno));
	if (!ret) {
		set_environment(o, dir, image, hash);
		ret = run_both(o, errors, err);
	}
	if (ret && !watched)
		show_end(errors);
	close(errors);
	return ret;
}

/* The file system's file becomes an image. */
static int copy_out(const struct build_options *o, int image, int to, struct error *err)
{
	char path[64];
	struct disk_config config = {.path = path, .format = "raw", .read_only = true};
	struct image_copy copy = {.from_name = "the temporary file",
				  .to_name = o->output,
				  .fd = to,
				  .format = o->format,
				  .compress = o->compress};
	int ret;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", image);
	copy.from = disk_open(&config, err);
	if (!copy.from)
		return -err->code;
	ret = image_copy(&copy, err);
	disk_close(copy.from);
	return ret;
}

static int build(struct build_options *o, struct error *err)
{
	const char *dir = getenv("TMPDIR");
	struct image_output out;
	int ret = check_options(o, err), image;

	if (ret)
		return ret;
	if (!dir || !*dir)
		dir = "/var/tmp";
	ret = image_output_open(&out, o->output, o->force, err);
	if (ret)
		return ret;
	image = temporary(dir, err);
	ret = image < 0 ? image : make_file_system(o, image, dir, err);
	if (!ret)
		ret = copy_out(o, image, out.fd, err);
	if (!ret)
		ret = image_output_commit(&out, err);
	image_output_discard(&out);
	if (image >= 0)
		close(image);
	return ret;
}

int image_build(int argc, char **argv)
{
	static const struct image_usage usage = {
	    "build -o FILE [OPTIONS]\n\nMakes a Debian system with its own kernel, to be booted "
	    "with\n"
	    "'takt run --disk FILE'.  Needs the packages mmdebstrap, e2fsprogs and uidmap "
	    "and\nDebian's mirror, not root.\n",
	    specs, ARRAY_SIZE(specs), 0};
	struct build_options options = {
	    .size = SIZE_DEFAULT, .suite = "bookworm", .hostname = "debian"};
	struct error err;
	int status;

	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "-o"))
			argv[i] = "--output";
	status = image_arguments(&usage, argc, argv, &options, NULL);
	if (status >= 0)
		return status;
	if (!build(&options, &err))
		return STATUS_OK;
	log_error("%s", err.text);
	return STATUS_ERROR;
}
