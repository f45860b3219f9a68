/* Images: what is made is whole and what QEMU's tools say it is, damage is found, leaks are given
 * back, and the system on a disk is found, however damaged the disk is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include "backend/bootdisk.h"
#include "backend/disk.h"
#include "backend/partitions.h"
#include "backend/qcow2_check.h"
#include "backend/qcow2_make.h"

#define SIZE (6 * MiB - 512)

struct bench {
	char dir[64], path[128];
	uint8_t *model;
};

/* The exit status of a shell command in the bench's directory. */
static int shell(struct bench *b, const char *fmt, ...)
{
	char command[700], line[900];
	va_list args;
	int status;

	va_start(args, fmt);
	vsnprintf(command, sizeof(command), fmt, args);
	va_end(args);
	snprintf(line, sizeof(line), "cd %s && PATH=$PATH:/usr/sbin:/sbin && (%s) >log 2>&1",
		 b->dir, command);
	status = system(line);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

static bool have(const char *program)
{
	char line[128];

	snprintf(line, sizeof(line), "PATH=$PATH:/usr/sbin:/sbin command -v %s >/dev/null",
		 program);
	return !system(line);
}

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));

	snprintf(b->dir, sizeof(b->dir), "/tmp/takt-image-XXXXXX");
	assert_non_null(mkdtemp(b->dir));
	snprintf(b->path, sizeof(b->path), "%s/disk", b->dir);
	b->model = calloc(1, ALIGN_UP(SIZE, 2 * MiB));
	alarm(120);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct bench *b = *state;

	shell(b, "rm -r %s", b->dir);
	free(b->model);
	free(b);
	alarm(0);
	return 0;
}

/* --- qcow2 --- */

static void must(int ret, const struct error *err)
{
	if (ret)
		fail_msg("%s", err->text);
}

static bool is_zero(const uint8_t *p, size_t n)
{
	return !p[0] && !memcmp(p, p + 1, n - 1);
}

/* Random clusters, some of which become smaller and some of which do not. */
static void make(struct bench *b, uint64_t cluster, bool compress)
{
	struct qcow2_make_config config = {
	    .name = b->path, .size = SIZE, .cluster = cluster, .compress = compress};
	int fd = open(b->path, O_CREAT | O_TRUNC | O_RDWR, 0600);
	struct error err;
	struct qcow2_make *m = qcow2_make_begin(fd, &config, &err);
	uint64_t step;

	assert_non_null(m);
	step = qcow2_make_cluster_size(m);
	memset(b->model, 0, SIZE);
	for (uint64_t at = 0; at < SIZE; at += step) {
		uint64_t n = MIN(step, SIZE - at);
		long kind = random() % 3;

		for (uint64_t i = 0; kind && i < n; i++)
			b->model[at + i] = kind == 1 ? (uint8_t)random() : (uint8_t)(i / 100 + 1);
	}
	for (uint64_t at = 0; at < SIZE; at += step)
		if (!is_zero(b->model + at, MIN(step, SIZE - at)))
			must(qcow2_make_cluster(m, at / step, b->model + at, &err), &err);
	must(qcow2_make_end(m, &err), &err);
	qcow2_make_free(m);
	close(fd);
}

static void the_disk_is_the_model(struct bench *b)
{
	struct disk_config config = {.path = b->path, .format = "qcow2"};
	uint8_t *buf = malloc(SIZE);
	struct error err;
	struct disk *d = disk_open(&config, &err);

	if (!d)
		fail_msg("%s", err.text);
	assert_int_equal(d->size, SIZE);
	assert_int_equal(disk_read_now(d, 0, buf, SIZE), 0);
	assert_memory_equal(buf, b->model, SIZE);
	for (uint64_t at = 0, next; at < SIZE; at = next + 4096) {
		next = disk_next_data(d, at);
		assert_true(next >= at && next <= SIZE);
		if (next > at)
			assert_true(is_zero(b->model + at, next - at));
	}
	disk_close(d);
	free(buf);
}

static void quiet(void *data, const char *sentence)
{
	(void)data;
	(void)sentence;
}

static void loud(void *data, const char *sentence)
{
	(void)data;
	print_message("%s\n", sentence);
}

