/* User rows: small programs that compute. */
#include "rows.h"

#include <stdlib.h>
#include <string.h>

static uint64_t sieve(void)
{
	enum { N = 4000000 };
	static char composite[N];

	for (int round = 0; round < 5; round++) {
		memset(composite, 0, N);
		for (int i = 2; i * i < N; i++)
			for (int j = i * i; !composite[i] && j < N; j += i)
				composite[j] = 1;
	}
	return hash(HASH_START, composite, N);
}

static int compare(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return (x > y) - (x < y);
}

static uint64_t sort(void)
{
	enum { N = 600000 };
	static int v[N];
	uint32_t x = 1;

	for (int i = 0; i < N; i++)
		v[i] = (int)(x = x * 1664525 + 1013904223);
	qsort(v, N, sizeof(v[0]), compare);
	return hash(HASH_START, v, sizeof(v));
}

static uint64_t matrix(void)
{
	enum { N = 200 };
	static double a[N][N], b[N][N], c[N][N];

	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++) {
			a[i][j] = i + j;
			b[i][j] = i - j;
		}
	for (int round = 0; round < 30; round++)
		for (int i = 0; i < N; i++)
			for (int j = 0; j < N; j++) {
				double sum = c[i][j] / 2;

				for (int k = 0; k < N; k++)
					sum += a[i][k] * b[k][j];
				c[i][j] = sum;
			}
	return hash(HASH_START, c, sizeof(c));
}

static uint64_t nbody(void)
{
	double x[5] = {0, 1, 2, 3, 5}, v[5] = {0, 0.1, -0.1, 0.2, 0}, m[5] = {5, 1, 1, 0.5, 0.1};

	for (int step = 0; step < 1500000; step++) {
		for (int i = 0; i < 5; i++)
			for (int j = 0; j < 5; j++) {
				double d = x[j] - x[i], r = d * d + 0.5;

				v[i] += i == j ? 0 : m[j] * d / (r * __builtin_sqrt(r)) * 1e-4;
			}
		for (int i = 0; i < 5; i++)
			x[i] += v[i] * 1e-4;
	}
	return hash(HASH_START, x, sizeof(x));
}

static uint64_t chase(void)
{
	enum { N = 1 << 22 };
	uint32_t *next = malloc(N * sizeof(*next)), at = 0;

	for (uint32_t i = 0; i < N; i++)
		next[i] = (i * 1103515245u + 12345) & (N - 1);
	for (int i = 0; i < 3000000; i++)
		at = next[at];
	free(next);
	return at;
}

static uint64_t hashtable(void)
{
	enum { N = 1 << 20 };
	uint32_t *t = calloc(N, sizeof(*t));
	uint64_t h;

	for (uint32_t i = 0; i < 16000000; i++)
		t[i * 2654435761u >> 12] += i;
	h = hash(HASH_START, t, N * sizeof(*t));
	free(t);
	return h;
}

static uint64_t bytecode(void)
{
	uint32_t pc = 0, acc = 1;

	for (uint32_t i = 0; i < 60000000; i++) {
		switch (pc & 7) {
		case 0: acc += 3; break;
		case 1: acc *= 5; break;
		case 2: acc ^= pc; break;
		case 3: acc -= 7; break;
		case 4: acc = acc << 1 | acc >> 31; break;
		case 5: acc += pc; break;
		case 6: acc |= 1; break;
		default: acc ^= acc >> 3;
		}
		pc = acc + i;
	}
	return acc;
}

static uint64_t copies(void)
{
	enum { N = 1 << 20 };
	char *a = malloc(N), *b = malloc(N);
	uint64_t h = 0;

	memset(a, 'a', N);
	for (int i = 0; i < 15000; i++) {
		memcpy(b + i % 64, a, 100000 + (size_t)(i % 1500));
		b[100000 + i % 64] = 0;
		h += strlen(b);
	}
	free(a);
	free(b);
	return h;
}

static uint64_t fib(unsigned n)
{
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static uint64_t calls(void)
{
	return fib(38);
}

static uint32_t rotate(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

static void sha256_block(uint32_t state[8], const uint32_t k[64], const unsigned char *p)
{
	uint32_t w[64], s[8];

	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 |
		       (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
		       w[i - 7] + (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(s, state, sizeof(s));
	for (int i = 0; i < 64; i++) {
		uint32_t a = s[0], e = s[4];
		uint32_t t = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
			     ((e & s[5]) ^ (~e & s[6])) + k[i] + w[i];
		uint32_t u = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) +
			     ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));

		memmove(s + 1, s, 7 * sizeof(s[0]));
		s[4] += t;
		s[0] = t + u;
	}
	for (int i = 0; i < 8; i++)
		state[i] += s[i];
}

/* SHA-256's compression (FIPS 180-4) of a MiB, again and again.  Its constants are computed: the first 32
 * bits of the fractions of the cube roots of the first 64 primes. */
static uint64_t sha256(void)
{
	enum { N = 1 << 20 };
	static unsigned char data[N];
	uint32_t k[64], state[8] = {1, 2, 3, 4, 5, 6, 7, 8};

	for (unsigned prime = 2, found = 0; found < 64; prime++) {
		unsigned d = 2;
		double root = 1;

		while (prime % d)
			d++;
		if (d != prime)
			continue;
		for (int i = 0; i < 60; i++)
			root -= (root * root * root - prime) / (3 * root * root);
		k[found++] = (uint32_t)((root - (unsigned)root) * 4294967296.0);
	}
	for (unsigned i = 0; i < N; i++)
		data[i] = (unsigned char)(i * 2654435761u >> 24);
	for (int round = 0; round < 10; round++)
		for (int i = 0; i < N; i += 64)
			sha256_block(state, k, data + i);
	return hash(HASH_START, state, sizeof(state));
}

static const struct {
	const char *name;
	uint64_t (*fn)(void);
} rows[] = {
    {"sieve", sieve},          {"qsort", sort},  {"sha256", sha256},       {"matrix", matrix},
    {"nbody", nbody},          {"chase", chase}, {"hashtable", hashtable}, {"bytecode", bytecode},
    {"memcpy-strlen", copies}, {"fib", calls},
};

void user_rows(void)
{
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		double start = now();
		uint64_t result;

		if (!wanted(rows[i].name))
			continue;
		result = rows[i].fn();
		report(rows[i].name, now() - start, result, 0);
	}
}
