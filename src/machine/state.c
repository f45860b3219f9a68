#include "machine/state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC "takt state 1\n"
#define MAGIC_SIZE (sizeof(MAGIC) - 1)
#define SECTION_OBJECT 'S'
#define SECTION_PAGE 'P'
#define SECTION_END 'E'
#define OBJECTS_MAX 4096

void state_buffer_free(struct state_buffer *buf)
{
	free(buf->data);
	memset(buf, 0, sizeof(*buf));
}

/* --- writing --- */

static int reserve(struct state_buffer *buf, size_t more)
{
	size_t capacity = buf->capacity ? buf->capacity : 64 * KiB;
	uint8_t *data;

	if (more <= buf->capacity - buf->len)
		return 0;
	while (capacity - buf->len < more)
		capacity *= 2;
	data = realloc(buf->data, capacity);
	if (!data)
		return -ENOMEM;
	buf->data = data;
	buf->capacity = capacity;
	return 0;
}

/* The caller has reserved. */
static void put(struct state_buffer *buf, const void *bytes, size_t n)
{
	memcpy(buf->data + buf->len, bytes, n);
	buf->len += n;
}

static void put_name(struct state_buffer *buf, const char *name)
{
	uint8_t len = (uint8_t)strlen(name);

	put(buf, &len, 1);
	put(buf, name, len);
}

static int save_object(struct state_buffer *buf, const struct state_object *o)
{
	const struct state_table *t = o->table;
	uint16_t nfields = (uint16_t)t->nfields;
	char tag = SECTION_OBJECT;

	if (t->saving)
		t->saving(o->object);
	if (reserve(buf, 512))
		return -ENOMEM;
	put(buf, &tag, 1);
	put_name(buf, t->name);
	put(buf, &t->version, 2);
	put(buf, &o->instance, 4);
	put(buf, &nfields, 2);
	for (size_t i = 0; i < t->nfields; i++) {
		const struct state_field *f = &t->fields[i];
		size_t bytes = (size_t)f->count * f->size;

		if (reserve(buf, bytes + 512))
			return -ENOMEM;
		put_name(buf, f->name);
		put(buf, &f->type, 1);
		put(buf, &f->count, 4);
		put(buf, (const uint8_t *)o->object + f->offset, bytes);
	}
	return 0;
}

static bool is_zero(const uint8_t *page)
{
	return !page[0] && !memcmp(page, page + 1, GUEST_PAGE_SIZE - 1);
}

static int save_ram(struct state_buffer *buf, const struct ram *ram)
{
	char tag = SECTION_PAGE;

	for (uint64_t i = 0; i < ram->size / GUEST_PAGE_SIZE; i++) {
		const uint8_t *page = ram->host + i * GUEST_PAGE_SIZE;

		if (is_zero(page))
			continue;
		if (reserve(buf, GUEST_PAGE_SIZE + 16))
			return -ENOMEM;
		put(buf, &tag, 1);
		put(buf, &i, 8);
		put(buf, page, GUEST_PAGE_SIZE);
	}
	return 0;
}

int state_save(struct state_buffer *buf, const struct state_object *objects, size_t count,
	       struct ram *ram, struct error *err)
{
	char tag = SECTION_END;
	int ret;

	buf->len = 0;
	ret = reserve(buf, MAGIC_SIZE);
	if (!ret)
		put(buf, MAGIC, MAGIC_SIZE);
	for (size_t i = 0; i < count && !ret; i++)
		ret = save_object(buf, &objects[i]);
	if (!ret && ram)
		ret = save_ram(buf, ram);
	if (!ret)
		ret = reserve(buf, 1);
	if (ret)
		return error_set(err, ENOMEM, "not enough memory to save the machine");
	put(buf, &tag, 1);
	return 0;
}

/* --- reading --- */

struct in {
	const uint8_t *p;
	size_t left;
	struct error *err;
};

static int truncated(struct in *in)
{
	error_set(in->err, EINVAL, "the saved state is truncated");
	return -EINVAL;
}

static int get(struct in *in, void *bytes, size_t n)
{
	if (n > in->left)
		return truncated(in);
	memcpy(bytes, in->p, n);
	in->p += n;
	in->left -= n;
	return 0;
}

static int get_name(struct in *in, char name[256])
{
	uint8_t len;

	if (get(in, &len, 1) || get(in, name, len))
		return -EINVAL;
	name[len] = 0;
	if (strlen(name) != len || !len)
		return error_set(in->err, EINVAL, "the saved state has a malformed name");
	return 0;
}

static unsigned type_size(uint8_t type)
{
	static const uint8_t size[] = {
	    [STATE_TYPE_U8] = 1,  [STATE_TYPE_U16] = 2,   [STATE_TYPE_U32] = 4,
	    [STATE_TYPE_U64] = 8, [STATE_TYPE_BYTES] = 1,
	};

	return type < ARRAY_SIZE(size) ? size[type] : 0;
}

static const struct state_field *find_field(const struct state_table *t, const char *name)
{
	for (size_t i = 0; i < t->nfields; i++)
		if (!strcmp(t->fields[i].name, name))
			return &t->fields[i];
	return NULL;
}

