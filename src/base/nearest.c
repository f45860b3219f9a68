#include "base/nearest.h"

#include <string.h>

#include "base/types.h"

#define WORD_MAX 31

unsigned nearest_distance(const char *a, const char *b)
{
	size_t la = strlen(a), lb = strlen(b);
	unsigned row[WORD_MAX + 1];

	if (la > WORD_MAX || lb > WORD_MAX)
		return WORD_MAX + 1;
	for (unsigned j = 0; j <= lb; j++)
		row[j] = j;
	for (unsigned i = 1; i <= la; i++) {
		unsigned diagonal = row[0];

		row[0] = i;
		for (unsigned j = 1; j <= lb; j++) {
			unsigned above = row[j];
			unsigned change = diagonal + (a[i - 1] != b[j - 1]);

			row[j] = MIN(change, MIN(above, row[j - 1]) + 1);
			diagonal = above;
		}
	}
	return row[lb];
}

const char *nearest_name(const char *word, const char *(*name)(size_t i))
{
	const char *best = NULL, *candidate;
	unsigned best_distance = (unsigned)strlen(word) / 3 + 2;

	for (size_t i = 0; (candidate = name(i)); i++) {
		unsigned distance = nearest_distance(word, candidate);

		/* A prefix is a likely abbreviation. */
		if (strlen(word) >= 3 && !strncmp(word, candidate, strlen(word)))
			distance = 1;
		if (distance < best_distance) {
			best = candidate;
			best_distance = distance;
		}
	}
	return best;
}
