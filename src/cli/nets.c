#include "cli/nets.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORD 128
/* Without --net: the world, as a container has it, and no more of this host than the world sees. */
#define DEFAULT_NET "user,loopback=off"

enum kind { KIND_NONE, KIND_USER, KIND_TAP };

/* What a --net was parsed into. */
struct parsed {
	enum kind kind;
	char tap[WORD];
	uint8_t mac[NET_MAC];
	struct net_slirp_config user;
	struct net_forward forwards[NET_FORWARDS_MAX];
	unsigned nforwards;
};

static int parse_port(const char *text, char **end)
{
	long port = text[0] >= '0' && text[0] <= '9' ? strtol(text, end, 10) : 0;

	return port > 0 && port < 65536 ? (int)port : 0;
}

/* "ADDRESS:" or ":"; returns what follows, or NULL. */
static const char *parse_address(const char *text, uint32_t *address)
{
	const char *colon = strchr(text, ':');
	char name[INET_ADDRSTRLEN];
	struct in_addr a;

	if (!colon || (size_t)(colon - text) >= sizeof(name))
		return NULL;
	memcpy(name, text, (size_t)(colon - text));
	name[colon - text] = 0;
	if (name[0] && inet_pton(AF_INET, name, &a) != 1)
		return NULL;
	*address = name[0] ? ntohl(a.s_addr) : 0;
	return colon + 1;
}

/* tcp:[ADDRESS]:PORT-[GUEST]:PORT */
static int parse_forward(const char *text, struct net_forward *f)
{
	char *end = NULL;

	*f = (struct net_forward){.udp = !strncmp(text, "udp:", 4)};
	if (!f->udp && strncmp(text, "tcp:", 4))
		return -EINVAL;
	text = parse_address(text + 4, &f->host_address);
	f->host_port = (uint16_t)(text ? parse_port(text, &end) : 0);
	if (!f->host_port || *end != '-')
		return -EINVAL;
	text = parse_address(end + 1, &f->guest_address);
	f->guest_port = (uint16_t)(text ? parse_port(text, &end) : 0);
	return f->guest_port && !*end ? 0 : -EINVAL;
}

static int parse_mac(const char *text, uint8_t mac[NET_MAC])
{
	unsigned b[NET_MAC];
	int n = 0;

	if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5],
		   &n) != NET_MAC ||
	    text[n])
		return -EINVAL;
	for (int i = 0; i < NET_MAC; i++)
		mac[i] = (uint8_t)b[i];
	return mac[0] & 1 ? -EINVAL : 0;
}

static int take_switch(const char *option, const char *word, const char *on, const char *off,
		       bool *value, struct error *err)
{
	if (strcmp(word, on) && strcmp(word, off))
		return error_set(err, EINVAL, "--net %.150s: '%.40s': it is %s or %s", option, word,
				 on, off);
	*value = !strcmp(word, on);
	return 0;
}

static int take_word(struct parsed *p, const char *option, const char *word, struct error *err)
{
	if (!strncmp(word, "mac=", 4)) {
		if (parse_mac(word + 4, p->mac))
			return error_set(err, EINVAL,
					 "--net %.150s: '%.40s' is no address of a card: give one "
					 "like mac=02:00:00:00:00:01",
					 option, word);
		return 0;
	}
	if (p->kind == KIND_USER && !strncmp(word, "restrict=", 9))
		return take_switch(option, word, "restrict=on", "restrict=off", &p->user.restricted,
				   err);
	if (p->kind == KIND_USER && !strncmp(word, "loopback=", 9))
		return take_switch(option, word, "loopback=off", "loopback=on",
				   &p->user.no_loopback, err);
	if (p->kind == KIND_USER && !strncmp(word, "hostfwd=", 8)) {
		if (p->nforwards == NET_FORWARDS_MAX)
			return error_set(err, EINVAL,
					 "--net: more than %d times hostfwd=", NET_FORWARDS_MAX);
		if (parse_forward(word + 8, &p->forwards[p->nforwards++]))
			return error_set(err, EINVAL,
					 "--net %.150s: '%.60s': give "
					 "hostfwd=tcp:[ADDRESS]:PORT-[GUEST]:PORT, or udp:...",
					 option, word);
		return 0;
	}
	return error_set(err, EINVAL, "--net %.150s: '%.40s' is none of %smac=ADDRESS", option,
			 word,
			 p->kind == KIND_USER ? "hostfwd=..., restrict=on, loopback=off, " : "");
}

