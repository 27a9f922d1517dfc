/* SPDX-License-Identifier: Apache-2.0 */
/* size_test.c - sizes are read the way people write them, and nothing else passes for one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <coal/size.h>

static void sizes_are_read(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} cases[] = {
		{ "0", 0 },
		{ "4096", 4096 },
		{ "64K", 65536 },
		{ "64k", 65536 },
		{ "512M", 512ull << 20 },
		{ "512MB", 512ull << 20 },
		{ "512MiB", 512ull << 20 },
		{ "1.5G", 3ull << 29 },
		{ "2T", 2ull << 40 },
		{ "0.5K", 512 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t bytes = ~0ull;
		assert_int_equal(coal_parse_size(cases[i].text, &bytes), 0);
		assert_int_equal(bytes, cases[i].bytes);
	}
}

static void what_is_no_size_is_refused_and_changes_nothing(void **state)
{
	static const char *const cases[] = { "",      " 1K",  "-1",   "+1",  "K",   "1X",     "1KK", "1K ",  "1 K",
					     "12MBx", "0x10", "0X10", "nan", "inf", "1e9999", ".5G", "512B", "1Ki" };

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t bytes = 77;
		if (coal_parse_size(cases[i], &bytes) != -EINVAL)
			fail_msg("'%s' passed for a size", cases[i]);
		assert_int_equal(bytes, 77);
	}
	assert_int_equal(coal_parse_size(NULL, &(uint64_t){ 0 }), -EINVAL);
}

static void sizes_past_the_address_space_are_out_of_range(void **state)
{
	uint64_t bytes = 77;

	(void)state;
	assert_int_equal(coal_parse_size("8388608T", &bytes), -ERANGE);
	assert_int_equal(coal_parse_size("9223372036854775808", &bytes), -ERANGE);
	assert_int_equal(coal_parse_size("99999999999999999999999G", &bytes), -ERANGE);
	assert_int_equal(bytes, 77);
	assert_int_equal(coal_parse_size("8388607T", &bytes), 0);
}

static void sizes_are_written_short(void **state)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} cases[] = {
		{ 0, "0" },
		{ 1023, "1023" },
		{ 1024, "1.0K" },
		{ 1536, "1.5K" },
		{ 10 << 10, "10K" },
		{ 1023 << 10, "1023K" },
		{ (1024 << 10) - 1, "1.0M" },
		{ 3ull << 29, "1.5G" },
		{ 1ull << 40, "1.0T" },
		{ UINT64_MAX, "16E" },
	};
	char buf[16];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_string_equal(coal_format_size(cases[i].bytes, buf), cases[i].text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_are_read),
		cmocka_unit_test(what_is_no_size_is_refused_and_changes_nothing),
		cmocka_unit_test(sizes_past_the_address_space_are_out_of_range),
		cmocka_unit_test(sizes_are_written_short),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
