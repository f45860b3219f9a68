/* Disks: raw files hold what was written, holes are zeroes, a snapshot leaves its file alone,
 * and what cannot work is one clear sentence or an error of the request. */
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
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/disk.h"

#define SIZE (1 * MiB)

struct bench {
	char dir[64], path[96];
	struct aio *aio;
	struct disk *disk;
};

static void wake(void *data)
{
	(void)data; /* everything here is drained */
}

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));
	int fd;

	snprintf(b->dir, sizeof(b->dir), "/tmp/takt-disk-XXXXXX");
	assert_non_null(mkdtemp(b->dir));
	snprintf(b->path, sizeof(b->path), "%s/disk", b->dir);
	fd = open(b->path, O_CREAT | O_RDWR, 0600);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	close(fd);
	b->aio = aio_create(NULL, wake, NULL, NULL);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct bench *b = *state;

	disk_close(b->disk);
	aio_destroy(b->aio);
	unlink(b->path);
	rmdir(b->dir);
	free(b);
	return 0;
}

static void open_disk(struct bench *b, struct disk_config config)
{
	struct error err;

	config.path = b->path;
	b->disk = disk_open(&config, &err);
	if (!b->disk)
		fail_msg("%s", err.text);
	disk_attach(b->disk, b->aio);
}

static void close_disk(struct bench *b)
{
	disk_close(b->disk);
	b->disk = NULL;
}

/* --- requests that are waited for --- */

struct waited {
	struct disk_request r;
	int result;
	unsigned ended;
};

static void ended(struct disk_request *r, int result)
{
	struct waited *w = container_of(r, struct waited, r);

	w->result = result;
	w->ended++;
}

static int request(struct bench *b, enum disk_op op, uint64_t offset, void *buf, uint64_t length)
{
	/* In odd pieces. */
	struct iovec iov[3] = {{buf, length / 3},
			       {(uint8_t *)buf + length / 3, length / 3},
			       {(uint8_t *)buf + length / 3 * 2, length - length / 3 * 2}};
	struct waited w = {.r = {.op = op,
				 .offset = offset,
				 .length = length,
				 .iov = iov,
				 .niov = 3,
				 .done = ended}};

	disk_submit(b->disk, &w.r);
	aio_drain(b->aio);
	assert_int_equal(w.ended, 1);
	return w.result;
}

static void fill(uint8_t *buf, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		buf[i] = (uint8_t)(seed * 31 + i * 7 + i / 256);
}

static void expect(struct bench *b, uint64_t offset, const void *data, size_t n)
{
	uint8_t *buf = malloc(n);

	assert_int_equal(request(b, DISK_READ, offset, buf, n), 0);
	assert_memory_equal(buf, data, n);
	free(buf);
}

static void raw_disks_keep_what_is_written(void **state)
{
	struct bench *b = *state;
	static uint8_t data[64 * KiB], zero[64 * KiB];

	open_disk(b, (struct disk_config){0});
	assert_int_equal(b->disk->size, SIZE);
	assert_false(b->disk->read_only);
	fill(data, sizeof(data), 1);
	assert_int_equal(request(b, DISK_WRITE, 512, data, sizeof(data)), 0);
	assert_int_equal(request(b, DISK_FLUSH, 0, NULL, 0), 0);
	expect(b, 512, data, sizeof(data));
	close_disk(b);
	open_disk(b, (struct disk_config){.read_only = true});
	expect(b, 512, data, sizeof(data));
	expect(b, 512 * KiB, zero, sizeof(zero));
	assert_int_equal(request(b, DISK_WRITE, 0, data, 512), -EROFS);
	assert_int_equal(request(b, DISK_ZERO, 0, NULL, 512), -EROFS);
	assert_int_equal(request(b, DISK_DISCARD, 0, NULL, 512), -EROFS);
	assert_int_equal(request(b, DISK_FLUSH, 0, NULL, 0), 0);
}

static void requests_stay_on_the_disk(void **state)
{
	struct bench *b = *state;
	static const struct {
		uint64_t offset, length;
	} bad[] = {
	    {SIZE, 512}, {SIZE - 512, 1024}, {UINT64_MAX - 511, 512},      {512, UINT64_MAX - 511},
	    {100, 512},  {0, 100},           {UINT64_MAX & ~511ULL, 1024},
	};
	char buf[2048];

	open_disk(b, (struct disk_config){0});
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct iovec iov = {buf, 512};
		struct waited w = {.r = {.offset = bad[i].offset,
					 .length = bad[i].length,
					 .iov = &iov,
					 .niov = 1,
					 .done = ended}};

		for (int op = DISK_READ; op <= DISK_ZERO; op++) {
			if (op == DISK_FLUSH)
				continue;
			w.r.op = (enum disk_op)op;
			w.result = 0;
			disk_submit(b->disk, &w.r);
			assert_int_equal(w.result, -EINVAL);
		}
	}
	assert_int_equal(request(b, DISK_READ, SIZE - 512, buf, 512), 0);
	assert_int_equal(request(b, DISK_WRITE, SIZE, buf, 0), 0);
}

