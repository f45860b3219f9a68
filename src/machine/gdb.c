#include "machine/gdb.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine/debug.h"
#include "machine/parts.h"

#define PACKET_MAX 0x4000 /* what qSupported says */
#define REPLY_MAX (PACKET_MAX + 64)
#define ALL_THREADS (-1)
#define INTERRUPT 3
#define ESCAPE '}'

struct gdb {
	struct machine *machine;
	const struct gdb_ops *ops;
	void *data;
	bool running, no_ack, physical;
	bool swbreak, hwbreak;  /* gdb knows these reasons */
	unsigned thread;        /* a vcpu's index: whose registers and memory are meant */
	enum gdb_signal signal; /* of the last stop */
	unsigned stopped;       /* the vcpu that it was */
	struct debug_breakpoints breaks;

	/* The packet that is coming. */
	enum { BETWEEN, INSIDE, CHECKSUM1, CHECKSUM2 } state;
	char packet[PACKET_MAX + 1];
	size_t len;
	bool too_long;
	uint8_t sum, given;

	char reply[REPLY_MAX];
	size_t reply_len;
	char *xml; /* the target's description */
};

static const char hex[] = "0123456789abcdef";

/* --- packets out --- */

static void put(struct gdb *g, const char *bytes, size_t n)
{
	n = MIN(n, sizeof(g->reply) - g->reply_len);
	memcpy(g->reply + g->reply_len, bytes, n);
	g->reply_len += n;
}

__attribute__((format(printf, 2, 3))) static void putf(struct gdb *g, const char *fmt, ...)
{
	char text[256];
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	put(g, text, MIN((size_t)n, sizeof(text) - 1));
}

static void put_hex(struct gdb *g, const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		char pair[2] = {hex[bytes[i] >> 4], hex[bytes[i] & 15]};

		put(g, pair, 2);
	}
}

static void put_error(struct gdb *g, int error)
{
	putf(g, "E%02x", (unsigned)-error & 0xff);
}

/* Sends what was put; nothing is the answer to what is not known. */
static void send_reply(struct gdb *g)
{
	char tail[4] = {'#'};
	uint8_t sum = 0;

	for (size_t i = 0; i < g->reply_len; i++)
		sum += (uint8_t)g->reply[i];
	tail[1] = hex[sum >> 4];
	tail[2] = hex[sum & 15];
	g->ops->send(g->data, "$", 1);
	g->ops->send(g->data, g->reply, g->reply_len);
	g->ops->send(g->data, tail, 3);
	g->reply_len = 0;
}

/* --- numbers in --- */

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* A hexadecimal number off the front; false: there is none. */
static bool take_number(const char **p, uint64_t *value)
{
	const char *start = *p;

	for (*value = 0; digit(**p) >= 0; ++*p)
		*value = *value << 4 | (unsigned)digit(**p);
	return *p > start && *p - start <= 16;
}

static bool take_char(const char **p, char c)
{
	if (**p != c)
		return false;
	++*p;
	return true;
}

/* Exactly `n` bytes in hexadecimal. */
static bool take_bytes(const char **p, uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++, *p += 2) {
		int high = digit((*p)[0]), low = high < 0 ? -1 : digit((*p)[1]);

		if (low < 0)
			return false;
		bytes[i] = (uint8_t)(high << 4 | low);
	}
	return true;
}

/* "-1", "0" (any) or a number from 1. */
static bool take_thread(const struct gdb *g, const char **p, int *index)
{
	uint64_t n;

	if (take_char(p, '-')) {
		*index = ALL_THREADS;
		return take_char(p, '1');
	}
	if (!take_number(p, &n) || n > g->machine->nvcpus)
		return false;
	*index = n ? (int)n - 1 : (int)g->thread;
	return true;
}

static struct vcpu *vcpu_of(const struct gdb *g, unsigned index)
{
	return g->machine->slots[index].vcpu;
}

/* --- the target's description --- */

static const char xml_types[] =
    "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/>"
    "<vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>"
    "<vector id=\"v16i8\" type=\"int8\" count=\"16\"/><vector id=\"v8i16\" type=\"int16\" "
    "count=\"8\"/>"
    "<vector id=\"v4i32\" type=\"int32\" count=\"4\"/><vector id=\"v2i64\" type=\"int64\" "
    "count=\"2\"/>"
    "<union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/><field name=\"v2_double\" "
    "type=\"v2d\"/>"
    "<field name=\"v16_int8\" type=\"v16i8\"/><field name=\"v8_int16\" type=\"v8i16\"/>"
    "<field name=\"v4_int32\" type=\"v4i32\"/><field name=\"v2_int64\" type=\"v2i64\"/>"
    "<field name=\"uint128\" type=\"uint128\"/></union>";

