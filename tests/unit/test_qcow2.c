/* qcow2 images: QEMU's own tool makes them, reads what takt wrote and finds nothing wrong with
 * it; damaged ones are errors.  Skipped where there is no qemu-img. */
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
#include <unistd.h>

#include "backend/disk.h"
#include "backend/qcow2_check.h"
#include "host_faults.h"

#define SIZE (8 * MiB - 512 * 3) /* its last cluster is a part of one */

struct bench {
	char dir[64], path[128];
	struct aio *aio;
	struct disk *disk;
	uint8_t *model; /* what the disk should be */
};

static void wake(void *data)
{
	(void)data;
}

/* A shell command in the bench's directory must succeed. */
static void run(struct bench *b, const char *fmt, ...)
{
	char command[512], line[768];
	va_list args;

	va_start(args, fmt);
	vsnprintf(command, sizeof(command), fmt, args);
	va_end(args);
	snprintf(line, sizeof(line), "cd %s && (%s) >log 2>&1 || { cat log >&2; false; }", b->dir,
		 command);
	if (system(line))
		fail_msg("%s", command);
}

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));

	snprintf(b->dir, sizeof(b->dir), "%s/takt-qcow2-XXXXXX",
		 access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm"); /* many syncs */
	assert_non_null(mkdtemp(b->dir));
	snprintf(b->path, sizeof(b->path), "%s/disk", b->dir);
	b->aio = aio_create(NULL, wake, NULL, NULL);
	b->model = calloc(1, SIZE);
	alarm(120);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct bench *b = *state;

	disk_close(b->disk);
	aio_destroy(b->aio);
	run(b, "rm -r %s", b->dir);
	free(b->model);
	free(b);
	alarm(0);
	return 0;
}

#define NEED_QEMU()                                               \
	do {                                                      \
		if (system("qemu-img --version >/dev/null 2>&1")) \
			skip();                                   \
	} while (0)

static void open_disk(struct bench *b, bool read_only)
{
	struct disk_config config = {.path = b->path, .format = "qcow2", .read_only = read_only};
	struct error err;

	b->disk = disk_open(&config, &err);
	if (!b->disk)
		fail_msg("%s", err.text);
	disk_attach(b->disk, b->aio);
	assert_int_equal(b->disk->size, SIZE);
}

static void close_disk(struct bench *b)
{
	disk_close(b->disk);
	b->disk = NULL;
}

struct waited {
	struct disk_request r;
	int result;
};

static void ended(struct disk_request *r, int result)
{
	container_of(r, struct waited, r)->result = result;
}

static int request(struct bench *b, enum disk_op op, uint64_t offset, void *buf, uint64_t length)
{
	uint64_t first = length / 3;
	struct iovec iov[2] = {{buf, first}, {(uint8_t *)buf + first, length - first}};
	struct waited w = {.r = {.op = op,
				 .offset = offset,
				 .length = length,
				 .iov = iov,
				 .niov = 2,
				 .done = ended},
			   .result = 1};

	disk_submit(b->disk, &w.r);
	aio_drain(b->aio);
	return w.result;
}

static void fill(uint8_t *buf, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		buf[i] = (uint8_t)(seed * 31 + i * 7 + i / 256);
}

static void the_disk_is_the_model(struct bench *b)
{
	uint8_t *buf = malloc(SIZE);

	assert_int_equal(request(b, DISK_READ, 0, buf, SIZE), 0);
	assert_memory_equal(buf, b->model, SIZE);
	free(buf);
}

/* Random requests, which the model has, too.  A discard may leave what was there: it is read
 * back. */
