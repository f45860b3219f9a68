/* A machine's description: what is read, what is written, what is refused, and its schema. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/machine_file.h"

static char directory[] = "/tmp/takt-machine-file-XXXXXX";
static char path[sizeof(directory) + 16];

static int set_up(void **state)
{
	(void)state;
	if (!mkdtemp(directory))
		return -1;
	snprintf(path, sizeof(path), "%s/machine.json", directory);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(directory);
}

static struct machine_file *read_text(const char *text, size_t len, struct run_options *o,
				      struct error *err)
{
	FILE *file = fopen(path, "w");

	assert_non_null(file);
	assert_int_equal(fwrite(text, 1, len, file), len);
	assert_int_equal(fclose(file), 0);
	*o = RUN_OPTIONS_NONE;
	return machine_file_open(path, o, err);
}

static void each_member_is_an_option(void **state)
{
	static const char text[] = "{\"$schema\": \"x\", \"kernel\": \"/k\", \"disk\": [\"/a,ro\", "
				   "\"/b\"], \"memory\": \"2G\","
				   "\"code-cache\": 65536, \"cpus\": 3, \"stats\": true, "
				   "\"verbose\": false, \"debug-exit\": true,"
				   "\"command\": [\"make\", \"-j 2\"]}";
	struct run_options o;
	struct error err;
	struct machine_file *f = read_text(text, strlen(text), &o, &err);

	(void)state;
	assert_non_null(f);
	assert_string_equal(o.kernel, "/k");
	assert_int_equal(o.disks.count, 2);
	assert_string_equal(o.disks.values[0], "/a,ro");
	assert_string_equal(o.disks.values[1], "/b");
	assert_true(o.memory == 2 * GiB && o.code_cache == 65536 && o.cpus == 3);
	assert_true(o.stats && !o.verbose);
	assert_string_equal(o.debug_exit, "");
	assert_string_equal(o.command[0], "make");
	assert_string_equal(o.command[1], "-j 2");
	assert_null(o.command[2]);
	machine_file_close(f);
}

static void names_are_relative_to_the_file(void **state)
{
	static const char text[] =
	    "{\"kernel\": \"k\", \"initrd\": \"/i\", \"disk\": [\"d,ro\"], \"share\": [\"s:tag\"],"
	    "\"console\": \"none\", \"gdb\": \"1234\", \"append\": \"a/b\", \"vsock\": "
	    "\"v,cid=4\"}";
	struct run_options o;
	struct error err;
	char comma[sizeof(directory) + 32], expected[sizeof(comma) * 2];
	struct machine_file *f = read_text(text, strlen(text), &o, &err);

	(void)state;
	assert_non_null(f);
	snprintf(expected, sizeof(expected), "%s/k", directory);
	assert_string_equal(o.kernel, expected);
	assert_string_equal(o.initrd, "/i");
	snprintf(expected, sizeof(expected), "%s/d,ro", directory);
	assert_string_equal(o.disks.values[0], expected);
	snprintf(expected, sizeof(expected), "%s/s:tag", directory);
	assert_string_equal(o.shares.values[0], expected);
	assert_string_equal(o.console, "none");
	assert_string_equal(o.gdb, "1234");
	assert_string_equal(o.append, "a/b");
	machine_file_close(f);

	/* A directory's comma is none between options. */
	snprintf(comma, sizeof(comma), "%s/a,b", directory);
	assert_int_equal(mkdir(comma, 0700), 0);
	strcat(comma, "/m.json");
	assert_int_equal(link(path, comma), 0);
	o = RUN_OPTIONS_NONE;
	f = machine_file_open(comma, &o, &err);
	assert_non_null(f);
	snprintf(expected, sizeof(expected), "%s/a,,b/d,ro", directory);
	assert_string_equal(o.disks.values[0], expected);
	snprintf(expected, sizeof(expected), "%s/a,b/k", directory);
	assert_string_equal(o.kernel, expected);
	machine_file_close(f);
	unlink(comma);
	*strrchr(comma, '/') = 0;
	assert_int_equal(rmdir(comma), 0);
}

