/* Unpacking kernels on the host.
 *
 * One function a format, all of the same shape: `in` is hostile, `out` has exactly the room the
 * image claims to need, and the function says how much it filled.  The caller compares; any
 * difference means a damaged image.  The libraries check their own checksums (gzip, bzip2, xz,
 * zstd).
 */
#include "machine/boot_unpack.h"

#include <bzlib.h>
#include <errno.h>
#include <lz4.h>
#include <lzma.h>
#include <lzo/lzo1x.h>
#include <string.h>
#include <sys/mman.h>
#include <zlib.h>
#include <zstd.h>

#define XZ_MEMORY_MAX (512 * MiB) /* dictionary a hostile header may make liblzma allocate */
#define LZ4_MAGIC 0x184c2102u     /* legacy frame */
#define LZ4_CHUNK_MAX (8 * MiB)

struct span {
	const uint8_t *p;
	uint64_t left;
};

static uint32_t load_le32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Each unpacker returns the bytes it wrote to `out`, or -1 for malformed input. */
typedef int64_t unpack_fn(const uint8_t *in, uint64_t len, uint8_t *out, uint64_t room);

static int64_t unpack_gzip(const uint8_t *in, uint64_t len, uint8_t *out, uint64_t room)
{
	z_stream z = {.next_in = (Bytef *)in,
		      .avail_in = (uInt)len,
		      .next_out = out,
		      .avail_out = (uInt)room};
	int rc;

	if (inflateInit2(&z, 15 + 16) != Z_OK)
		return -1;
	rc = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	return rc == Z_STREAM_END ? (int64_t)z.total_out : -1;
}

static int64_t unpack_bzip2(const uint8_t *in, uint64_t len, uint8_t *out, uint64_t room)
{
	unsigned int got = (unsigned int)room;

	if (BZ2_bzBuffToBuffDecompress((char *)out, &got, (char *)in, (unsigned int)len, 0, 0) !=
	    BZ_OK)
		return -1;
	return got;
}

static int64_t run_lzma(lzma_stream *s, lzma_ret rc, const uint8_t *in, uint64_t len, uint8_t *out,
			uint64_t room)
{
	if (rc != LZMA_OK)
		return -1;
	s->next_in = in;
	s->avail_in = len;
	s->next_out = out;
	s->avail_out = room;
	/* An lzma_alone stream of known size ends without a marker: full output is an end, too. */
	rc = lzma_code(s, LZMA_FINISH);
	lzma_end(s);
	if (rc != LZMA_STREAM_END && !(rc == LZMA_OK && s->avail_out == 0))
		return -1;
	return (int64_t)(room - s->avail_out);
}

static int64_t unpack_xz(const uint8_t *in, uint64_t len, uint8_t *out, uint64_t room)
{
	lzma_stream s = LZMA_STREAM_INIT;

	return run_lzma(&s, lzma_stream_decoder(&s, XZ_MEMORY_MAX, 0), in, len, out, room);
}

static int64_t unpack_lzma(const uint8_t *in, uint64_t len, uint8_t *out, uint64_t room)
{
	lzma_stream s = LZMA_STREAM_INIT;

	return run_lzma(&s, lzma_alone_decoder(&s, XZ_MEMORY_MAX), in, len, out, room);
}

static int64_t unpack_lz4(const uint8_t *in, uint64_t len, uint8_t *out, uint64_t room)
{
	uint64_t done = 0;

	for (in += 4, len -= 4; len >= 4;) {
		uint32_t chunk = load_le32(in);
		int got;

		in += 4;
		len -= 4;
		if (chunk == LZ4_MAGIC) /* concatenated frames */
			continue;
		if (chunk == 0)
			break;
		if (chunk > len)
			return -1;
		got = LZ4_decompress_safe((const char *)in, (char *)out + done, (int)chunk,
					  (int)MIN(room - done, LZ4_CHUNK_MAX));
		if (got < 0)
			return -1;
		done += (uint64_t)got;
		in += chunk;
		len -= chunk;
	}
	return (int64_t)done;
}

/* The lzop container: see lib/decompress_unlzo.c of Linux for the fields. */
static bool lzop_take(struct span *s, unsigned bytes, uint32_t *value)
{
	uint32_t v = 0;

	if (s->left < bytes)
		return false;
	for (unsigned i = 0; i < bytes; i++)
		v = v << 8 | s->p[i];
	s->p += bytes;
	s->left -= bytes;
	*value = v;
	return true;
}

static bool lzop_header(struct span *s, uint32_t *flags)
{
	uint32_t version, name_len, skip;

	s->p += 9; /* magic, checked by the caller */
	s->left -= 9;
	if (!lzop_take(s, 2, &version) || !lzop_take(s, 2, &skip))
		return false;
	if (version >= 0x940 && !lzop_take(s, 2, &skip)) /* version needed to extract */
		return false;
	if (!lzop_take(s, 1, &skip)) /* method */
		return false;
	if (version >= 0x940 && !lzop_take(s, 1, &skip)) /* level */
		return false;
	if (!lzop_take(s, 4, flags))
		return false;
	if ((*flags & 0x800) && !lzop_take(s, 4, &skip)) /* filter */
		return false;
	if (!lzop_take(s, 4, &skip) || !lzop_take(s, 4, &skip)) /* mode, mtime */
		return false;
	if (version >= 0x940 && !lzop_take(s, 4, &skip))
		return false;
	if (!lzop_take(s, 1, &name_len) || s->left < name_len)
		return false;
	s->p += name_len;
	s->left -= name_len;
	return lzop_take(s, 4, &skip); /* header checksum */
}

