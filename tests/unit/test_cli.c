/* Command lines: sizes, options, and the help a mistake gets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "cli/options.h"

struct options {
	bool flag;
	const char *text;
	uint64_t size, number;
	struct option_list list;
	const char *choice;
};

static const struct option_spec specs[] = {
    {"flag", NULL, "a flag", OPTION_FLAG, .offset = offsetof(struct options, flag)},
    {"text", "TEXT", "a text", OPTION_TEXT, .offset = offsetof(struct options, text)},
    {"memory", "SIZE", "a size", OPTION_SIZE, .offset = offsetof(struct options, size)},
    {"number", "N", "a number", OPTION_NUMBER, .offset = offsetof(struct options, number)},
    {"list", "TEXT", "texts", OPTION_LIST, .offset = offsetof(struct options, list)},
    {"choice", "[=TEXT]", "a text or none", OPTION_CHOICE,
     .offset = offsetof(struct options, choice)},
};

static int parse(struct options *o, struct error *err, const char *a, const char *b, const char *c)
{
	const char *argv[] = {"command", a, b, c, NULL};
	int argc = 1;

	memset(o, 0, sizeof(*o));
	while (argv[argc])
		argc++;
	return options_parse(specs, ARRAY_SIZE(specs), argc, (char **)argv, o, err);
}

static void a_choice_takes_a_value_with_an_equals_sign_only(void **state)
{
	struct options o;
	struct error err;

	(void)state;
	assert_int_equal(parse(&o, &err, "--flag", NULL, NULL), 0);
	assert_null(o.choice);
	assert_int_equal(parse(&o, &err, "--choice", "--text", "after"), 0);
	assert_string_equal(o.choice, "");
	assert_string_equal(o.text, "after");
	assert_int_equal(parse(&o, &err, "--choice=this", NULL, NULL), 0);
	assert_string_equal(o.choice, "this");
	assert_int_equal(parse(&o, &err, "--choice", "this", NULL), -EINVAL);
}

static void sizes_have_units(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {{"0", 0},
		    {"4096", 4096},
		    {"0x1000", 4096},
		    {"512M", 512 * MiB},
		    {"512m", 512 * MiB},
		    {"2G", 2 * GiB},
		    {"2GiB", 2 * GiB},
		    {"64KB", 64 * KiB},
		    {"1T", 1024 * GiB}};
	static const char *const bad[] = {
	    "",   "M",    "-1", "1X", "1MM", "1.5G", " 1", "99999999999T", "18446744073709551616",
	    "0x", "1Mi B"};
	uint64_t bytes;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_int_equal(parse_size(good[i].text, &bytes), 0);
		assert_int_equal(bytes, good[i].bytes);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		if (!parse_size(bad[i], &bytes))
			fail_msg("'%s' was taken for %llu", bad[i], (unsigned long long)bytes);
	}
}

static void both_spellings_set_values(void **state)
{
	struct options o;
	struct error err;

	(void)state;
	assert_int_equal(parse(&o, &err, "--memory", "1G", "--flag"), 0);
	assert_true(o.flag && o.size == GiB);
	assert_int_equal(parse(&o, &err, "--text=a=b", "--number=7", NULL), 0);
	assert_string_equal(o.text, "a=b");
	assert_int_equal(o.number, 7);
	assert_int_equal(parse(&o, &err, "--text", "--flag", NULL),
			 0); /* a value may look like an option */
	assert_string_equal(o.text, "--flag");
	assert_int_equal(parse(&o, &err, "--flag", "--help", "--bogus"), 1);
}

static void mistakes_get_a_sentence_that_helps(void **state)
{
	static const struct {
		const char *a, *b, *sentence;
	} bad[] = {
	    {"--memroy", "1G", "did you mean --memory?"},
	    {"--mem", "1G", "did you mean --memory?"},
	    {"--memory", NULL, "--memory SIZE"},
	    {"--memory", "big", "like 512M"},
	    {"--number", "3x", "not a number"},
	    {"--flag=1", NULL, "takes no value, or =on"},
	    {"file", NULL, "options begin with --"},
	    {"--", NULL, "unexpected argument"},
	    {"--zzzzzzzzzzzzzzz", NULL, "--help lists"},
	    {"--=", NULL, "unknown option"},
	};
	struct options o;
	struct error err;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(parse(&o, &err, bad[i].a, bad[i].b, NULL), -EINVAL);
		if (!strstr(err.text, bad[i].sentence))
			fail_msg("%s: \"%s\" lacks \"%s\"", bad[i].a, err.text, bad[i].sentence);
	}
}

