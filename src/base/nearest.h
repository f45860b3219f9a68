/* "Did you mean": the known name nearest to a mistyped one. */
#ifndef TAKT_BASE_NEAREST_H
#define TAKT_BASE_NEAREST_H

#include <stddef.h>

/* Edit distance (Levenshtein) of two short words; words above 31 characters are as far as can be.
 */
unsigned nearest_distance(const char *a, const char *b);

/* The name nearest to `word`, or NULL if none is near enough to be meant. `name(i)` is NULL at the
 * end. */
const char *nearest_name(const char *word, const char *(*name)(size_t i));

#endif