static void zeroes_are_zeroes(void **state)
{
	struct bench *b = *state;
	static uint8_t data[SIZE], zero[SIZE];
	struct stat st;

	fill(data, sizeof(data), 2);
	open_disk(b, (struct disk_config){0});
	for (int way = 0; way < 3; way++) {
		struct waited w = {.r = {.op = way == 2 ? DISK_DISCARD : DISK_ZERO,
					 .may_unmap = way == 1,
					 .offset = 4096,
					 .length = SIZE - 8192,
					 .done = ended}};

		assert_int_equal(request(b, DISK_WRITE, 0, data, SIZE), 0);
		disk_submit(b->disk, &w.r);
		aio_drain(b->aio);
		assert_int_equal(w.result, 0);
		expect(b, 4096, zero, SIZE - 8192);
		expect(b, 0, data, 4096);
		expect(b, SIZE - 4096, data + SIZE - 4096, 4096);
		assert_int_equal(stat(b->path, &st), 0);
		assert_int_equal(st.st_size, SIZE);
	}
}

static void a_file_that_shrank_is_an_error(void **state)
{
	struct bench *b = *state;
	char buf[1024];

	open_disk(b, (struct disk_config){0});
	assert_int_equal(truncate(b->path, 512), 0);
	assert_int_equal(request(b, DISK_READ, 0, buf, 1024), -EIO);
	assert_int_equal(request(b, DISK_READ, 0, buf, 512), 0);
}

static void a_full_host_is_an_error(void **state)
{
	struct bench *b = *state;
	struct rlimit before, limit;
	static uint8_t data[64 * KiB];

	signal(SIGXFSZ, SIG_IGN);
	open_disk(b, (struct disk_config){0});
	getrlimit(RLIMIT_FSIZE, &before);
	limit = before;
	limit.rlim_cur = 4096;
	setrlimit(RLIMIT_FSIZE, &limit);
	assert_true(request(b, DISK_WRITE, 0, data, sizeof(data)) < 0);
	assert_int_equal(request(b, DISK_WRITE, 0, data, 4096), 0);
	setrlimit(RLIMIT_FSIZE, &before);
	assert_int_equal(request(b, DISK_WRITE, 0, data, sizeof(data)), 0);
}

/* A real full file system, where this process may mount one. */
static void no_space_left_is_an_error(void **state)
{
	struct bench *b = *state;
	static uint8_t data[512 * KiB], zero[4096];
	char command[256], file[96];
	int fd;

	snprintf(command, sizeof(command), "mount -t tmpfs -o size=256k tmpfs %s 2>/dev/null",
		 b->dir);
	if (geteuid() || system(command))
		skip();
	snprintf(file, sizeof(file), "%s", b->path);
	fd = open(file, O_CREAT | O_RDWR, 0600);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	close(fd);
	open_disk(b, (struct disk_config){0});
	fill(data, sizeof(data), 3);
	assert_int_equal(request(b, DISK_WRITE, 0, data, sizeof(data)), -ENOSPC);
	/* tmpfs knows no zeroed ranges: they are written. */
	assert_int_equal(request(b, DISK_ZERO, 4096, NULL, 4096), 0);
	expect(b, 4096, zero, 4096);
	assert_int_equal(request(b, DISK_DISCARD, 0, NULL, SIZE), 0);
	assert_int_equal(request(b, DISK_WRITE, 0, data, 64 * KiB), 0);
	expect(b, 0, data, 64 * KiB);
	close_disk(b);
	snprintf(command, sizeof(command), "umount %s", b->dir);
	assert_int_equal(system(command), 0);
}

static void refused(const struct disk_config *config, const char *why)
{
	struct error err = {0};

	assert_null(disk_open(config, &err));
	assert_non_null(strstr(err.text, config->path));
	if (!strstr(err.text, why))
		fail_msg("no '%s' in: %s", why, err.text);
}

static void two_writers_are_kept_apart(void **state)
{
	struct bench *b = *state;
	struct disk_config rw = {.path = b->path}, ro = {.path = b->path, .read_only = true},
			   snapshot = {.path = b->path, .snapshot = true};
	struct disk *other;

	open_disk(b, rw);
	refused(&rw, "in use by another machine");
	refused(&ro, "being written by another machine");
	refused(&snapshot, "being written by another machine");
	close_disk(b);
	open_disk(b, ro);
	other = disk_open(&snapshot, NULL); /* readers do not mind each other */
	assert_non_null(other);
	refused(&rw, "in use by another machine");
	disk_close(other);
}