/* Every member of the table is given a value, written, read and written again. */
static void what_is_written_is_read_as_the_same(void **state)
{
	static const char *const words[] = {"make", "a \"b\"\n", "\xc3\xa4", NULL};
	static const char *const texts[] = {"/x", "y\\z", "none", "1", "./socket"};
	struct run_options given = RUN_OPTIONS_NONE, got;
	struct machine_file *f;
	struct error err;
	char *first, *second;
	size_t len, len2;
	FILE *out;

	(void)state;
	for (size_t i = 0; i < run_specs_count; i++) {
		void *member = (char *)&given + run_specs[i].offset;
		struct option_list *list = member;

		switch (run_specs[i].type) {
		case OPTION_FLAG: *(bool *)member = true; break;
		case OPTION_TEXT:
		case OPTION_CHOICE: *(const char **)member = texts[i % ARRAY_SIZE(texts)]; break;
		case OPTION_LIST:
			for (list->count = 0; list->count < ARRAY_SIZE(texts); list->count++)
				list->values[list->count] = texts[list->count];
			break;
		case OPTION_SIZE: *(uint64_t *)member = i % 2 ? 3 * MiB : 12345; break;
		case OPTION_NUMBER: *(uint64_t *)member = i; break;
		case OPTION_COMMAND: *(const char *const **)member = words; break;
		}
	}
	out = open_memstream(&first, &len);
	assert_int_equal(machine_file_write(&given, out, &err), 0);
	fclose(out);
	f = read_text(first, len, &got, &err);
	if (!f)
		fail_msg("%s", err.text);
	out = open_memstream(&second, &len2);
	assert_int_equal(machine_file_write(&got, out, &err), 0);
	fclose(out);
	assert_string_equal(first, second);
	assert_true(got.memory == given.memory && got.cpus == given.cpus && got.stats);
	assert_string_equal(got.append, given.append);
	assert_string_equal(got.command[1], words[1]);
	assert_int_equal(got.nets.count, ARRAY_SIZE(texts));
	machine_file_close(f);
	free(first);
	free(second);
}

static void mistakes_are_named_with_their_line(void **state)
{
	static const struct {
		const char *text, *sentence;
	} bad[] = {
	    {"{\n\"memory\": \"1G\",\n\"memroy\": 1\n}",
	     ":3: unknown member \"memroy\"; did you mean \"memory\"?"},
	    {"{\"zzzzzzzzzzzz\": 1}", ":1: unknown member"},
	    {"{\"print-config\": true}", ":1: unknown member"},
	    {"{\"memory\": \"1G\",\n\n\"memory\": 2}", ":3: no JSON: duplicate"},
	    {"{\"memory\":\n\"much\"}", ":1: \"memory\": not a size"},
	    {"{\"memory\": -1}", "not a size"},
	    {"{\"memory\": 1.5}", "not a size"},
	    {"{\"memory\": null}", "not a size"},
	    {"{\"memory\": 99999999999999999999}", ":1: no JSON: too big"},
	    {"{\"cpus\": \"2\"}", "not a number"},
	    {"{\"stats\": 1}", "give true or false"},
	    {"{\"kernel\": [\"x\"]}", "give a text: \"FILE\""},
	    {"{\"kernel\": \"a\\u0000b\"}", ":1: no JSON"},
	    {"{\"kernel\": \"\xff\"}", ":1: no JSON"},
	    {"{\"disk\": \"a\"}", "give a list: [\"FILE"},
	    {"{\"append\": \"],{\\\"\",\n\"disk\":\n[\"a\",\n{\"b\": [1,2]}\n]}",
	     ":4: \"disk\": give a text"},
	    {"{\"disk\":[\n\n7]}", ":3: \"disk\": give a text"},
	    {"{\"command\": []}", "give a list of words"},
	    {"{\"debug-exit\": 244}", "give true, false or a text"},
	    {"{\"\\u001b[31m\": 1}", "unknown member \"?[31m\""},
	    {"[]", ":1: not a machine's description"},
	    {"7", ":1: not a machine's description"},
	    {"", ":1: no JSON"},
	    {"{} {}", ":1: no JSON: end of file expected"},
	    {"{\"memory\": \"1G\"", ":1: no JSON"},
	    {"memory = 1G", ":1: no JSON"},
	};
	struct run_options o;
	struct error err;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_null(read_text(bad[i].text, strlen(bad[i].text), &o, &err));
		if (!strstr(err.text, bad[i].sentence) || strncmp(err.text, path, strlen(path)))
			fail_msg("%s: \"%s\" lacks \"%s\"", bad[i].text, err.text, bad[i].sentence);
	}
}

static void too_much_of_anything_is_refused(void **state)
{
	struct run_options o;
	struct error err;
	char *text = malloc(MACHINE_FILE_MAX + 1);
	size_t len;

	(void)state;
	assert_non_null(text);
	memset(text, ' ', MACHINE_FILE_MAX + 1);
	memcpy(text, "{}", 2);
	assert_null(read_text(text, MACHINE_FILE_MAX + 1, &o, &err));
	assert_int_equal(err.code, EFBIG);
	machine_file_close(read_text(text, MACHINE_FILE_MAX, &o, &err));
	memset(text, '[', MACHINE_FILE_MAX);
	assert_null(read_text(text, MACHINE_FILE_MAX, &o, &err));
	assert_non_null(strstr(err.text, "depth"));

	len = (size_t)sprintf(text, "{\"disk\": [\"0\"");
	for (int i = 0; i < OPTION_LIST_MAX; i++)
		len += (size_t)sprintf(text + len, ",\n\"%d\"", i);
	len += (size_t)sprintf(text + len, "]}");
	assert_null(read_text(text, len, &o, &err));
	assert_non_null(strstr(err.text, ":33: \"disk\": a list has at most 32"));
	free(text);
}