/* 0, 3: leaks, 2: corrupt, 1: cannot be checked; as qemu-img check has it. */
static int check(struct bench *b, bool repair, bool expect_clean)
{
	int fd = open(b->path, O_RDWR), ret;
	struct qcow2_findings f;

	ret = qcow2_check(fd, b->path, repair, expect_clean ? loud : quiet, NULL, &f, NULL);
	close(fd);
	if (ret)
		return 1;
	return f.corruptions ? 2 : f.leaks > f.repaired ? 3 : 0;
}

static void save_model(struct bench *b)
{
	char path[160];
	int fd;

	snprintf(path, sizeof(path), "%s/model", b->dir);
	fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
	assert_int_equal(write(fd, b->model, SIZE), SIZE);
	close(fd);
}

static void made_images_are_whole(void **state)
{
	static const uint64_t clusters[] = {512, 4096, 0, 2 * MiB};
	struct bench *b = *state;

	srandom(1);
	for (size_t i = 0; i < 2 * ARRAY_SIZE(clusters); i++) {
		make(b, clusters[i / 2], i % 2);
		the_disk_is_the_model(b);
		assert_int_equal(check(b, false, true), 0);
		if (!have("qemu-img"))
			continue;
		assert_int_equal(shell(b, "qemu-img check -f qcow2 disk"), 0);
		save_model(b);
		assert_int_equal(shell(b, "qemu-img compare -f qcow2 -F raw disk model"), 0);
	}
}

static void poke(struct bench *b, uint64_t at, const void *bytes, size_t n)
{
	int fd = open(b->path, O_RDWR);

	assert_int_equal(pwrite(fd, bytes, n, (off_t)at), n);
	close(fd);
}

static uint64_t peek(struct bench *b, uint64_t at)
{
	uint64_t value = 0;
	int fd = open(b->path, O_RDONLY);

	assert_int_equal(pread(fd, &value, 8, (off_t)at), 8);
	close(fd);
	return __builtin_bswap64(value);
}

/* The offset of the first refcount block, and of the first L2 table. */
static uint64_t refblock(struct bench *b)
{
	return peek(b, peek(b, 48));
}

static uint64_t l2_table(struct bench *b)
{
	return peek(b, peek(b, 40)) & 0x00fffffffffffe00ULL;
}

static uint64_t size_of(struct bench *b)
{
	struct stat st;

	assert_int_equal(stat(b->path, &st), 0);
	return (uint64_t)st.st_size;
}

static void both_say(struct bench *b, int status)
{
	assert_int_equal(check(b, false, false), status);
	if (have("qemu-img"))
		assert_int_equal(shell(b, "qemu-img check -f qcow2 disk"), status);
}

static void damage_is_found(void **state)
{
	struct bench *b = *state;
	uint64_t entry;

	srandom(2);
	make(b, 4096, false);
	both_say(b, 0);
	assert_int_equal(shell(b, "truncate -s +4096 disk"), 0);
	poke(b, refblock(b) + size_of(b) / 4096 * 2 - 2, "\0\1", 2);
	both_say(b, 3);
	poke(b, refblock(b) + 4096 - 2, "\0\1", 2); /* beyond the file's end */
	both_say(b, 3);
	assert_int_equal(check(b, true, true), 0);
	both_say(b, 0);
	the_disk_is_the_model(b);
	poke(b, refblock(b) + 2 * 5, "\0\2", 2); /* one in use */
	both_say(b, 2);                          /* and marked as used once */

	make(b, 4096, false);
	poke(b, refblock(b) + 2 * 5, "\0\0", 2);
	both_say(b, 2);
	assert_int_equal(check(b, true, false), 2); /* nothing is repaired */

	make(b, 4096, false);
	for (entry = 0; !peek(b, l2_table(b) + entry * 8); entry++)
		;
	poke(b, l2_table(b) + entry * 8, "\200\0\0\0\0\0\0\0", 8);
	both_say(b, 3); /* what it referred to */
	poke(b, l2_table(b) + entry * 8, "\200\0\0\0\0\0\022\0", 8);
	both_say(b, 2); /* not the beginning of a cluster */
	poke(b, l2_table(b) + entry * 8, "\200\0\0\0\377\0\0\0", 8);
	both_say(b, 2); /* beyond the end */

	make(b, 4096, false);
	entry = __builtin_bswap64(l2_table(b) | 1ULL << 63);
	poke(b, l2_table(b), &entry, 8); /* data that is a table */
	assert_int_equal(check(b, false, false), 2);
	make(b, 65536, true);
	poke(b, 4, "\0\0\0\7", 4);
	assert_int_equal(check(b, false, false), 1);
}