static void random_requests(struct bench *b, unsigned count, uint64_t most)
{
	uint8_t *buf = malloc(SIZE);

	for (unsigned i = 0; i < count; i++) {
		uint64_t at = (uint64_t)random() % (SIZE / 512);
		uint64_t n = 1 + (uint64_t)random() % MIN(SIZE / 512 - at, most);

		at *= 512;
		n *= 512;
		switch (random() % 6) {
		case 0:
		case 1:
			fill(buf, n, i);
			memcpy(b->model + at, buf, n);
			assert_int_equal(request(b, DISK_WRITE, at, buf, n), 0);
			break;
		case 2:
			memset(b->model + at, 0, n);
			assert_int_equal(request(b, DISK_ZERO, at, NULL, n), 0);
			break;
		case 3:
			assert_int_equal(request(b, DISK_DISCARD, at, NULL, n), 0);
			assert_int_equal(request(b, DISK_READ, at, buf, n), 0);
			for (uint64_t k = 0; k < n; k++)
				assert_true(!buf[k] || buf[k] == b->model[at + k]);
			memcpy(b->model + at, buf, n);
			break;
		default:
			assert_int_equal(request(b, DISK_READ, at, buf, n), 0);
			assert_memory_equal(buf, b->model + at, n);
		}
	}
	assert_int_equal(request(b, DISK_FLUSH, 0, NULL, 0), 0);
	free(buf);
}

static void save_model(struct bench *b, const char *name)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", b->dir, name);
	f = fopen(path, "wb");
	assert_int_equal(fwrite(b->model, 1, SIZE, f), SIZE);
	fclose(f);
}

/* qemu-img finds no error, no leak, and the same contents. */
static void qemu_agrees(struct bench *b)
{
	save_model(b, "model");
	run(b, "qemu-img check -f qcow2 disk && qemu-img compare -f qcow2 -F raw disk model");
}

static void images_of_all_kinds_are_written(void **state)
{
	struct bench *b = *state;
	static const char *const options[] = {
	    "",
	    "-o compat=0.10",
	    "-o cluster_size=4k",
	    "-o cluster_size=2M",
	    "-o preallocation=metadata",
	    "-o lazy_refcounts=on",
	};

	NEED_QEMU();
	srandom(17);
	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		run(b, "rm -f disk; qemu-img create -f qcow2 %s disk %llu", options[i],
		    (unsigned long long)SIZE);
		memset(b->model, 0, SIZE);
		for (int round = 0; round < 3; round++) {
			open_disk(b, false);
			random_requests(b, 300, round == 2 ? 2000 : 60);
			the_disk_is_the_model(b);
			close_disk(b);
			qemu_agrees(b);
		}
	}
}

static void backing_disks_show_through(void **state)
{
	struct bench *b = *state;
	static const char *const formats[] = {"raw", "qcow2"};
	uint64_t base = 5 * MiB + 1024;

	NEED_QEMU();
	srandom(18);
	for (int version = 0; version < 2; version++)
		for (int i = 0; i < 2; i++) {
			fill(b->model, base, 7);
			memset(b->model + base, 0, SIZE - base);
			save_model(b, "whole");
			run(b,
			    "rm -f disk base; head -c %llu whole > part && qemu-img convert -f raw "
			    "-O %s "
			    "part base && qemu-img create -f qcow2 -o compat=%s -b base -F %s disk "
			    "%llu",
			    (unsigned long long)base, formats[i], version ? "1.1" : "0.10",
			    formats[i], (unsigned long long)SIZE);
			run(b, "sha256sum base > sum");
			open_disk(b, false);
			the_disk_is_the_model(b);
			random_requests(b, 400, 200);
			the_disk_is_the_model(b);
			close_disk(b);
			qemu_agrees(b);
			run(b, "sha256sum -c sum");
		}
}

static void compressed_clusters_are_read_and_replaced(void **state)
{
	struct bench *b = *state;
	static const char *const types[] = {"zlib", "zstd"};

	NEED_QEMU();
	srandom(19);
	for (int i = 0; i < 2; i++) {
		fill(b->model, SIZE / 2, 11);
		for (uint64_t k = SIZE / 2; k < SIZE; k++)
			b->model[k] = k % 4096 < 2048 ? (uint8_t)random() : 0;
		save_model(b, "whole");
		run(b,
		    "rm -f disk; qemu-img convert -c -f raw -O qcow2 -o compression_type=%s whole "
		    "disk",
		    types[i]);
		open_disk(b, true);
		the_disk_is_the_model(b);
		close_disk(b);
		open_disk(b, false);
		random_requests(b, 400, 200);
		the_disk_is_the_model(b);
		close_disk(b);
		qemu_agrees(b);
	}
}