static void bad_files_are_refused(void **state)
{
	struct bench *b = *state;
	struct disk_config c = {.path = b->path, .format = "vhdx"};
	char path[96];
	int fd;

	refused(&c, "format=vhdx is not one");
	c.format = NULL;
	c.serial = "more than twenty characters";
	refused(&c, "at most 20");
	c.serial = NULL;
	assert_int_equal(truncate(b->path, 1000), 0);
	refused(&c, "not whole sectors");
	assert_int_equal(truncate(b->path, 0), 0);
	refused(&c, "is empty");
	c.path = b->dir;
	refused(&c, "neither a regular file nor a block device");
	c.read_only = true;
	refused(&c, "neither a regular file nor a block device");
	c.path = "/dev/null";
	refused(&c, "neither");
	snprintf(path, sizeof(path), "%s/none", b->dir);
	c.path = path;
	refused(&c, "does not exist");
	assert_int_equal(mkfifo(path, 0600), 0);
	refused(&c, "neither");
	unlink(path);
	fd = open(b->path, O_RDWR);
	assert_int_equal(pwrite(fd, "QFI\xfb", 4, 0), 4);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	close(fd);
	c.path = b->path;
	refused(&c, "qcow2");
	open_disk(b, (struct disk_config){.format = "raw"});
}

static void permissions_are_explained(void **state)
{
	struct bench *b = *state;
	struct disk_config c = {.path = b->path};

	if (!geteuid())
		skip();
	chmod(b->path, 0400);
	refused(&c, "give ,ro or ,snapshot");
	c.read_only = true;
	disk_close(disk_open(&c, NULL));
	chmod(b->path, 0);
	refused(&c, "cannot open");
	chmod(b->path, 0600);
}

/* Random requests to a snapshot and to an array must show the same; the file stays as it was. */
static void a_snapshot_is_a_disk_of_its_own(void **state)
{
	struct bench *b = *state;
	static uint8_t model[SIZE], buf[SIZE], before[SIZE];
	int fd = open(b->path, O_RDWR);

	fill(before, SIZE, 4);
	assert_int_equal(pwrite(fd, before, SIZE, 0), SIZE);
	memcpy(model, before, SIZE);
	open_disk(b, (struct disk_config){.snapshot = true});
	assert_false(b->disk->read_only);
	srandom(14);
	for (unsigned i = 0; i < 3000; i++) {
		uint64_t at = (uint64_t)random() % (SIZE / 512);
		uint64_t most = random() % 8 ? 40 : 2048;
		uint64_t n = (uint64_t)random() % MIN(SIZE / 512 - at, most);

		at *= 512;
		n *= 512;
		switch (random() % 4) {
		case 0:
			fill(buf, n, i);
			memcpy(model + at, buf, n);
			assert_int_equal(request(b, DISK_WRITE, at, buf, n), 0);
			break;
		case 1:
			if (random() % 8)
				n = MIN(n, 8192);
			memset(model + at, 0, n);
			assert_int_equal(
			    request(b, random() & 1 ? DISK_ZERO : DISK_DISCARD, at, NULL, n), 0);
			break;
		default:
			assert_int_equal(request(b, DISK_READ, at, buf, n), 0);
			assert_memory_equal(buf, model + at, n);
		}
	}
	assert_int_equal(request(b, DISK_FLUSH, 0, NULL, 0), 0);
	expect(b, 0, model, SIZE);
	assert_int_equal(pread(fd, buf, SIZE, 0), SIZE);
	assert_memory_equal(buf, before, SIZE);
	close(fd);
}

static void slices_are_what_they_say(void **state)
{
	struct iovec from[3] = {{(void *)1000, 10}, {(void *)2000, 20}, {(void *)3000, 30}}, to[3];

	(void)state;
	assert_int_equal(disk_slice(to, from, 3, 0, 60), 3);
	assert_int_equal(disk_slice(to, from, 3, 5, 10), 2);
	assert_ptr_equal(to[0].iov_base, 1005);
	assert_int_equal(to[0].iov_len, 5);
	assert_ptr_equal(to[1].iov_base, 2000);
	assert_int_equal(to[1].iov_len, 5);
	assert_int_equal(disk_slice(to, from, 3, 30, 7), 1);
	assert_ptr_equal(to[0].iov_base, 3000);
	assert_int_equal(disk_slice(to, from, 3, 60, 1), 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(raw_disks_keep_what_is_written),
	    TEST(requests_stay_on_the_disk),
	    TEST(zeroes_are_zeroes),
	    TEST(a_file_that_shrank_is_an_error),
	    TEST(a_full_host_is_an_error),
	    TEST(no_space_left_is_an_error),
	    TEST(two_writers_are_kept_apart),
	    TEST(bad_files_are_refused),
	    TEST(permissions_are_explained),
	    TEST(a_snapshot_is_a_disk_of_its_own),
	    TEST(slices_are_what_they_say),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