static const char xml_flags[] =
    "<flags id=\"i386_eflags\" size=\"4\"><field name=\"CF\" start=\"0\" end=\"0\"/>"
    "<field name=\"\" start=\"1\" end=\"1\"/><field name=\"PF\" start=\"2\" end=\"2\"/>"
    "<field name=\"AF\" start=\"4\" end=\"4\"/><field name=\"ZF\" start=\"6\" end=\"6\"/>"
    "<field name=\"SF\" start=\"7\" end=\"7\"/><field name=\"TF\" start=\"8\" end=\"8\"/>"
    "<field name=\"IF\" start=\"9\" end=\"9\"/><field name=\"DF\" start=\"10\" end=\"10\"/>"
    "<field name=\"OF\" start=\"11\" end=\"11\"/><field name=\"NT\" start=\"14\" end=\"14\"/>"
    "<field name=\"RF\" start=\"16\" end=\"16\"/><field name=\"VM\" start=\"17\" end=\"17\"/>"
    "<field name=\"AC\" start=\"18\" end=\"18\"/><field name=\"ID\" start=\"21\" "
    "end=\"21\"/></flags>";

static char *describe_target(void)
{
	const struct debug_register *r;
	const char *feature = "";
	char *xml = NULL;
	size_t size;
	FILE *f = open_memstream(&xml, &size);

	if (!f)
		return NULL;
	fputs("<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>"
	      "<architecture>i386:x86-64</architecture>",
	      f);
	for (unsigned i = 0; (r = debug_register(i)); i++) {
		if (strcmp(feature, r->feature)) {
			fprintf(f, "%s<feature name=\"%s\">", i ? "</feature>" : "", r->feature);
			if (strstr(r->feature, ".core"))
				fputs(xml_flags, f);
			if (strstr(r->feature, ".sse"))
				fputs(xml_types, f);
			feature = r->feature;
		}
		fprintf(f, "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\"/>", r->name, r->bits,
			r->type);
	}
	fputs("</feature></target>", f);
	return fclose(f) ? NULL : xml;
}

/* "OFFSET,LENGTH" of the description. */
static void send_description(struct gdb *g, const char *p)
{
	uint64_t offset, length, size = strlen(g->xml);

	if (!take_number(&p, &offset) || !take_char(&p, ',') || !take_number(&p, &length)) {
		put_error(g, -EINVAL);
		return;
	}
	offset = MIN(offset, size);
	length = MIN(MIN(length, size - offset), PACKET_MAX - 1);
	put(g, offset + length < size ? "m" : "l", 1);
	put(g, g->xml + offset, length);
}

/* --- registers and memory --- */

static void read_registers(struct gdb *g)
{
	uint8_t value[DEBUG_REGISTER_MAX];

	for (unsigned i = 0; !debug_register_read(vcpu_of(g, g->thread), i, value); i++)
		put_hex(g, value, debug_register(i)->bits / 8);
}

static void write_registers(struct gdb *g, const char *p)
{
	uint8_t value[DEBUG_REGISTER_MAX] = {0};
	const struct debug_register *r;

	/* What cannot be written stays; gdb writes all of them to change one. */
	for (unsigned i = 0; (r = debug_register(i)) && *p; i++) {
		if (!take_bytes(&p, value, r->bits / 8)) {
			put_error(g, -EINVAL);
			return;
		}
		debug_register_write(g->machine, vcpu_of(g, g->thread), i, value);
	}
	putf(g, "OK");
}

static void one_register(struct gdb *g, const char *p, bool write)
{
	uint8_t value[DEBUG_REGISTER_MAX] = {0};
	const struct debug_register *r = NULL;
	uint64_t n;
	int ret = 0;

	if (take_number(&p, &n) && n < 1000)
		r = debug_register((unsigned)n);
	if (!r || (write && (!take_char(&p, '=') || !take_bytes(&p, value, r->bits / 8)))) {
		put_error(g, -EINVAL);
		return;
	}
	if (write)
		ret = debug_register_write(g->machine, vcpu_of(g, g->thread), (unsigned)n, value);
	else
		ret = debug_register_read(vcpu_of(g, g->thread), (unsigned)n, value);
	if (ret)
		put_error(g, ret);
	else if (write)
		putf(g, "OK");
	else
		put_hex(g, value, r->bits / 8);
}