/* Random damage: at most a finding; and of what is clean, QEMU thinks so, too. */
static void no_damage_does_harm(void **state)
{
	struct bench *b = *state;
	struct stat st;
	uint8_t *good = NULL;
	unsigned clean = 0, found = 0;
	int fd;

	srandom(3);
	for (int i = 0; i < 400; i++) {
		if (!(i % 40)) {
			make(b, i % 80 ? 4096 : 1024, i / 80 % 2);
			fd = open(b->path, O_RDWR);
			assert_int_equal(fstat(fd, &st), 0);
			good = malloc((size_t)st.st_size);
			assert_int_equal(pread(fd, good, (size_t)st.st_size, 0), st.st_size);
			close(fd);
		}
		fd = open(b->path, O_RDWR | O_TRUNC);
		assert_int_equal(pwrite(fd, good, (size_t)st.st_size, 0), st.st_size);
		for (long k = random() % 4; k >= 0; k--) {
			/* Header, or the tables at the end. */
			uint64_t at = random() % 3 ? (uint64_t)st.st_size - 1 -
							 (uint64_t)random() %
							     MIN(64 * KiB, (uint64_t)st.st_size)
						   : 4 + (uint64_t)random() % 108;
			uint8_t byte = (uint8_t)random();

			assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
		}
		close(fd);
		switch (check(b, i % 2, false)) {
		case 0:
			clean++;
			if (i % 8 == 0 && have("qemu-img"))
				assert_int_not_equal(shell(b, "qemu-img check -f qcow2 disk"), 2);
			break;
		case 1: break;
		default: found++;
		}
		if (i % 40 == 39)
			free(good);
	}
	assert_true(clean > 20 && found > 20);
}

static void impossible_images_are_refused(void **state)
{
	struct bench *b = *state;
	static const struct {
		struct qcow2_make_config config;
		const char *why;
	} bad[] = {
	    {{.size = 0}, "multiple of 512"},
	    {{.size = 1000}, "multiple of 512"},
	    {{.size = MiB, .cluster = 3000}, "power of two"},
	    {{.size = MiB, .cluster = 256}, "power of two"},
	    {{.size = MiB, .cluster = 4 * MiB}, "power of two"},
	    {{.size = 1ULL << 60}, "too large"},
	    {{.size = 1ULL << 40, .cluster = 512}, "too large"},
	};
	int fd = open(b->path, O_CREAT | O_RDWR, 0600);
	struct error err;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct qcow2_make_config config = bad[i].config;

		config.name = "x";
		assert_null(qcow2_make_begin(fd, &config, &err));
		assert_non_null(strstr(err.text, bad[i].why));
	}
	close(fd);
}

/* --- systems on disks --- */

#define NEED_MKE2FS()                \
	do {                         \
		if (!have("mke2fs")) \
			skip();      \
	} while (0)

#define TREE                                                                                       \
	"rm -rf tree fs && mkdir -p tree/boot tree/etc tree/usr && cd tree/boot && "               \
	"seq 100000 > vmlinuz-6.1.0-10-amd64 && seq 50000 > initrd.img-6.1.0-10-amd64 && "         \
	"echo old > vmlinuz-6.1.0-9-amd64 && echo junk > vmlinuz-6.9.0~rc1 && "                    \
	"echo junk > vmlinuz-9.dpkg-new && mkdir vmlinux && ln -s vmlinuz-6.1.0-10-amd64 vmlinuz " \
	"&& cd ../.. "

static struct disk *open_disk(struct bench *b, const char *format)
{
	struct disk_config config = {.path = b->path, .format = format, .read_only = true};
	struct error err;
	struct disk *d = disk_open(&config, &err);

	if (!d)
		fail_msg("%s", err.text);
	return d;
}

static void find_system(struct bench *b, const char *format, unsigned partition)
{
	struct disk *d = open_disk(b, format);
	struct bootdisk boot;
	struct error err;

	must(bootdisk_open(&boot, d, "disk", &err), &err);
	assert_string_equal(boot.kernel, "/boot/vmlinuz-6.1.0-10-amd64");
	assert_string_equal(boot.initrd, "/boot/initrd.img-6.1.0-10-amd64");
	assert_int_equal(boot.root_partition, partition);
	assert_int_equal(
	    shell(b, "seq 100000 | cmp - /proc/%d/fd/%d && seq 50000 | cmp - /proc/%d/fd/%d",
		  getpid(), boot.kernel_fd, getpid(), boot.initrd_fd),
	    0);
	bootdisk_close(&boot);
	disk_close(d);
}