static int take_kind(struct parsed *p, const char *option, const char *word, struct error *err)
{
	if (!strcmp(word, "user"))
		p->kind = KIND_USER;
	else if (!strcmp(word, "none"))
		p->kind = KIND_NONE;
	else if (!strncmp(word, "tap=", 4)) {
		p->kind = KIND_TAP;
		snprintf(p->tap, sizeof(p->tap), "%s", word + 4);
	} else {
		return error_set(err, EINVAL, "--net %.200s: choose user, tap=NAME or none",
				 option);
	}
	return 0;
}

static int parse(struct parsed *p, const char *option, unsigned index, struct error *err)
{
	const char *rest = option;
	char word[WORD];
	int rc;

	/* Locally administered; "takt", and which of its cards. */
	*p = (struct parsed){.mac = {0x02, 't', 'a', 'k', 't', (uint8_t)index}};
	rc = take_kind(p, option, option_part(&rest, word, sizeof(word)) ? word : "", err);
	while (!rc && rest) {
		if (!option_part(&rest, word, sizeof(word)))
			return error_set(err, EINVAL, "--net %.150s: '%.40s...' is no option",
					 option, rest);
		rc = p->kind == KIND_NONE
			 ? error_set(err, EINVAL, "--net %.200s: none has no options", option)
			 : take_word(p, option, word, err);
	}
	return rc;
}

static int open_one(struct nets *nets, const char *option, unsigned cpus, struct error *err)
{
	struct parsed p;
	struct net *n;
	int rc = parse(&p, option, nets->count, err);

	if (rc || p.kind == KIND_NONE)
		return rc;
	if (nets->count == MACHINE_NETS_MAX)
		return error_set(err, EINVAL, "--net: a machine has at most %d", MACHINE_NETS_MAX);
	p.user.forwards = p.forwards;
	p.user.nforwards = p.nforwards;
	n = p.kind == KIND_USER ? net_slirp_open(&p.user, err) : net_tap_open(p.tap, cpus, err);
	if (!n)
		return -err->code;
	memcpy(n->mac, p.mac, NET_MAC);
	nets->net[nets->count++] = n;
	return 0;
}

int nets_open(struct nets *nets, const struct option_list *options, unsigned cpus,
	      struct error *err)
{
	int rc = options->count ? 0 : open_one(nets, DEFAULT_NET, cpus, err);

	for (unsigned i = 0; i < options->count && !rc; i++)
		rc = open_one(nets, options->values[i], cpus, err);
	return rc;
}

void nets_close(struct nets *nets)
{
	while (nets->count)
		net_close(nets->net[--nets->count]);
}

int vsock_parse(struct vsock_option *v, const char *option, struct error *err)
{
	const char *rest = option;
	char word[WORD], *end;

	v->cid = 3;
	if (!option_part(&rest, v->path, sizeof(v->path)) || !v->path[0])
		return error_set(err, EINVAL,
				 "--vsock %.150s: a socket's path has 1 to %zu characters", option,
				 sizeof(v->path) - 1);
	while (rest) {
		if (!option_part(&rest, word, sizeof(word)) || strncmp(word, "cid=", 4))
			return error_set(err, EINVAL,
					 "--vsock %.200s: after the path there is only cid=N",
					 option);
		errno = 0;
		v->cid = word[4] >= '0' && word[4] <= '9' ? strtoull(word + 4, &end, 10) : 0;
		/* 0 to 2 and the last one mean others; Linux knows 32 bits. */
		if (errno || v->cid < 3 || *end || v->cid >= UINT32_MAX)
			return error_set(err, EINVAL, "--vsock: %.40s: give 3 to 4294967294", word);
	}
	return 0;
}