static void internal_snapshots_are_kept(void **state)
{
	struct bench *b = *state;
	uint8_t *before = malloc(SIZE);

	NEED_QEMU();
	srandom(20);
	run(b, "qemu-img create -f qcow2 disk %llu", (unsigned long long)SIZE);
	open_disk(b, false);
	random_requests(b, 200, 200);
	close_disk(b);
	memcpy(before, b->model, SIZE);
	run(b, "qemu-img snapshot -c one disk");
	open_disk(b, false);
	random_requests(b, 300, 200);
	the_disk_is_the_model(b);
	close_disk(b);
	qemu_agrees(b);
	run(b, "qemu-img snapshot -a one disk");
	memcpy(b->model, before, SIZE);
	qemu_agrees(b);
	free(before);
}

static void refused(struct bench *b, bool read_only, const char *why)
{
	struct disk_config config = {.path = b->path, .format = "qcow2", .read_only = read_only};
	struct error err = {0};

	assert_null(disk_open(&config, &err));
	if (!strstr(err.text, why) || !strstr(err.text, b->path))
		fail_msg("no '%s' in: %s", why, err.text);
}

static void poke(struct bench *b, uint64_t at, const char *bytes, size_t n)
{
	int fd = open(b->path, O_RDWR);

	assert_int_equal(pwrite(fd, bytes, n, (off_t)at), n);
	close(fd);
}

static void strange_images_are_refused(void **state)
{
	struct bench *b = *state;

	NEED_QEMU();
	run(b, "truncate -s 1M disk");
	refused(b, false, "is not a qcow2 image");
	run(b, "truncate -s 10 disk");
	refused(b, false, "is not a qcow2 image");
#define MAKE(o) run(b, "rm -f disk; qemu-img create -f qcow2 " o " disk 8M")
	MAKE("-o refcount_bits=1");
	refused(b, false, "give ,ro");
	MAKE("-o cluster_size=512");
	refused(b, false, "too small");
	MAKE("-o extended_l2=on");
	refused(b, true, "uses features");
	MAKE("-o data_file=data,data_file_raw=on");
	refused(b, true, "uses features");
	MAKE("");
	poke(b, 4, "\0\0\0\4", 4);
	refused(b, true, "version");
	MAKE("");
	poke(b, 32, "\0\0\0\1", 4);
	refused(b, true, "encrypted");
	MAKE("");
	poke(b, 79, "\1", 1); /* dirty */
	refused(b, false, "not closed well");
	MAKE("");
	poke(b, 20, "\0\0\0\77", 4);
	refused(b, true, "damaged header");
	MAKE("");
	poke(b, 36, "\377\377\377\377", 4);
	refused(b, true, "damaged L1");
	MAKE("");
	run(b, "truncate -s 65536 disk");
	refused(b, true, "truncated");
	/* A file that is its own backing file. */
	run(b,
	    "rm -f disk; qemu-img create -u -f qcow2 -b disk -F qcow2 other 8M && mv other disk");
	refused(b, true, "more than 8 backing files");
}