static void refuse_system(struct bench *b, int code, const char *why)
{
	struct disk *d = open_disk(b, "raw");
	struct bootdisk boot;
	struct error err;

	assert_int_equal(bootdisk_open(&boot, d, "disk", &err), -code);
	if (!strstr(err.text, why))
		fail_msg("no '%s' in: %s", why, err.text);
	disk_close(d);
}

static void the_newest_kernel_is_found(void **state)
{
	struct bench *b = *state;
	static const char *const options[] = {"-t ext4", "-t ext4 -b 1024", "-t ext2 -b 4096",
					      "-t ext4 -O ^metadata_csum,inline_data -I 256"};

	NEED_MKE2FS();
	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		assert_int_equal(
		    shell(b, TREE "&& rm -f disk && mke2fs -q %s -d tree disk 16M", options[i]), 0);
		find_system(b, "raw", 0);
	}
	if (!have("qemu-img"))
		return;
	assert_int_equal(shell(b, "mv disk raw && qemu-img convert -c -f raw -O qcow2 raw disk"),
			 0);
	find_system(b, "qcow2", 0);
}

/* Puts file system "fs" into partitions that `script` makes with sfdisk. */
static void make_partitioned(struct bench *b, const char *script, unsigned start_mib)
{
	assert_int_equal(
	    shell(b,
		  "rm -f disk && truncate -s 64M disk && printf '%s' | sfdisk -q disk && "
		  "dd if=fs of=disk bs=1M seek=%u conv=notrunc",
		  script, start_mib),
	    0);
}

static void partitions_are_searched(void **state)
{
	struct bench *b = *state;

	NEED_MKE2FS();
	if (!have("sfdisk"))
		skip();
	assert_int_equal(shell(b, TREE "&& mke2fs -q -t ext4 -d tree fs 16M"), 0);
	make_partitioned(b, "label: gpt\\n2048,4096,U\\n16384,32768,L\\n", 8);
	find_system(b, "raw", 2);
	make_partitioned(b, "label: dos\\n2048,4096,S\\n16384,32768,L\\n", 8);
	find_system(b, "raw", 2);
	make_partitioned(b, "label: dos\\n2048,4096,S\\n,,E\\n8192,2048,L\\n16384,32768,L\\n", 8);
	find_system(b, "raw", 6);
	/* The marked one is the root, though another has a system, too. */
	make_partitioned(b,
			 "label: gpt\\n16384,32768,L\\n"
			 "51200,32768,4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\\n",
			 8);
	assert_int_equal(shell(b, "dd if=fs of=disk bs=1M seek=25 conv=notrunc"), 0);
	find_system(b, "raw", 2);
	/* /boot on its own. */
	assert_int_equal(
	    shell(b, "mv tree/boot . && mkdir tree/boot && mke2fs -q -t ext4 -d tree root 8M && "
		     "mv boot/* . && mkdir -p b && mv vmlinuz-* initrd* b && "
		     "mke2fs -q -F -t ext2 -d b fs 16M"),
	    0);
	make_partitioned(b, "label: gpt\\n16384,32768,L\\n51200,32768,L\\n", 8);
	assert_int_equal(shell(b, "dd if=root of=disk bs=1M seek=25 conv=notrunc"), 0);
	{
		struct disk *d = open_disk(b, "raw");
		struct bootdisk boot;
		struct error err;

		must(bootdisk_open(&boot, d, "disk", &err), &err);
		assert_string_equal(boot.kernel, "/vmlinuz-6.1.0-10-amd64");
		assert_int_equal(boot.root_partition, 2);
		bootdisk_close(&boot);
		disk_close(d);
	}
}

static void find_root(struct bench *b, unsigned partition, const char *type, bool unclean)
{
	struct disk *d = open_disk(b, "raw");
	struct bootdisk_root root;
	struct error err;

	must(bootdisk_find_root(&root, d, "disk", &err), &err);
	assert_int_equal(root.partition, partition);
	assert_string_equal(root.type, type);
	assert_int_equal(root.unclean, unclean);
	disk_close(d);
}

static void refuse_root(struct bench *b, int code, const char *why)
{
	struct disk *d = open_disk(b, "raw");
	struct bootdisk_root root;
	struct error err;

	assert_int_equal(bootdisk_find_root(&root, d, "disk", &err), -code);
	if (!strstr(err.text, why))
		fail_msg("no '%s' in: %s", why, err.text);
	disk_close(d);
}

