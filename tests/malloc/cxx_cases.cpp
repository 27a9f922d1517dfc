// SPDX-License-Identifier: Apache-2.0
#include "cases.h"
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static const size_t too_much = size_t(1) << 33; // the memserver has less

// The compiler may leave out a new whose result is not used.
static char *volatile sink;

static void operators()
{
	int *one = new int(5);
	CHECK(is_remote(one) && *one == 5);
	delete one;
	char *many = new char[100000];
	CHECK(is_remote(many));
	delete[] many;
	struct alignas(4096) page {
		char bytes[8192];
	};
	page *aligned = new page[3];
	CHECK(reinterpret_cast<uintptr_t>(aligned) % 4096 == 0 && is_remote(aligned));
	delete[] aligned;
	long *quiet = new (std::nothrow) long(7);
	CHECK(quiet && is_remote(quiet));
	::operator delete(quiet, std::nothrow);
	::operator delete(::operator new(100), size_t(100));
	void *p = ::operator new(100, std::align_val_t(256));
	CHECK(reinterpret_cast<uintptr_t>(p) % 256 == 0);
	::operator delete(p, size_t(100), std::align_val_t(256));
}

static void throws_bad_alloc()
{
	bool thrown = false;
	try {
		sink = new char[too_much];
	} catch (const std::bad_alloc &) {
		thrown = true;
	}
	CHECK(thrown);
	sink = new (std::nothrow) char[too_much];
	CHECK(!sink);
	CHECK(!::operator new(too_much, std::align_val_t(64), std::nothrow));
}

static int handled;

static void calls_new_handler()
{
	std::set_new_handler([] {
		if (++handled == 3)
			std::set_new_handler(nullptr);
	});
	bool thrown = false;
	try {
		sink = new char[too_much];
	} catch (const std::bad_alloc &) {
		thrown = true;
	}
	CHECK(thrown && handled == 3);
}

static void nothrow_survives_handler()
{
	std::set_new_handler([] { throw std::bad_alloc(); });
	sink = new (std::nothrow) char[too_much];
	CHECK(!sink);
}

static void work(int seed)
{
	std::map<std::string, std::vector<int>> map;
	for (int i = 0; i < 2000; i++) {
		try {
			auto text = std::make_unique<std::string>(size_t(i % 300), 'x');
			map[*text + std::to_string(i)].assign(size_t(i % 50), seed);
			if (i % 3 == 0)
				throw std::runtime_error(*text + std::to_string(seed));
		} catch (const std::runtime_error &error) {
			CHECK(std::string(error.what()) == std::string(size_t(i % 300), 'x') + std::to_string(seed));
		}
	}
	for (auto &entry : map)
		for (int value : entry.second)
			CHECK(value == seed);
}

static void exceptions_in_threads()
{
	std::vector<std::thread> threads;
	for (int i = 0; i < 4; i++)
		threads.emplace_back(work, i);
	for (auto &thread : threads)
		thread.join();
}

#define CASE(name) { #name, name }
static const test_case cases[] = {
	CASE(operators), CASE(throws_bad_alloc), CASE(calls_new_handler), CASE(nothrow_survives_handler),
	CASE(exceptions_in_threads),
};

int main(int argc, char **argv)
{
	return run_case(cases, sizeof(cases) / sizeof(cases[0]), argc, argv);
}