static const struct vcpu *address_space(const struct gdb *g)
{
	return g->physical ? NULL : vcpu_of(g, g->thread);
}

static void read_memory(struct gdb *g, const char *p)
{
	static uint8_t buf[PACKET_MAX / 2];
	uint64_t at, len, n;

	if (!take_number(&p, &at) || !take_char(&p, ',') || !take_number(&p, &len)) {
		put_error(g, -EINVAL);
		return;
	}
	len = MIN(len, sizeof(buf));
	n = debug_read(&g->breaks, g->machine, address_space(g), at, buf, len);
	if (len && !n)
		put_error(g, -EFAULT);
	else
		put_hex(g, buf, n);
}

/* `binary`: as it is, but for escapes, which have been taken out; `end`: of the packet. */
static void write_memory(struct gdb *g, const char *p, const char *end, bool binary)
{
	static uint8_t buf[PACKET_MAX];
	uint64_t at, len;
	bool good = take_number(&p, &at) && take_char(&p, ',') && take_number(&p, &len) &&
		    take_char(&p, ':') && len <= sizeof(buf);

	if (good && binary) {
		good = (uint64_t)(end - p) == len;
		if (good)
			memcpy(buf, p, len);
	} else if (good) {
		good = (uint64_t)(end - p) == 2 * len && take_bytes(&p, buf, len);
	}
	if (!good)
		put_error(g, -EINVAL);
	else if (debug_write(g->machine, address_space(g), at, buf, len) < len)
		put_error(g, -EFAULT);
	else
		putf(g, "OK");
}

static void change_breakpoint(struct gdb *g, const char *p, bool insert)
{
	uint64_t kind, at, len;
	int ret;

	if (!take_number(&p, &kind) || !take_char(&p, ',') || !take_number(&p, &at) ||
	    !take_char(&p, ',') || !take_number(&p, &len)) {
		put_error(g, -EINVAL);
		return;
	}
	if (kind > DEBUG_ACCESS)
		return;
	ret = insert ? debug_insert(&g->breaks, g->machine, vcpu_of(g, g->thread),
				    (enum debug_break)kind, at, len)
		     : debug_remove(&g->breaks, g->machine, (enum debug_break)kind, at, len);
	if (ret)
		put_error(g, ret);
	else
		putf(g, "OK");
}

/* --- stopping and going on --- */

static void put_stop(struct gdb *g)
{
	static const char *const watch[] = {
	    [DEBUG_WRITE] = "watch", [DEBUG_READ] = "rwatch", [DEBUG_ACCESS] = "awatch"};
	const struct vcpu_debug *d = vcpu_of(g, g->stopped)->debug;
	const struct debug_hardware *h = &g->breaks.hardware[d->hit_dr & 3];

	putf(g, "T%02xthread:%x;", g->signal, g->stopped + 1);
	if (g->signal != GDB_SIGTRAP)
		return;
	if (d->hit == DEBUG_INT3 && g->swbreak)
		putf(g, "swbreak:;");
	else if (d->hit == DEBUG_BREAK && g->hwbreak)
		putf(g, "hwbreak:;");
	else if (d->hit == DEBUG_WATCH && h->used && h->kind >= DEBUG_WRITE)
		putf(g, "%s:%llx;", watch[h->kind], (unsigned long long)h->at);
}

void gdb_stopped(struct gdb *g, enum gdb_signal signal)
{
	if (!g->running)
		return;
	g->running = false;
	g->signal = signal;
	for (unsigned i = 0; i < g->machine->nvcpus; i++)
		if (vcpu_of(g, i)->debug->hit) {
			g->stopped = i;
			g->signal = signal == GDB_SIGINT ? GDB_SIGTRAP : signal;
			break;
		}
	g->thread = g->stopped;
	put_stop(g);
	send_reply(g);
}

void gdb_exited(struct gdb *g, int status)
{
	if (!g->running)
		return;
	g->running = false;
	putf(g, "W%02x", (unsigned)status & 0xff);
	send_reply(g);
}

static void go(struct gdb *g)
{
	for (unsigned i = 0; i < g->machine->nvcpus; i++)
		vcpu_of(g, i)->debug->hit = DEBUG_NONE;
	g->running = true;
	g->ops->resume(g->data);
}

