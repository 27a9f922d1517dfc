/* SPDX-License-Identifier: Apache-2.0 */
/*
 * heap.c - start-up: read the environment, open the pool, make the arenas; and which family an allocation belongs to.
 */
#include "heap.h"
#include <coal/size.h>
#include <limits.h>
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define LIBC_MAX 16384 /* glibc's own allocations up to this stay local */
#define REMOTE_MAX 64

struct heap heap = { .mmap_size = SIZE_MAX };
__thread struct heap_thread heap_thread;

static unsigned remote_arenas[REMOTE_MAX];

/* What the library relies on. jemalloc reads it after MALLOC_CONF, so it wins. */
const char *je_malloc_conf_2_conf_harder =
	"background_thread:false,retain:true,percpu_arena:disabled,hpa:false,prof:false";

/*
 * jemalloc's option without a name in its configuration (the Makefile makes its own definition a weak one): true puts a
 * page more into each large extent to vary where it starts, and here each page more is a round trip.
 */
extern bool je_opt_cache_oblivious;
bool je_opt_cache_oblivious = false;

/* Why glibc's memory is apart: see "Local and remote" in README.md. */
bool heap_wants_local(size_t size, const void *ret)
{
	uintptr_t pc = (uintptr_t)ret;

	if (unlikely(!__atomic_load_n(&heap.ready, __ATOMIC_ACQUIRE)) || size < heap.min_size)
		return true;
	if (size <= LIBC_MAX && (pc - heap.libc.start < heap.libc.end - heap.libc.start ||
				 pc - heap.ldso.start < heap.ldso.end - heap.ldso.start))
		return true;
	return coal_in_pager();
}

unsigned heap_choose_local(void)
{
	static unsigned next;

	heap_thread.local = 1 + __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED) % heap.nlocal;
	return heap_thread.local - 1;
}

/* The thread cache may hold local memory from before the pool was open: it goes back first. */
void heap_bind(void)
{
	static unsigned next;
	unsigned arena = remote_arenas[__atomic_fetch_add(&next, 1, __ATOMIC_RELAXED) % heap.nremote];

	heap_thread.bound = true;
	je_mallctl("thread.tcache.flush", NULL, NULL, NULL, 0);
	if (je_mallctl("thread.arena", NULL, NULL, &arena, sizeof(arena)))
		heap_thread.bound = false;
}

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
	char text[512];
	va_list args;

	int len = snprintf(text, sizeof(text), "coal: ");
	va_start(args, format);
	vsnprintf(text + len, sizeof(text) - (size_t)len - 1, format, args);
	va_end(args);
	strcat(text, "\n");
	if (write(STDERR_FILENO, text, strlen(text)) < 0)
		_exit(1);
	_exit(1);
}

static uint64_t env_size(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);
	uint64_t bytes;

	if (!text || !*text)
		return otherwise;
	if (coal_parse_size(text, &bytes))
		fail("%s=%s is no size (give a number of bytes, or one with K, M, G or T)", name, text);
	return bytes;
}

static const char *remedy(int err)
{
	switch (err) {
	case -EPERM:
		return "run `coal doctor`";
	case -EACCES:
		return "give the key file of the memserver with --key";
	case -ENOMEM:
		return "the memserver or this machine has no room";
	case -EPROTO:
		return "is it a memserver of this version?";
	case -EINVAL:
		return "check the pool's addresses and the --local size";
	default:
		return "is the memserver running, and is the address right?";
	}
}

static int find_text(struct dl_phdr_info *info, size_t size, void *ctx)
{
	const char *slash = strrchr(info->dlpi_name, '/');
	const char *name = slash ? slash + 1 : info->dlpi_name;
	struct text *text = !strcmp(name, "libc.so.6") ? &heap.libc : !strncmp(name, "ld-linux", 8) ? &heap.ldso : NULL;

	(void)size, (void)ctx;
	for (int i = 0; text && i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
		if (ph->p_type != PT_LOAD || !(ph->p_flags & PF_X))
			continue;
		text->start = info->dlpi_addr + ph->p_vaddr;
		text->end = text->start + ph->p_memsz;
	}
	return 0;
}

/* As much address space as we get: it costs nothing until it is used. */
static void map_heap(void)
{
	int err = -ENOMEM;

	for (size_t size = (size_t)4 << 40; err && size >= (size_t)1 << 30; size >>= 1)
		err = extent_init(size);
	if (err)
		fail("no addresses for the heap: %s (remedy: raise `ulimit -v`)", strerror(-err));
}

struct arena_config { /* what experimental.arenas_create_ext takes in jemalloc 5.3 */
	extent_hooks_t *hooks;
	bool metadata_use_hooks;
};

static void make_arenas(void)
{
	struct arena_config config = { &extent_hooks, false };
	size_t len = sizeof(unsigned);
	ssize_t at_once = 0;
	char name[64];
	int cpus = get_nprocs();

	if (je_mallctl("opt.narenas", &heap.nlocal, &len, NULL, 0) || !heap.nlocal)
		heap.nlocal = 1;
	heap.nremote = cpus * 2 < REMOTE_MAX ? (unsigned)cpus * 2 : REMOTE_MAX;
	for (unsigned i = 0; i < heap.nremote; i++) {
		len = sizeof(unsigned);
		int err = je_mallctl("experimental.arenas_create_ext", &remote_arenas[i], &len, &config, sizeof(config));
		if (err)
			fail("can't make the heap's arenas: %s", strerror(err));
		snprintf(name, sizeof(name), "arena.%u.dirty_decay_ms", remote_arenas[i]);
		je_mallctl(name, NULL, NULL, &at_once, sizeof(at_once));
		snprintf(name, sizeof(name), "arena.%u.muzzy_decay_ms", remote_arenas[i]);
		je_mallctl(name, NULL, NULL, &at_once, sizeof(at_once));
	}
}

static void __attribute__((constructor)) heap_init(void)
{
	struct coal_pool_opts opts = COAL_POOL_OPTS_INIT;
	const char *spec = getenv("COAL_POOL");

	if (!spec || !*spec)
		return;
	opts.budget = env_size("COAL_LOCAL", 0);
	opts.key_file = getenv("COAL_KEY");
	uint64_t fail_ms = env_size("COAL_FAIL_MS", 0);
	opts.fail_ms = fail_ms < UINT32_MAX ? (uint32_t)fail_ms : UINT32_MAX;
	heap.min_size = env_size("COAL_MIN_SIZE", 0);
	heap.mmap_size = env_size("COAL_MMAP", SIZE_MAX);
	heap.cached = heap.min_size ? je_nallocx(heap.min_size, 0) : 0;

	int err = coal_pool_open(spec, &opts, &heap.pool);
	if (err)
		fail("can't open the pool %s: %s (remedy: %s)", spec, strerror(-err), remedy(err));
	dl_iterate_phdr(find_text, NULL);
	map_heap();
	make_arenas();
	if (mmap_init())
		fail("no memory for the table of taken mappings");
	__atomic_store_n(&heap.ready, true, __ATOMIC_RELEASE);
}