static void what_is_no_regular_file_is_refused_at_once(void **state)
{
	struct run_options o = RUN_OPTIONS_NONE;
	struct error err;

	(void)state;
	unlink(path);
	assert_null(machine_file_open(path, &o, &err));
	assert_int_equal(err.code, ENOENT);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_null(machine_file_open(path, &o, &err)); /* nobody will ever write to it */
	assert_non_null(strstr(err.text, "regular file"));
	unlink(path);
	assert_null(machine_file_open(directory, &o, &err));
	assert_non_null(strstr(err.text, "regular file"));
	assert_false(machine_file_named(directory));
	assert_false(machine_file_named("/nonexistent"));
	assert_true(machine_file_named("/nonexistent.json"));
}

/* Whatever is in a file, it is read or one sentence. */
static void damaged_files_do_no_harm(void **state)
{
	static const char good[] = "{\"$schema\": \"x\", \"kernel\": \"k\", \"disk\": [\"a,ro\", "
				   "\"/b\"], \"memory\": \"2G\",\n"
				   "\"cpus\": 3, \"stats\": true, \"debug-exit\": false, "
				   "\"vsock\": \"v\", \"command\": [\"a\", \"b\"]}";
	static const char bytes[] = "{}[]\",:\\0-1e.tfnu \n";
	unsigned taken = 0, refused = 0;

	(void)state;
	srandom(3);
	for (unsigned i = 0; i < 4000; i++) {
		char text[sizeof(good)];
		struct run_options o;
		struct error err = {0};
		struct machine_file *f;
		size_t len = sizeof(good) - 1;

		memcpy(text, good, sizeof(good));
		for (long k = random() % 4; k > 0; k--)
			text[(size_t)random() % len] =
			    i % 2 ? (char)random() : bytes[(size_t)random() % (sizeof(bytes) - 1)];
		if (i % 16 == 0)
			len = (size_t)random() % len;
		f = read_text(text, len, &o, &err);
		taken += f != NULL;
		refused += !f && err.text[0];
		for (const char *c = err.text; *c; c++)
			assert_true((unsigned char)*c >= ' ' && *c != 0x7f);
		machine_file_close(f);
	}
	assert_int_equal(taken + refused, 4000);
	assert_true(taken > 100 && refused > 1000);
}

/* --- the schema, as `make install` installs it --- */

static const char *type_name(const json_t *property)
{
	const char *type = json_string_value(json_object_get(property, "type"));

	return type                                               ? type
	       : json_is_array(json_object_get(property, "type")) ? "several"
								  : "choice";
}

static void the_schema_has_the_members_of_the_table(void **state)
{
	static const char *const types[] = {
	    [OPTION_FLAG] = "boolean",  [OPTION_TEXT] = "string",    [OPTION_LIST] = "array",
	    [OPTION_SIZE] = "choice",   [OPTION_NUMBER] = "integer", [OPTION_CHOICE] = "several",
	    [OPTION_COMMAND] = "array",
	};
	json_error_t why;
	json_t *schema = json_load_file("docs/machine.schema.json", JSON_REJECT_DUPLICATES, &why);
	json_t *properties = json_object_get(schema, "properties");
	size_t members = 1; /* $schema */

	(void)state;
	assert_non_null(schema);
	assert_true(json_is_false(json_object_get(schema, "additionalProperties")));
	assert_non_null(json_object_get(properties, "$schema"));
	for (size_t i = 0; i < run_specs_count; i++) {
		const json_t *property = json_object_get(properties, run_specs[i].name);

		if (run_specs[i].not_in_file) {
			assert_null(property);
			continue;
		}
		if (!property)
			fail_msg("the schema lacks %s", run_specs[i].name);
		if (strcmp(type_name(property), types[run_specs[i].type]))
			fail_msg("%s is of type %s in the schema", run_specs[i].name,
				 type_name(property));
		if (!json_object_get(property, "description"))
			fail_msg("%s is not described", run_specs[i].name);
		members++;
	}
	assert_int_equal(json_object_size(properties), members);
	json_decref(schema);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(each_member_is_an_option),
	    cmocka_unit_test(names_are_relative_to_the_file),
	    cmocka_unit_test(what_is_written_is_read_as_the_same),
	    cmocka_unit_test(mistakes_are_named_with_their_line),
	    cmocka_unit_test(too_much_of_anything_is_refused),
	    cmocka_unit_test(what_is_no_regular_file_is_refused_at_once),
	    cmocka_unit_test(damaged_files_do_no_harm),
	    cmocka_unit_test(the_schema_has_the_members_of_the_table),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