/* What vcpus shall do: by the first of the actions that is for them; none: not run. */
static bool take_actions(struct gdb *g, const char *p)
{
	bool decided[MACHINE_VCPUS_MAX] = {false}, any = false;

	for (unsigned i = 0; i < g->machine->nvcpus; i++) {
		vcpu_of(g, i)->debug->frozen = true;
		vcpu_of(g, i)->debug->step = false;
	}
	while (take_char(&p, ';')) {
		char action = *p;
		int thread = ALL_THREADS;
		uint64_t signal;

		if (!action || !strchr("cCsS", action))
			return false;
		p++;
		if ((action == 'C' || action == 'S') && !take_number(&p, &signal))
			return false;
		if (take_char(&p, ':') && !take_thread(g, &p, &thread))
			return false;
		for (unsigned i = 0; i < g->machine->nvcpus; i++) {
			struct vcpu_debug *d = vcpu_of(g, i)->debug;

			if (decided[i] || (thread != ALL_THREADS && thread != (int)i))
				continue;
			decided[i] = any = true;
			d->frozen = false;
			d->step = action == 's' || action == 'S';
		}
	}
	return any && !*p;
}

static void resume(struct gdb *g, const char *actions)
{
	if (take_actions(g, actions))
		go(g);
	else
		put_error(g, -EINVAL);
}

/* "c [ADDRESS]" and "s [ADDRESS]", for all and for the current one. */
static void resume_simply(struct gdb *g, const char *p, bool step)
{
	char actions[32];
	uint64_t at;

	if (take_number(&p, &at))
		vcpu_of(g, g->thread)->rip = at;
	snprintf(actions, sizeof(actions), step ? ";s:%x" : ";c", g->thread + 1);
	resume(g, actions);
}

/* --- queries --- */

static bool starts(const char **p, const char *word)
{
	size_t n = strlen(word);

	if (strncmp(*p, word, n))
		return false;
	*p += n;
	return true;
}

static void thread_state(struct gdb *g, const char *p)
{
	static const char *const states[] = {"running", "halted", "waits for its start"};
	int thread;
	char text[64];
	const struct vcpu *v;

	if (!take_thread(g, &p, &thread) || thread < 0) {
		put_error(g, -EINVAL);
		return;
	}
	v = vcpu_of(g, (unsigned)thread);
	snprintf(text, sizeof(text), "CPU %d [%s]", thread, states[v->run_state % 3]);
	put_hex(g, (const uint8_t *)text, strlen(text));
}

static void query(struct gdb *g, const char *p)
{
	if (starts(&p, "qSupported")) {
		g->swbreak = strstr(p, "swbreak+");
		g->hwbreak = strstr(p, "hwbreak+");
		putf(g,
		     "PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;vContSupported+;"
		     "swbreak+;hwbreak+",
		     PACKET_MAX);
	} else if (starts(&p, "qXfer:features:read:target.xml:")) {
		send_description(g, p);
	} else if (starts(&p, "qfThreadInfo")) {
		for (unsigned i = 0; i < g->machine->nvcpus; i++)
			putf(g, "%c%x", i ? ',' : 'm', i + 1);
	} else if (starts(&p, "qsThreadInfo")) {
		putf(g, "l");
	} else if (starts(&p, "qThreadExtraInfo,")) {
		thread_state(g, p);
	} else if (starts(&p, "qAttached")) {
		putf(g, "1");
	} else if (starts(&p, "qC") && !*p) {
		putf(g, "QC%x", g->thread + 1);
	} else if (starts(&p, "QStartNoAckMode")) {
		g->no_ack = true;
		putf(g, "OK");
	} else if (starts(&p, "qqemu.PhyMemMode")) {
		putf(g, "%d", g->physical);
	} else if (starts(&p, "Qqemu.PhyMemMode:")) {
		g->physical = *p == '1';
		putf(g, "OK");
	}
}

/* --- packets in --- */

static void choose_thread(struct gdb *g, const char *p)
{
	char what = *p;
	int thread;

	if ((what != 'g' && what != 'c') || (p++, !take_thread(g, &p, &thread))) {
		put_error(g, -EINVAL);
		return;
	}
	if (what == 'g' && thread != ALL_THREADS)
		g->thread = (unsigned)thread;
	putf(g, "OK");
}

static void is_thread(struct gdb *g, const char *p)
{
	int thread;

	if (take_thread(g, &p, &thread) && thread >= 0)
		putf(g, "OK");
	else
		put_error(g, -ESRCH);
}