static void the_root_of_a_command_is_found(void **state)
{
	struct bench *b = *state;

	NEED_MKE2FS();
	if (!have("sfdisk"))
		skip();
	/* On a whole disk any file system is. */
	assert_int_equal(
	    shell(b, "rm -rf disk t; mkdir t; echo > t/file; mke2fs -q -t ext4 -d t disk 8M"), 0);
	find_root(b, 0, "ext4", false);
	assert_int_equal(shell(b, "debugfs -w -R 'feature needs_recovery' disk"), 0);
	find_root(b, 0, "ext4", true);
	assert_int_equal(
	    shell(b,
		  "truncate -s 0 disk; truncate -s 1M disk; printf hsqs | dd of=disk conv=notrunc"),
	    0);
	find_root(b, 0, "squashfs", false);
	assert_int_equal(shell(b, "truncate -s 0 disk; truncate -s 1M disk; "
				  "printf _BHRfS_M | dd of=disk bs=1 seek=65600 conv=notrunc"),
			 0);
	find_root(b, 0, "btrfs", false);
	/* The only one; the one with a system; the marked one. */
	assert_int_equal(shell(b, "mke2fs -q -F -t ext2 -d t fs 8M"), 0);
	make_partitioned(b, "label: gpt\\n2048,4096,U\\n16384,32768,L\\n", 8);
	find_root(b, 2, "ext4", false);
	assert_int_equal(
	    shell(b, TREE
		  "&& mke2fs -q -F -t ext4 -d tree root 16M && mke2fs -q -F -t ext4 -d t fs 8M"),
	    0);
	make_partitioned(b, "label: gpt\\n16384,32768,L\\n51200,32768,L\\n", 8);
	assert_int_equal(shell(b, "dd if=root of=disk bs=1M seek=25 conv=notrunc"), 0);
	find_root(b, 2, "ext4", false);
	make_partitioned(
	    b, "label: gpt\\n16384,32768,4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\\n51200,32768,L\\n",
	    8);
	assert_int_equal(shell(b, "dd if=root of=disk bs=1M seek=25 conv=notrunc"), 0);
	find_root(b, 1, "ext4", false);

	make_partitioned(b, "label: gpt\\n16384,32768,L\\n51200,32768,L\\n", 8);
	assert_int_equal(shell(b, "dd if=fs of=disk bs=1M seek=25 conv=notrunc"), 0);
	refuse_root(b, ENOENT, "2 file systems, none of which looks like a root");
	assert_int_equal(shell(b, "truncate -s 0 disk; truncate -s 1M disk"), 0);
	refuse_root(b, ENOENT, "no root file system");
	make_partitioned(b, "label: gpt\\n2048,4096,U\\n", 40);
	refuse_root(b, ENOENT, "no root file system");
}

static void disks_without_a_system_say_so(void **state)
{
	struct bench *b = *state;

	NEED_MKE2FS();
	assert_int_equal(shell(b, "truncate -s 1M disk"), 0);
	refuse_system(b, ENOENT, "has no kernel of its own");
	assert_int_equal(shell(b, "rm -f disk; mke2fs -q -t ext4 disk 8M"), 0);
	refuse_system(b, ENOENT, "has no kernel of its own");
	assert_int_equal(shell(b, "mkdir -p t && echo > t/vmlinuz-1 && rm disk && "
				  "mke2fs -q -t ext4 -d t disk 8M"),
			 0);
	refuse_system(b, ENOENT, "no root file system");
	/* The kernel's inode says 1 TiB: a bound, not an attempt. */
	assert_int_equal(shell(b, TREE "&& truncate -s 300M tree/boot/vmlinuz-9 && rm disk && "
				       "mke2fs -q -t ext4 -d tree disk 16M"),
			 0);
	refuse_system(b, EFBIG, "too large");
	/* Its checksum does not hold. */
	assert_int_equal(shell(b,
			       "block=$(debugfs -R 'blocks /boot' disk 2>/dev/null | tr -d ' ') && "
			       "echo junk | dd of=disk bs=1024 seek=$block conv=notrunc"),
			 0);
	refuse_system(b, EUCLEAN, "e2fsck");
}