/* Any image is an error at most. */
static void damaged_images_do_no_harm(void **state)
{
	struct bench *b = *state;
	unsigned opened = 0;
	char *good;
	struct stat st;
	int fd;

	NEED_QEMU();
	srandom(21);
	fill(b->model, SIZE, 5);
	save_model(b, "whole");
	run(b, "qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k whole disk");
	open_disk(b, false);
	random_requests(b, 300, 20);
	close_disk(b);
	assert_int_equal(stat(b->path, &st), 0);
	good = malloc((size_t)st.st_size);
	fd = open(b->path, O_RDWR);
	assert_int_equal(pread(fd, good, (size_t)st.st_size, 0), st.st_size);
	for (int i = 0; i < 300; i++) {
		struct disk_config config = {.path = b->path, .format = "qcow2"};
		static uint8_t buf[128 * KiB];

		assert_int_equal(ftruncate(fd, 0), 0);
		assert_int_equal(pwrite(fd, good, (size_t)st.st_size, 0), st.st_size);
		for (long k = random() % 40; k >= 0; k--) {
			/* The header in every fourth only: most of that is refused at once. */
			uint64_t at =
			    (i % 4 ? 4096 : 0) + (uint64_t)random() % (i % 4 ? 32 * 1024 : 128);
			uint8_t byte = random() & 1 ? (uint8_t)random() : 0xff;

			assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
		}
		b->disk = disk_open(&config, NULL);
		if (!b->disk)
			continue;
		opened++;
		disk_attach(b->disk, b->aio);
		for (int k = 0; k < 60; k++) {
			uint64_t at = (uint64_t)random() % (SIZE / 512) * 512 % b->disk->size;
			uint64_t n = MIN((uint64_t)random() % 64 * 512, b->disk->size - at);

			request(b, (enum disk_op)(random() % 5), at, buf, n & ~511ULL);
		}
		close_disk(b);
	}
	close(fd);
	free(good);
	assert_true(opened > 50);
}

/* --- a host that fails --- */

static void say(void *data, const char *sentence)
{
	(void)data;
	printf("%s\n", sentence);
}

/* What takt's own check finds. */
static struct qcow2_findings check(struct bench *b)
{
	struct qcow2_findings f;
	struct error err;
	int fd = open(b->path, O_RDONLY);

	if (qcow2_check(fd, "disk", false, say, NULL, &f, &err))
		fail_msg("%s", err.text);
	close(fd);
	return f;
}

/* The same requests each time, of every kind, with tables to be made and clusters to be freed.  With
 * `insist`, what fails is tried until it succeeds; without, a write that fails has written any part of
 * its sectors.  Returns how many failed. */
static unsigned a_little_work(struct bench *b, bool insist)
{
	static const struct {
		enum disk_op op;
		unsigned at, n; /* sectors */
	} work[] = {
	    {DISK_WRITE, 0, 3},	     {DISK_WRITE, 1000, 300}, {DISK_FLUSH, 0, 0},
	    {DISK_DISCARD, 1010, 200}, {DISK_WRITE, 5000, 1},	{DISK_ZERO, 1, 1040},
	    {DISK_FLUSH, 0, 0},	     {DISK_WRITE, 1005, 70},	{DISK_WRITE, 9000, 100},
	    {DISK_DISCARD, 0, 16000}, {DISK_FLUSH, 0, 0},	{DISK_WRITE, 20, 400},
	    {DISK_FLUSH, 0, 0},	     {DISK_WRITE, 12000, 20},
	};
	uint8_t *buf = malloc(SIZE);
	unsigned failed = 0;

	for (size_t i = 0; i < ARRAY_SIZE(work); i++) {
		uint64_t at = work[i].at * 512ULL, n = work[i].n * 512ULL;
		int ret;

		fill(buf, n, (unsigned)i + 3);
		while ((ret = request(b, work[i].op, at, buf, n)) != 0 && insist) {
			assert_true(failed < 1000);
			failed++;
		}
		failed += !!ret;
		if (ret)
			continue;
		if (work[i].op == DISK_WRITE)
			memcpy(b->model + at, buf, n);
		else if (work[i].op == DISK_ZERO)
			memset(b->model + at, 0, n);
		else if (work[i].op == DISK_DISCARD) /* it promises nothing */
			assert_int_equal(request(b, DISK_READ, at, b->model + at, n), 0);
	}
	free(buf);
	return failed;
}

static const char *const fault_images[] = {
    "qemu-img convert -f raw -O qcow2 -o cluster_size=%s whole base",
    "qemu-img convert -c -f raw -O qcow2 -o cluster_size=%s whole base && qemu-img snapshot -c one base",
};
static const char *const fault_clusters[] = {"1k", "4k", "64k"};

