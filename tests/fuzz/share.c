/* FUSE messages to the share server: any message, with names, nodes and handles that it gave out or
 * not.  Nothing outside of the directory is read, changed or made.
 *
 *   input: message ...; a message: opcode │ node │ flags │ length of the body │ body │ room for the reply */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/fuse_wire.h"
#include "backend/hostdir.h"
#include "fuzz.h"

#define SECRET 24 /* bytes */
#define KNOWN 16
#define IN_MAX 1024
#define OUT_MAX 8192
#define CLEAN_EVERY 64

/* Of flags. */
#define WITH_HANDLE 1u /* the body begins with a handle that was given out */
#define WITH_NODE 2u   /* with a node */
#define RAW_LENGTH 4u  /* the header's length is any */
#define SPLIT 8u       /* the message comes in odd pieces */
#define RAW_NODE 16u

static char share[96], secret[96], outside[96];
static uint64_t nodes[KNOWN], handles[KNOWN];
static unsigned nnodes, nhandles;

/* Where the fuzzer, which sees what is compared, does not learn it. */
static uint8_t hidden[SECRET];

__attribute__((no_sanitize("coverage"))) static bool holds_secret(const uint8_t *p, size_t n)
{
	size_t same = 0;

	for (size_t i = 0; i + SECRET <= n; i++) {
		for (same = 0; same < SECRET && (p[i + same] ^ hidden[same]) == 0; same++)
			;
		if (same == SECRET)
			return true;
	}
	return false;
}

static void make_tree(void)
{
	char path[160];
	int fd;

	fuzz_empty(share);
	for (unsigned i = 0; i < 5; i++) {
		snprintf(path, sizeof(path), "%s/%c", share, "abcde"[i]);
		if (i < 2)
			mkdir(path, 0755);
		else if (i < 4)
			close(open(path, O_CREAT | O_RDWR, 0644));
		else if (symlink("../secret", path))
			fuzz_fail("no symbolic link");
	}
	snprintf(path, sizeof(path), "%s/f", share);
	if (symlink(outside, path))
		fuzz_fail("no symbolic link");
	fd = open(secret, O_CREAT | O_TRUNC | O_WRONLY, 0600);
	if (fd < 0 || write(fd, hidden, SECRET) != SECRET)
		fuzz_fail("no secret");
	close(fd);
}

static void make(const char *top)
{
	snprintf(share, sizeof(share), "%s/share", top);
	snprintf(secret, sizeof(secret), "%s/secret", top);
	snprintf(outside, sizeof(outside), "%s/outside", top);
	if (getrandom(hidden, SECRET, 0) != SECRET)
		fuzz_fail("no random numbers");
	mkdir(share, 0755);
	mkdir(outside, 0700);
	make_tree();
}

static void check_outside(void)
{
	static struct stat first_secret, first_outside, first_top;
	struct stat s, o, t;
	uint8_t text[SECRET + 1];
	int fd = open(secret, O_RDONLY);

	fuzz_check(fd >= 0 && read(fd, text, sizeof(text)) == SECRET && holds_secret(text, SECRET));
	close(fd);
	fuzz_check(!stat(secret, &s) && !stat(outside, &o) && !stat(fuzz_directory(), &t));
	if (!first_secret.st_ino) {
		first_secret = s;
		first_outside = o;
		first_top = t;
	}
	fuzz_check(s.st_ino == first_secret.st_ino && s.st_mode == first_secret.st_mode &&
		   s.st_uid == first_secret.st_uid && s.st_nlink == 1);
	fuzz_check(o.st_mode == first_outside.st_mode && o.st_nlink == first_outside.st_nlink &&
		   o.st_mtim.tv_sec == first_outside.st_mtim.tv_sec &&
		   o.st_mtim.tv_nsec == first_outside.st_mtim.tv_nsec);
	fuzz_check(t.st_nlink == first_top.st_nlink &&
		   t.st_mtim.tv_nsec == first_top.st_mtim.tv_nsec);
}