/* Any disk is an error at most. */
static void damaged_disks_do_no_harm(void **state)
{
	struct bench *b = *state;
	struct stat st;
	uint8_t *good;
	unsigned opened = 0;
	int fd;

	NEED_MKE2FS();
	srandom(4);
	assert_int_equal(
	    shell(b, TREE "&& mke2fs -q -t ext4 -O ^metadata_csum -b 1024 -d tree disk 4M"), 0);
	assert_int_equal(stat(b->path, &st), 0);
	good = malloc((size_t)st.st_size);
	fd = open(b->path, O_RDWR);
	assert_int_equal(pread(fd, good, (size_t)st.st_size, 0), st.st_size);
	for (int i = 0; i < 1500; i++) {
		struct bootdisk_root root;
		struct bootdisk boot;
		struct disk *d;

		assert_int_equal(pwrite(fd, good, (size_t)st.st_size, 0), st.st_size);
		for (long k = random() % 24; k >= 0; k--) {
			/* The superblock, descriptors, or the first inodes and directories. */
			uint64_t at = i % 3 == 0 ? 1024 + (uint64_t)random() % 1024
						 : 1024 + (uint64_t)random() % (512 * 1024);
			uint8_t byte = random() & 1 ? (uint8_t)random() : 0xff;

			/* Where something is. */
			for (int tries = 0; i % 3 && !good[at] && tries < 200; tries++)
				at = 1024 + (uint64_t)random() % (512 * 1024);
			assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
		}
		d = open_disk(b, "raw");
		if (!bootdisk_open(&boot, d, "disk", NULL)) {
			opened++;
			bootdisk_close(&boot);
		}
		bootdisk_find_root(&root, d, "disk", NULL);
		disk_close(d);
	}
	close(fd);
	free(good);
	assert_true(opened > 100);
}

/* Tables of partitions that lead anywhere: what is returned is on the disk. */
static void damaged_tables_do_no_harm(void **state)
{
	struct bench *b = *state;
	static uint8_t disk[1 * MiB];
	struct partition p[PARTITIONS_MAX];

	srandom(5);
	for (int i = 0; i < 3000; i++) {
		int fd = open(b->path, O_CREAT | O_RDWR | O_TRUNC, 0600), n;
		struct disk *d;
		uint32_t crc;

		memset(disk, 0, sizeof(disk));
		for (int k = 0; k < 40; k++)
			for (int sector = 0; sector < 8; sector++)
				disk[sector * 512 + 446 + random() % 64] = (uint8_t)random();
		for (int sector = 0; sector < 8; sector++) {
			disk[sector * 512 + 510] = 0x55;
			disk[sector * 512 + 511] = 0xaa;
			disk[sector * 512 + 450 + 16 * (random() % 4)] = 0x05;
			disk[sector * 512 + 454 + 16 * (random() % 4)] = (uint8_t)(random() % 8);
		}
		if (i % 2) { /* GPT, with good checksums over nonsense */
			disk[450] = 0xee;
			memcpy(disk + 512, "EFI PART", 8);
			disk[512 + 12] = 92;
			disk[512 + 72] = 2;
			disk[512 + 80] = (uint8_t)(1 + random() % 4);
			disk[512 + 84] = random() % 8 ? 128 : (uint8_t)random();
			for (int k = 0; k < 60; k++)
				disk[1024 + random() % 512] = (uint8_t)random();
			crc = (uint32_t)crc32(0, disk + 1024, disk[592] * (unsigned)disk[596]);
			memcpy(disk + 600, &crc, 4);
			memset(disk + 528, 0, 4);
			crc = (uint32_t)crc32(0, disk + 512, 92);
			memcpy(disk + 528, &crc, 4);
		}
		assert_int_equal(write(fd, disk, sizeof(disk)), sizeof(disk));
		close(fd);
		d = open_disk(b, "raw");
		n = partitions_read(d, p);
		assert_true(n >= 0 && n <= PARTITIONS_MAX);
		for (int k = 0; k < n; k++)
			assert_true(p[k].number && p[k].size && p[k].start &&
				    p[k].start < d->size && p[k].size <= d->size - p[k].start);
		disk_close(d);
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(made_images_are_whole),
	    TEST(damage_is_found),
	    TEST(no_damage_does_harm),
	    TEST(impossible_images_are_refused),
	    TEST(the_newest_kernel_is_found),
	    TEST(partitions_are_searched),
	    TEST(the_root_of_a_command_is_found),
	    TEST(disks_without_a_system_say_so),
	    TEST(damaged_disks_do_no_harm),
	    TEST(damaged_tables_do_no_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