static void make_base(struct bench *b, const char *recipe, const char *cluster)
{
	char command[256];

	fill(b->model + 512 * KiB, MiB, 21);
	save_model(b, "whole");
	snprintf(command, sizeof(command), recipe, cluster);
	run(b, "rm -f base; %s", command);
}

static void the_disk_is_new(struct bench *b, const uint8_t *whole)
{
	unlink(b->path);
	run(b, "cp base disk");
	memcpy(b->model, whole, SIZE);
}

/* A host without room, at whatever point, for some calls: what is tried again succeeds, and nothing is
 * lost, not even a cluster. */
static void room_that_runs_out_costs_nothing(void **state)
{
	struct bench *b = *state;
	uint8_t *whole = malloc(SIZE);
	unsigned failed = 0;

	NEED_QEMU();
	for (size_t i = 0; i < ARRAY_SIZE(fault_images) * ARRAY_SIZE(fault_clusters); i++) {
		struct host_faults f = {.kinds = FAULT_WRITE | FAULT_ALLOCATE, .error = ENOSPC};
		uint64_t calls = 1, step;

		memset(b->model, 0, SIZE);
		make_base(b, fault_images[i / 3], fault_clusters[i % 3]);
		memcpy(whole, b->model, SIZE);
		for (uint64_t n = 1; n <= calls; n += step) {
			the_disk_is_new(b, whole);
			open_disk(b, false);
			f.first = n;
			f.last = n + n % 4;
			f.torn = n & 1;
			host_faults_set(&f);
			failed += a_little_work(b, true);
			calls = host_faults_calls();
			step = 1 + calls / 60;
			the_disk_is_the_model(b);
			host_faults_set(NULL);
			close_disk(b);
			assert_int_equal(check(b).corruptions, 0);
			assert_int_equal(check(b).leaks, 0);
			if (n % 16 == 1)
				qemu_agrees(b);
		}
	}
	assert_true(failed > 100);
	free(whole);
}

/* A host that fails at some point and ever after, and then has takt stop: what the image refers to
 * is counted. */
static void a_host_that_fails_for_good_leaves_an_image(void **state)
{
	struct bench *b = *state;
	uint8_t *whole = malloc(SIZE);
	unsigned failed = 0;

	NEED_QEMU();
	for (size_t i = 0; i < ARRAY_SIZE(fault_images) * ARRAY_SIZE(fault_clusters) * 2; i++) {
		struct host_faults f = {.kinds = i & 1 ? FAULT_SYNC
						       : FAULT_WRITE | FAULT_SYNC | FAULT_ALLOCATE,
					.error = EIO,
					.last = UINT64_MAX};
		uint64_t calls = 1, step;

		memset(b->model, 0, SIZE);
		make_base(b, fault_images[i / 2 / 3], fault_clusters[i / 2 % 3]);
		memcpy(whole, b->model, SIZE);
		for (uint64_t n = 1; n <= calls; n += step) {
			the_disk_is_new(b, whole);
			open_disk(b, false);
			f.first = n;
			f.torn = n & 1;
			host_faults_set(&f);
			failed += a_little_work(b, false);
			calls = MAX(host_faults_calls(), calls);
			step = 1 + calls / 40;
			close_disk(b);
			host_faults_set(NULL);
			assert_int_equal(check(b).corruptions, 0);
			if (n % 16 == 1) /* 3: leaks */
				run(b, "qemu-img check -f qcow2 disk || [ $? -eq 3 ]");
		}
	}
	assert_true(failed > 100);
	free(whole);
}

/* --- a host that stops --- */

#define FLUSHES 12
#define SECTORS (SIZE / 512)

struct history {
	uint8_t *flushed[FLUSHES + 1];   /* the disk as of flush n; 0 is the beginning */
	uint8_t *touched[FLUSHES + 1];   /* sectors that were written after it and before the next */
};

