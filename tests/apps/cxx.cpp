/* SPDX-License-Identifier: Apache-2.0 */
/* cxx.cpp - C++ on remote memory: exceptions through deep frames, containers, threads, aligned new. Prints a digest. */
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace
{

struct alignas(256) record {
	uint64_t key;
	std::string text;
	std::vector<uint64_t> history;
};

struct refused : std::runtime_error {
	std::shared_ptr<std::string> evidence;
	refused(const std::string &what, std::shared_ptr<std::string> e) : std::runtime_error(what), evidence(std::move(e))
	{
	}
};

uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdu;
	return x ^ x >> 29;
}

/* Throws from the bottom of a recursion whose frames own heap memory: unwinding has to run every destructor. */
uint64_t dig(uint64_t seed, unsigned depth)
{
	auto owned = std::make_unique<std::vector<uint64_t>>(200, seed);
	if (!depth) {
		if (seed % 3 == 0)
			throw refused("seed " + std::to_string(seed), std::make_shared<std::string>(2000, 'a' + seed % 26));
		return std::accumulate(owned->begin(), owned->end(), uint64_t(0));
	}
	return dig(seed, depth - 1) + owned->back();
}

uint64_t work(unsigned number)
{
	std::map<std::string, std::unique_ptr<record>> by_name;
	std::unordered_map<uint64_t, record *> by_key;
	uint64_t digest = 0;
	for (uint64_t i = 0; i < 8000; i++) {
		uint64_t key = mix(i * 4 + number);
		auto r = std::make_unique<record>();
		if (reinterpret_cast<uintptr_t>(r.get()) % alignof(record))
			throw std::logic_error("operator new ignored the alignment");
		r->key = key;
		r->text = std::string(100 + key % 200, char('A' + key % 26));
		r->history.assign(10 + key % 30, key);
		by_key[key] = r.get();
		by_name[r->text + std::to_string(key)] = std::move(r);
	}
	for (auto it = by_name.begin(); it != by_name.end();) {
		if (it->second->key % 5 == 0) {
			by_key.erase(it->second->key);
			it = by_name.erase(it);
		} else {
			digest = mix(digest + it->second->key + it->second->text.size() + it->second->text.back());
			++it;
		}
	}
	for (uint64_t i = 0; i < 500; i++) {
		try {
			digest = mix(digest + dig(i * 4 + number, 40));
		} catch (const refused &r) {
			digest = mix(digest + r.evidence->size() + uint64_t(r.evidence->front()) + std::string(r.what()).size());
		}
	}
	if (by_key.size() != by_name.size())
		throw std::logic_error("the two maps differ");
	return digest;
}

}

int main()
{
	uint64_t digests[4] = {};
	std::vector<std::thread> threads;
	for (unsigned i = 0; i < 4; i++)
		threads.emplace_back([i, &digests] { digests[i] = work(i); });
	for (auto &t : threads)
		t.join();
	std::vector<uint64_t> numbers(1'000'000);
	for (size_t i = 0; i < numbers.size(); i++)
		numbers[i] = mix(i);
	std::sort(numbers.begin(), numbers.end());
	if (!std::is_sorted(numbers.begin(), numbers.end()))
		return 1;
	try {
		(void)::operator new(size_t(1) << 60);
		return 1;
	} catch (const std::bad_alloc &) {
	}
	for (uint64_t d : digests)
		std::printf("%016lx\n", (unsigned long)d);
	std::printf("%016lx\n", (unsigned long)std::accumulate(numbers.begin(), numbers.end(), uint64_t(0), [](uint64_t a, uint64_t n) { return mix(a + n); }));
	return 0;
}
