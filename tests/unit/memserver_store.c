/* SPDX-License-Identifier: Apache-2.0 */
/* Frame allocation and the two stores. */
#include "../../memserver/store.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/coal-store-XXXXXX";
static char path[64];

static int open_ram(void **state)
{
	static struct ms_store store;

	*state = &store;
	return ms_store_open_ram(&store, 1000, 0);
}

static int open_file(void **state)
{
	static struct ms_store store;

	*state = &store;
	strcpy(dir + sizeof(dir) - 7, "XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/store", dir);
	return ms_store_open_file(&store, 1000, path);
}

static int close_store(void **state)
{
	ms_store_close(*state);
	rmdir(dir);
	return 0;
}

static void no_frames_without_a_promise(void **state)
{
	assert_int_equal(ms_store_alloc(*state), 0);
}

static void promise_ends_at_the_capacity(void **state)
{
	struct ms_store *store = *state;

	assert_int_equal(ms_store_promise(store, 1001), -ENOSPC);
	assert_int_equal(ms_store_promise(store, 1000), 0);
	assert_int_equal(ms_store_promise(store, 1), -ENOSPC);
	assert_int_equal(ms_store_promise(store, -1), 0);
	assert_int_equal(ms_store_promise(store, 1), 0);
}

static void frames_keep_their_bytes(void **state)
{
	struct ms_store *store = *state;
	ms_frame frames[1000];
	char page[MS_PAGE];

	assert_int_equal(ms_store_promise(store, 1000), 0);
	for (int i = 0; i < 1000; i++) {
		frames[i] = ms_store_alloc(store);
		assert_int_not_equal(frames[i], 0);
		memset(page, i % 251, sizeof(page));
		assert_int_equal(store->ops->write(store, frames[i], page), 0);
	}
	assert_int_equal(store->used, 1000);
	for (int i = 0; i < 1000; i++) {
		assert_int_equal(store->ops->read(store, frames[i], page), 0);
		assert_int_equal((unsigned char)page[0], i % 251);
		assert_int_equal((unsigned char)page[MS_PAGE - 1], i % 251);
	}
}

static void freed_frames_are_handed_out_again(void **state)
{
	struct ms_store *store = *state;
	ms_frame frames[4 * MS_CHUNK_FRAMES];
	const uint32_t n = 4 * MS_CHUNK_FRAMES; /* chunks are backed whole */

	assert_int_equal(ms_store_promise(store, 1000), 0);
	for (uint32_t i = 0; i < n; i++)
		assert_int_not_equal(frames[i] = ms_store_alloc(store), 0);
	for (int round = 0; round < 3; round++) {
		ms_store_put(store, frames, n);
		assert_int_equal(store->used, 0);
		for (uint32_t i = 0; i < n; i++)
			assert_int_not_equal(frames[i] = ms_store_alloc(store), 0);
		assert_int_equal(ms_store_alloc(store), 0);
	}
}

static void shared_frame_lives_until_its_last_reference(void **state)
{
	struct ms_store *store = *state;

	assert_int_equal(ms_store_promise(store, 10), 0);
	ms_frame frame = ms_store_alloc(store), copy = frame;
	store->refs[frame]++;
	ms_store_put(store, &copy, 1);
	assert_int_equal(store->used, 1);
	copy = frame;
	ms_store_put(store, &copy, 1);
	assert_int_equal(store->used, 0);
}

static blkcnt_t blocks(const struct ms_store *store)
{
	struct stat st;

	assert_int_equal(fstat(store->fd, &st), 0);
	return st.st_blocks;
}

static void file_room_is_taken_by_the_promise_and_given_back(void **state)
{
	struct ms_store *store = *state;

	assert_int_equal(blocks(store), 0);
	assert_int_equal(ms_store_promise(store, 1000), 0);
	assert_true(blocks(store) * 512 >= 1000 * (blkcnt_t)MS_PAGE);
	assert_int_equal(ms_store_promise(store, -1000), 0);
	while (ms_store_trim(store))
		;
	assert_int_equal(blocks(store), 0);
}

static void file_is_not_overwritten(void **state)
{
	struct ms_store other;

	(void)state;
	FILE *file = fopen(path, "w");
	assert_non_null(file);
	fclose(file);
	assert_int_equal(ms_store_open_file(&other, 1000, path), -EEXIST);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(no_frames_without_a_promise, open_ram, close_store),
		cmocka_unit_test_setup_teardown(promise_ends_at_the_capacity, open_ram, close_store),
		cmocka_unit_test_setup_teardown(frames_keep_their_bytes, open_ram, close_store),
		cmocka_unit_test_setup_teardown(freed_frames_are_handed_out_again, open_ram, close_store),
		cmocka_unit_test_setup_teardown(shared_frame_lives_until_its_last_reference, open_ram, close_store),
		cmocka_unit_test_setup_teardown(promise_ends_at_the_capacity, open_file, close_store),
		cmocka_unit_test_setup_teardown(frames_keep_their_bytes, open_file, close_store),
		cmocka_unit_test_setup_teardown(freed_frames_are_handed_out_again, open_file, close_store),
		cmocka_unit_test_setup_teardown(file_room_is_taken_by_the_promise_and_given_back, open_file, close_store),
		cmocka_unit_test_setup_teardown(file_is_not_overwritten, open_file, close_store),
	};

	return cmocka_run_group_tests_name("memserver_store", tests, NULL, NULL);
}