static int64_t unpack_lzo(const uint8_t *in, uint64_t len, uint8_t *out, uint64_t room)
{
	struct span s = {in, len};
	uint32_t flags, plain, packed, skip;
	uint64_t done = 0;

	if (lzo_init() != LZO_E_OK || !lzop_header(&s, &flags))
		return -1;
	while (lzop_take(&s, 4, &plain) && plain) {
		lzo_uint got = room - done;

		if (!lzop_take(&s, 4, &packed) || packed > plain || plain > room - done)
			return -1;
		/* Checksums: adler32 or crc32 of the plain data, then of the packed data. */
		for (unsigned bit = 0; bit < 2; bit++) {
			if ((flags & (bit ? 0x100 : 0x1)) && !lzop_take(&s, 4, &skip))
				return -1;
		}
		for (unsigned bit = 0; bit < 2; bit++) {
			if (packed < plain && (flags & (bit ? 0x200 : 0x2)) &&
			    !lzop_take(&s, 4, &skip))
				return -1;
		}
		if (packed > s.left)
			return -1;
		if (packed == plain) {
			memcpy(out + done, s.p, plain);
		} else if (lzo1x_decompress_safe(s.p, packed, out + done, &got, NULL) != LZO_E_OK ||
			   got != plain) {
			return -1;
		}
		done += plain;
		s.p += packed;
		s.left -= packed;
	}
	return (int64_t)done;
}

static int64_t unpack_zstd(const uint8_t *in, uint64_t len, uint8_t *out, uint64_t room)
{
	size_t frame = ZSTD_findFrameCompressedSize(in, len);
	size_t got;

	if (ZSTD_isError(frame))
		return -1;
	got = ZSTD_decompress(out, room, in, frame);
	return ZSTD_isError(got) ? -1 : (int64_t)got;
}

static int64_t unpack_none(const uint8_t *in, uint64_t len, uint8_t *out, uint64_t room)
{
	uint64_t n = MIN(len, room);

	memcpy(out, in, n);
	return (int64_t)n;
}

static const struct format {
	const char *name;
	uint8_t magic[9];
	uint8_t magic_len;
	unpack_fn *unpack;
} formats[] = {
    {"gzip", {0x1f, 0x8b}, 2, unpack_gzip},
    {"bzip2", {'B', 'Z', 'h'}, 3, unpack_bzip2},
    {"xz", {0xfd, '7', 'z', 'X', 'Z', 0}, 6, unpack_xz},
    {"lzma", {0x5d, 0, 0}, 3, unpack_lzma},
    {"lzo", {0x89, 'L', 'Z', 'O', 0, '\r', '\n', 0x1a, '\n'}, 9, unpack_lzo},
    {"lz4", {0x02, 0x21, 0x4c, 0x18}, 4, unpack_lz4},
    {"zstd", {0x28, 0xb5, 0x2f, 0xfd}, 4, unpack_zstd},
    {"no", {0x7f, 'E', 'L', 'F'}, 4, unpack_none},
};

static const struct format *format_of(const uint8_t *in, uint64_t len)
{
	for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
		if (len >= formats[i].magic_len &&
		    !memcmp(in, formats[i].magic, formats[i].magic_len))
			return &formats[i];
	}
	return NULL;
}

const char *boot_unpack_name(const uint8_t *in, uint64_t len)
{
	const struct format *format = format_of(in, len);

	return format ? format->name : NULL;
}

int boot_unpack(const uint8_t *in, uint64_t len, uint8_t **out, uint64_t *out_len,
		struct error *err)
{
	const struct format *format = format_of(in, len);
	uint64_t room;
	uint8_t *buf;

	if (len < 16 || len > UINT32_MAX)
		return error_set(err, EINVAL, "its payload of %llu bytes cannot be a kernel",
				 (unsigned long long)len);
	if (!format)
		return error_set(err, ENOEXEC,
				 "its payload is compressed in a way takt does not know");
	room = load_le32(in + len - 4);
	if (room < 4096 || room > BOOT_UNPACKED_MAX)
		return error_set(err, EINVAL, "its payload claims to unpack to %llu bytes",
				 (unsigned long long)room);
	buf = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buf == MAP_FAILED)
		return error_set(err, ENOMEM, "no memory to unpack it (%llu MiB)",
				 (unsigned long long)(room / MiB));
	madvise(buf, room, MADV_HUGEPAGE); /* a tenth of the page faults; a hint */
	/* gzip's own trailer is the size; the others have it appended. */
	if (format->unpack != unpack_gzip)
		len -= 4;
	if (format->unpack(in, len, buf, room) != (int64_t)room) {
		munmap(buf, room);
		return error_set(err, EINVAL, "its %s payload is damaged", format->name);
	}
	*out = buf;
	*out_len = room;
	return 0;
}

void boot_unpack_free(uint8_t *out, uint64_t out_len)
{
	if (out)
		munmap(out, out_len);
}