static void end_session(struct gdb *g, bool kill)
{
	debug_remove_all(&g->breaks, g->machine);
	for (unsigned i = 0; i < g->machine->nvcpus; i++)
		vcpu_of(g, i)->debug->frozen = vcpu_of(g, i)->debug->step = false;
	putf(g, "OK");
	send_reply(g);
	g->ops->detach(g->data, kill);
}

/* Returns whether an answer is due. */
static bool perform(struct gdb *g, const char *p, const char *end)
{
	switch (*p++) {
	case '?': put_stop(g); break;
	case 'g': read_registers(g); break;
	case 'G': write_registers(g, p); break;
	case 'p': one_register(g, p, false); break;
	case 'P': one_register(g, p, true); break;
	case 'm': read_memory(g, p); break;
	case 'M': write_memory(g, p, end, false); break;
	case 'X': write_memory(g, p, end, true); break;
	case 'Z': change_breakpoint(g, p, true); break;
	case 'z': change_breakpoint(g, p, false); break;
	case 'H': choose_thread(g, p); break;
	case 'T': is_thread(g, p); break;
	case 'c': resume_simply(g, p, false); return g->reply_len;
	case 's': resume_simply(g, p, true); return g->reply_len;
	case 'v':
		if (starts(&p, "Cont?"))
			putf(g, "vCont;c;C;s;S");
		else if (starts(&p, "Cont"))
			resume(g, p); /* answered when it stops, unless it is wrong */
		else if (starts(&p, "Kill"))
			end_session(g, true);
		else
			break;
		return g->reply_len;
	case 'k': end_session(g, true); return false;
	case 'D': end_session(g, false); return false;
	case 'q':
	case 'Q': query(g, p - 1); break;
	default: break; /* an empty answer: not known */
	}
	return true;
}

static void unescape(struct gdb *g)
{
	size_t to = 0;

	for (size_t i = 0; i < g->len; i++)
		g->packet[to++] =
		    g->packet[i] == ESCAPE && i + 1 < g->len ? g->packet[++i] ^ 0x20 : g->packet[i];
	g->len = to;
	g->packet[to] = 0;
}

static void packet_ended(struct gdb *g)
{
	bool good = g->sum == g->given && !g->too_long;

	if (!g->no_ack)
		g->ops->send(g->data, good ? "+" : "-", 1);
	/* While the machine runs nothing can be asked. */
	if (!good || g->running)
		return;
	unescape(g);
	if (perform(g, g->packet, g->packet + g->len))
		send_reply(g);
	g->reply_len = 0;
}

static void receive_byte(struct gdb *g, uint8_t c)
{
	switch (g->state) {
	case BETWEEN:
		if (c == '$') {
			g->state = INSIDE;
			g->len = 0;
			g->sum = 0;
			g->too_long = false;
		} else if (c == INTERRUPT && g->running) {
			g->ops->interrupt(g->data);
		}
		return;
	case INSIDE:
		if (c == '#') {
			g->state = CHECKSUM1;
			return;
		}
		g->sum += c;
		if (g->len < PACKET_MAX)
			g->packet[g->len++] = (char)c;
		else
			g->too_long = true;
		return;
	case CHECKSUM1:
		g->given = (uint8_t)((unsigned)digit((char)c) << 4);
		g->state = CHECKSUM2;
		return;
	case CHECKSUM2:
		g->given |= (uint8_t)((unsigned)digit((char)c) & 15);
		g->state = BETWEEN;
		packet_ended(g);
	}
}

void gdb_receive(struct gdb *g, const void *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		receive_byte(g, ((const uint8_t *)bytes)[i]);
}

/* --- life --- */

struct gdb *gdb_create(struct machine *m, const struct gdb_ops *ops, void *data, struct error *err)
{
	struct gdb *g = calloc(1, sizeof(*g));

	if (!g || !(g->xml = describe_target())) {
		free(g);
		error_set(err, ENOMEM, "not enough memory for gdb's session");
		return NULL;
	}
	g->machine = m;
	g->ops = ops;
	g->data = data;
	g->signal = GDB_SIGTRAP;
	debug_attach(m);
	return g;
}

void gdb_destroy(struct gdb *g)
{
	if (!g)
		return;
	debug_remove_all(&g->breaks, g->machine);
	debug_detach(g->machine);
	free(g->xml);
	free(g);
}