/* Reads one field; `*found` is the table's entry for it, or NULL if it has none. */
static int load_field(struct in *in, const struct state_object *o, const struct state_field **found)
{
	const struct state_field *f;
	char name[256];
	uint8_t type;
	uint32_t count;
	uint64_t bytes;

	if (get_name(in, name) || get(in, &type, 1) || get(in, &count, 4))
		return -EINVAL;
	if (!type_size(type))
		return error_set(in->err, EINVAL, "saved field %s.%s has unknown type %u",
				 o->table->name, name, type);
	bytes = (uint64_t)count * type_size(type);
	if (bytes > in->left)
		return truncated(in);
	*found = f = find_field(o->table, name);
	if (f) {
		if (f->type != type || f->count != count)
			return error_set(
			    in->err, EINVAL,
			    "saved field %s.%s has %u elements of type %u, not %u of type %u",
			    o->table->name, name, count, type, f->count, f->type);
		memcpy((uint8_t *)o->object + f->offset, in->p, bytes);
	}
	in->p += bytes;
	in->left -= bytes;
	return 0;
}

static int load_fields(struct in *in, const struct state_object *o, uint16_t version)
{
	const struct state_table *t = o->table;
	uint64_t seen[4] = {0}; /* by index in the table; tables have fewer than 256 fields */
	const struct state_field *f = NULL;
	uint16_t nfields;

	if (get(in, &nfields, 2))
		return -EINVAL;
	while (nfields--) {
		size_t i;

		if (load_field(in, o, &f))
			return -EINVAL;
		if (!f)
			continue;
		i = (size_t)(f - t->fields);
		if (seen[i / 64] >> i % 64 & 1)
			return error_set(in->err, EINVAL, "saved field %s.%s is there twice",
					 t->name, f->name);
		seen[i / 64] |= 1ULL << i % 64;
	}
	for (size_t i = 0; i < t->nfields; i++)
		if (!(seen[i / 64] >> i % 64 & 1) && t->fields[i].since <= version)
			return error_set(in->err, EINVAL, "saved field %s.%s is missing", t->name,
					 t->fields[i].name);
	return 0;
}

static int load_object(struct in *in, const struct state_object *objects, size_t count,
		       uint8_t *done)
{
	char name[256];
	uint16_t version;
	uint32_t instance;

	if (get_name(in, name) || get(in, &version, 2) || get(in, &instance, 4))
		return -EINVAL;
	for (size_t i = 0; i < count; i++) {
		if (objects[i].instance != instance || strcmp(objects[i].table->name, name))
			continue;
		if (done[i])
			return error_set(in->err, EINVAL, "saved %s %u is there twice", name,
					 instance);
		if (!version)
			return error_set(in->err, EINVAL, "saved %s has no version", name);
		done[i] = 1;
		return load_fields(in, &objects[i], version);
	}
	return error_set(
	    in->err, EINVAL,
	    "the saved state has a %s %u that this machine lacks: give it the same shape", name,
	    instance);
}

static int load_page(struct in *in, struct ram *ram)
{
	uint64_t index;

	if (get(in, &index, 8))
		return -EINVAL;
	if (!ram || index >= ram->size / GUEST_PAGE_SIZE)
		return error_set(
		    in->err, EINVAL,
		    "the saved state has a page beyond this machine's memory: give it the "
		    "same --memory");
	return get(in, ram->host + index * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
}

static int load_sections(struct in *in, const struct state_object *objects, size_t count,
			 struct ram *ram, uint8_t *done)
{
	for (;;) {
		char tag;
		int ret;

		if (get(in, &tag, 1))
			return -EINVAL;
		switch (tag) {
		case SECTION_OBJECT: ret = load_object(in, objects, count, done); break;
		case SECTION_PAGE: ret = load_page(in, ram); break;
		case SECTION_END: return 0;
		default:
			ret = error_set(in->err, EINVAL, "the saved state has an unknown section");
			break;
		}
		if (ret)
			return ret;
	}
}

int state_load(const struct state_buffer *buf, const struct state_object *objects, size_t count,
	       struct ram *ram, struct error *err)
{
	struct in in = {buf->data, buf->len, err};
	uint8_t done[OBJECTS_MAX] = {0};
	char magic[MAGIC_SIZE];

	if (count > OBJECTS_MAX)
		return error_set(err, EINVAL, "more than %d objects in a machine", OBJECTS_MAX);
	if (get(&in, magic, MAGIC_SIZE) || memcmp(magic, MAGIC, MAGIC_SIZE))
		return error_set(err, EINVAL, "this is not a saved takt machine");
	if (load_sections(&in, objects, count, ram, done))
		return -EINVAL;
	for (size_t i = 0; i < count; i++)
		if (!done[i])
			return error_set(err, EINVAL,
					 "the saved state has no %s %u: give the machine "
					 "the same shape",
					 objects[i].table->name, objects[i].instance);
	for (size_t i = 0; i < count; i++)
		if (objects[i].table->loaded) {
			int ret = objects[i].table->loaded(objects[i].object, err);

			if (ret)
				return ret;
		}
	return 0;
}