static void work_and_flush(struct bench *b, struct history *h, unsigned *seed)
{
	uint8_t *buf = malloc(SIZE);

	for (unsigned k = 0; k <= FLUSHES; k++) {
		if (k) {
			assert_int_equal(request(b, DISK_FLUSH, 0, NULL, 0), 0);
			host_faults_mark(k);
		}
		memcpy(h->flushed[k], b->model, SIZE);
		memset(h->touched[k], 0, SECTORS);
		for (unsigned i = 0; i < 6; i++) {
			enum disk_op op = "\1\1\1\3\4\1"[rand_r(seed) % 6];
			uint64_t at = (uint64_t)rand_r(seed) % SECTORS;
			uint64_t n = 1 + (uint64_t)rand_r(seed) % (op == DISK_WRITE ? 40 : 800);

			if (rand_r(seed) % 2) /* again and again in some places */
				at %= 1500;
			n = MIN(n, SECTORS - at);
			memset(h->touched[k] + at, 1, n);
			fill(buf, n * 512, (unsigned)rand_r(seed));
			assert_int_equal(request(b, op, at * 512, buf, n * 512), 0);
			if (op == DISK_WRITE)
				memcpy(b->model + at * 512, buf, n * 512);
			else
				assert_int_equal(request(b, DISK_READ, at * 512, b->model + at * 512, n * 512), 0);
		}
	}
	free(buf);
}

/* The image at `path` has all that flush `mark` promised. */
static void keeps_what_was_flushed(struct bench *b, struct history *h, unsigned mark)
{
	uint8_t *buf = malloc(SIZE);

	open_disk(b, true);
	assert_int_equal(request(b, DISK_READ, 0, buf, SIZE), 0);
	for (uint64_t s = 0; s < SECTORS; s++) {
		bool any = false;

		for (unsigned k = mark; k <= FLUSHES; k++)
			any = any || h->touched[k][s];
		if (!any && memcmp(buf + s * 512, h->flushed[mark] + s * 512, 512))
			fail_msg("sector %llu is not as of flush %u", (unsigned long long)s, mark);
	}
	close_disk(b);
	free(buf);
}

/* Whatever of the last writes the medium has: tables are whole, and what was flushed is there. */
static void a_power_cut_loses_nothing_that_was_flushed(void **state)
{
	struct bench *b = *state;
	struct history h;
	unsigned seed = 1;

	NEED_QEMU();
	for (unsigned k = 0; k <= FLUSHES; k++) {
		h.flushed[k] = malloc(SIZE);
		h.touched[k] = malloc(SECTORS);
	}
	for (unsigned round = 0; round < 12; round++) {
		unsigned kind = round % 3;

		memset(b->model, 0, SIZE);
		if (kind < 2) {
			make_base(b, fault_images[kind], fault_clusters[round / 3 % 3]);
			run(b, "rm -f disk; mv base disk");
		} else { /* over a backing file */
			fill(b->model, SIZE, 5);
			save_model(b, "whole");
			run(b, "rm -f disk; qemu-img create -f qcow2 -o cluster_size=%s -b whole -F raw disk",
			    fault_clusters[round / 3 % 3]);
		}
		host_faults_record(b->path);
		open_disk(b, false);
		work_and_flush(b, &h, &seed);
		close_disk(b);
		for (unsigned cut = 0; cut < 12; cut++) {
			unsigned mark = host_faults_power_cut(b->path, &seed);

			assert_int_equal(check(b).corruptions, 0);
			keeps_what_was_flushed(b, &h, mark);
			if (cut == 0)
				run(b, "qemu-img check -f qcow2 disk || [ $? -eq 3 ]");
		}
		host_faults_forget();
	}
	for (unsigned k = 0; k <= FLUSHES; k++) {
		free(h.flushed[k]);
		free(h.touched[k]);
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(images_of_all_kinds_are_written),
	    TEST(backing_disks_show_through),
	    TEST(compressed_clusters_are_read_and_replaced),
	    TEST(internal_snapshots_are_kept),
	    TEST(strange_images_are_refused),
	    TEST(damaged_images_do_no_harm),
	    TEST(room_that_runs_out_costs_nothing),
	    TEST(a_host_that_fails_for_good_leaves_an_image),
	    TEST(a_power_cut_loses_nothing_that_was_flushed),
	};

	if (getenv("ONLY"))
		cmocka_set_test_filter(getenv("ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