static void learn(uint32_t opcode, const uint8_t *reply, size_t n)
{
	uint64_t first;

	if (n < sizeof(struct fuse_out_header) + 8 || ((const struct fuse_out_header *)reply)->error)
		return;
	memcpy(&first, reply + sizeof(struct fuse_out_header), 8);
	switch (opcode) {
	case FUSE_OPEN:
	case FUSE_OPENDIR: handles[nhandles++ % KNOWN] = first; break;
	case FUSE_CREATE:
	case WIRE_TMPFILE:
		if (n >= sizeof(struct fuse_out_header) + sizeof(struct fuse_entry_out) + 8)
			memcpy(&handles[nhandles++ % KNOWN],
			       reply + sizeof(struct fuse_out_header) + sizeof(struct fuse_entry_out), 8);
		/* fall through */
	case FUSE_LOOKUP:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
	case FUSE_LINK: nodes[nnodes++ % KNOWN] = first; break;
	default: break;
	}
}

static size_t send(struct hostdir *h, uint8_t *message, size_t size, size_t split, size_t room)
{
	static uint8_t out[OUT_MAX];
	struct iovec in[2] = {{message, split}, {message + split, size - split}};
	struct iovec reply = {out, room};
	struct hostdir_request r = {.in = in, .nin = 2, .out = &reply, .nout = 1};
	size_t n = hostdir_handle(h, &r);
	struct wire_in_header head;

	fuzz_check(n <= room);
	fuzz_check(!holds_secret(out, n));
	if (n && size >= sizeof(head)) {
		memcpy(&head, message, sizeof(head));
		learn(head.opcode, out, n);
	}
	return n;
}

static void begin(struct hostdir *h)
{
	struct {
		struct wire_in_header head;
		struct wire_init_in init;
	} m = {.head = {.len = sizeof(m), .opcode = FUSE_INIT, .unique = 2},
	       .init = {.major = 7, .minor = WIRE_MINOR, .max_readahead = 65536, .flags = UINT32_MAX, .flags2 = UINT32_MAX}};

	send(h, (uint8_t *)&m, sizeof(m), sizeof(m), OUT_MAX);
}

static void message(struct hostdir *h, struct fuzz_input *in)
{
	uint8_t bytes[sizeof(struct wire_in_header) + 8 + IN_MAX];
	struct wire_in_header head = {.unique = 4, .uid = getuid(), .gid = getgid(), .pid = 1};
	unsigned flags, which;
	size_t n, at = sizeof(head);
	const uint8_t *body;

	head.opcode = fuzz_u8(in);
	which = fuzz_u8(in);
	flags = fuzz_u8(in);
	head.nodeid = flags & RAW_NODE ? fuzz_u64(in) : which % 4 ? nodes[which / 4 % KNOWN] : 1;
	if (flags & (WITH_HANDLE | WITH_NODE)) {
		uint64_t known = flags & WITH_HANDLE ? handles[which % KNOWN] : nodes[which % KNOWN];

		memcpy(bytes + at, &known, 8);
		at += 8;
	}
	body = fuzz_bytes(in, fuzz_u8(in), &n);
	memcpy(bytes + at, body, n);
	at += n;
	head.len = flags & RAW_LENGTH ? fuzz_u32(in) : (uint32_t)at;
	memcpy(bytes, &head, sizeof(head));
	send(h, bytes, at, flags & SPLIT ? which * 7 % at : at, flags & 0x80 ? fuzz_u16(in) % OUT_MAX : OUT_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static struct hostdir *servers[4];
	static unsigned inputs;
	struct fuzz_input in = {bytes, bytes + size};
	struct hostdir *h;
	struct error err;
	unsigned kind;

	if (!servers[0]) {
		make(fuzz_directory());
		for (unsigned i = 0; i < 4; i++) {
			struct hostdir_config config = {.path = share,
							.read_only = i == 3,
							.locks = i != 1,
							.acl = i == 2,
							.map_ids = i == 1,
							.cache = i == 1 ? HOSTDIR_NONE : HOSTDIR_AUTO,
							.descriptors = 64};

			servers[i] = hostdir_open(&config, &err);
			if (!servers[i])
				fuzz_fail("%s", err.text);
		}
	}
	kind = fuzz_u8(&in) % 4;
	h = servers[kind];
	nnodes = nhandles = 0;
	memset(nodes, 0, sizeof(nodes));
	memset(handles, 0, sizeof(handles));
	begin(h);
	while (fuzz_left(&in))
		message(h, &in);
	hostdir_cancel(h);
	hostdir_reset(h);
	check_outside();
	if (++inputs % CLEAN_EVERY == 0)
		make_tree();
	return 0;
}