static void a_list_keeps_all_in_order(void **state)
{
	struct options o;
	struct error err;
	char *argv[2 + OPTION_LIST_MAX] = {"command"};

	(void)state;
	assert_int_equal(parse(&o, &err, "--list=a", "--list", "b"), 0);
	assert_int_equal(o.list.count, 2);
	assert_string_equal(o.list.values[0], "a");
	assert_string_equal(o.list.values[1], "b");
	for (int i = 1; i < 2 + OPTION_LIST_MAX; i++)
		argv[i] = "--list=x";
	memset(&o, 0, sizeof(o));
	assert_int_equal(
	    options_parse(specs, ARRAY_SIZE(specs), 1 + OPTION_LIST_MAX, argv, &o, &err), 0);
	memset(&o, 0, sizeof(o));
	assert_int_equal(
	    options_parse(specs, ARRAY_SIZE(specs), 2 + OPTION_LIST_MAX, argv, &o, &err), -EINVAL);
	assert_non_null(strstr(err.text, "--list is given more than"));
}

/* What a file has set, the command line changes or takes back. */
static void the_command_line_goes_over_a_file(void **state)
{
	struct options o = {.flag = true,
			    .text = "file",
			    .size = 1,
			    .list = {.values = {"f1", "f2"}, .count = 2},
			    .choice = ""};
	struct option_list words = {0};
	struct error err;
	const char *none[] = {"command", "--flag=off", "--text=", "--list",
			      "",        "--choice=",  "word"};
	const char *other[] = {"command",   "--flag=on", "--text=c",
			       "--list=c1", "--list=c2", "--choice=c"};

	(void)state;
	assert_int_equal(options_parse_over(specs, ARRAY_SIZE(specs), ARRAY_SIZE(none),
					    (char **)none, &o, &words, &err),
			 0);
	assert_false(o.flag);
	assert_true(!o.text && !o.list.count && !o.choice && o.size == 1);
	assert_string_equal(words.values[0], "word");
	o.list = (struct option_list){.values = {"f1"}, .count = 1};
	assert_int_equal(options_parse_over(specs, ARRAY_SIZE(specs), ARRAY_SIZE(other),
					    (char **)other, &o, &words, &err),
			 0);
	assert_true(o.flag && o.list.count == 2);
	assert_string_equal(o.list.values[0], "c1");
	assert_string_equal(o.text, "c");
	assert_string_equal(o.choice, "c");
}

static void parts_end_at_commas(void **state)
{
	const char *value = "a,,b,ro,,", *end = "x,";
	char part[8];

	(void)state;
	assert_true(option_part(&value, part, sizeof(part)));
	assert_string_equal(part, "a,b");
	assert_true(option_part(&value, part, sizeof(part)));
	assert_string_equal(part, "ro,");
	assert_false(option_part(&value, part, sizeof(part)));
	assert_true(option_part(&end, part, sizeof(part)));
	assert_true(option_part(&end, part, sizeof(part))); /* an empty one, which nobody knows */
	assert_string_equal(part, "");
	value = "too long for it";
	assert_false(option_part(&value, part, sizeof(part)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(sizes_have_units),
	    cmocka_unit_test(a_choice_takes_a_value_with_an_equals_sign_only),
	    cmocka_unit_test(both_spellings_set_values),
	    cmocka_unit_test(a_list_keeps_all_in_order),
	    cmocka_unit_test(the_command_line_goes_over_a_file),
	    cmocka_unit_test(parts_end_at_commas),
	    cmocka_unit_test(mistakes_get_a_sentence_that_helps),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
