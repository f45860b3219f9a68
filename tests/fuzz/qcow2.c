/* qcow2 images: any bytes are an image that is opened, read, written and checked.  One whose tables
 * agree stays so, and has what was written; no other does harm.
 *
 *   input: seed of the requests │ size in 4 KiB, of what follows and zeroes │ the image */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/disk.h"
#include "backend/qcow2_check.h"
#include "fuzz.h"

#define PIECE (128 * KiB)
#define REQUESTS 16

static uint8_t out[PIECE], back[PIECE];

static void nothing(void *data)
{
	(void)data;
}



struct waited {
	struct disk_request r;
	int result;
};

static void ended(struct disk_request *r, int result)
{
	container_of(r, struct waited, r)->result = result;
}

static int request(struct disk *d, struct aio *aio, enum disk_op op, uint64_t at, void *buf, uint64_t n)
{
	struct iovec iov = {buf, n};
	struct waited w = {.r = {.op = op, .offset = at, .length = n, .iov = &iov, .niov = 1, .done = ended}};

	disk_submit(d, &w.r);
	aio_drain(aio);
	return w.result;
}

static void say(void *data, const char *sentence)
{
	(void)data;
	fuzz_check(sentence[0] && !strchr(sentence, '\n'));
}

static bool agrees(int fd, bool repair)
{
	struct qcow2_findings f;

	return !qcow2_check(fd, "image", repair, say, NULL, &f, NULL) && !f.corruptions;
}

static void use(struct disk *d, struct aio *aio, uint32_t seed, bool sound)
{
	for (unsigned i = 0; i < REQUESTS; i++) {
		uint64_t at, n;
		unsigned op;

		seed = seed * 1103515245 + 12345;
		op = seed >> 28;
		at = (seed >> 4) * 4096ULL % d->size & ~511ULL;
		if (op & 1) /* near the start, where seeds have their data */
			at %= MIN(d->size, MiB);
		at &= ~511ULL;
		n = MIN((1 + (seed >> 12 & 0xff)) * 512ULL, MIN(d->size - at, (uint64_t)PIECE));
		memset(out, (int)(i + 1), n);
		if (op < 6) {
			if (request(d, aio, DISK_WRITE, at, out, n))
				continue;
			if (!request(d, aio, DISK_READ, at, back, n) && sound)
				fuzz_check(!memcmp(out, back, n));
		} else if (op < 9) {
			request(d, aio, DISK_READ, at, back, n);
		} else if (op < 11) {
			if (!request(d, aio, DISK_ZERO, at, NULL, n) && sound &&
			    !request(d, aio, DISK_READ, at, back, n))
				fuzz_check(!back[0] && !memcmp(back, back + 1, n - 1));
		} else if (op < 13) {
			request(d, aio, DISK_DISCARD, at, NULL, n);
		} else if (op < 15) {
			request(d, aio, DISK_FLUSH, 0, NULL, 0);
		} else {
			disk_next_data(d, at);
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static struct aio *aio;
	struct fuzz_input in = {bytes, bytes + size};
	uint32_t seed = fuzz_u16(&in);
	uint64_t length = fuzz_u8(&in) * 4096ULL;
	struct disk_config config = {.format = "qcow2"};
	struct disk *d;
	char path[64];
	bool sound;
	int fd;

	if (!aio)
		aio = aio_create(NULL, nothing, NULL, NULL);
	fd = memfd_create("image", MFD_CLOEXEC);
	if (!aio || fd < 0 || write(fd, in.at, fuzz_left(&in)) != (ssize_t)fuzz_left(&in) ||
	    ftruncate(fd, (off_t)MAX(length, fuzz_left(&in))))
		fuzz_fail("no image");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	config.path = path;
	sound = agrees(fd, false);
	config.read_only = true;
	d = disk_open(&config, NULL);
	if (d) {
		disk_attach(d, aio);
		for (uint64_t at = 0; at < MIN(d->size, MiB); at += PIECE)
			request(d, aio, DISK_READ, at, back, MIN(d->size - at, (uint64_t)PIECE));
		disk_close(d);
	}
	config.read_only = false;
	d = disk_open(&config, NULL);
	if (d) {
		disk_attach(d, aio);
		use(d, aio, seed, sound);
		disk_close(d);
		if (sound)
			fuzz_check(agrees(fd, false));
	}
	agrees(fd, true);
	if (sound)
		fuzz_check(agrees(fd, false));
	close(fd);
	return 0;
}
