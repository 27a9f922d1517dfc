/* SPDX-License-Identifier: Apache-2.0 */
/* run.c - `coal run`: everything that can be wrong is found before anything is started. */
#include "cmd.h"
#include "statfile.h"
#include <argp.h>
#include <coal/auth.h>
#include <coal/coal.h>
#include <coal/size.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define LEAST_LOCAL (40u << 10)
#define DEFAULT_LOCAL (256ull << 20)

struct run {
	const char *pool, *key, *stats;
	uint64_t local, min_size, mmap;
	uint32_t fail_ms; /* 0: libcoal's default */
	char **argv;
	int stats_fd;
	char path[PATH_MAX], preload[PATH_MAX];
};

enum { OPT_POOL = 256, OPT_LOCAL, OPT_MIN_SIZE, OPT_MMAP, OPT_KEY, OPT_FAIL_AFTER, OPT_STATS };

static const struct argp_option options[] = {
	{ "pool", OPT_POOL, "SPEC", 0,
	  "Memservers: host:port, unix:PATH, or several with commas between; "
	  "without it a private memserver on this machine",
	  0 },
	{ "local", OPT_LOCAL, "SIZE", 0, "How much of the memory may be resident here (256M)", 0 },
	{ "min-size", OPT_MIN_SIZE, "SIZE", 0, "Leave smaller allocations in ordinary memory (0: none)", 0 },
	{ "mmap", OPT_MMAP, "SIZE", 0, "Take private anonymous mmaps of at least SIZE too", 0 },
	{ "key", OPT_KEY, "FILE", 0, "The key shared with the memservers", 0 },
	{ "fail-after", OPT_FAIL_AFTER, "SECONDS", 0, "How long a fault waits for a lost memserver before SIGBUS (5)", 0 },
	{ "stats", OPT_STATS, "FILE", 0, "At the end write statistics to FILE as JSON; - for a table on standard error",
	  0 },
	{ 0 },
};

static uint64_t size_option(struct argp_state *state, const char *name, const char *arg, uint64_t least)
{
	uint64_t bytes = 0;
	char text[16];
	int err = coal_parse_size(arg, &bytes);

	if (err)
		argp_failure(state, EXIT_USAGE, 0, "%s: '%s' is %s; write a number with K, M, G or T, such as 512M", name,
			     arg, err == -ERANGE ? "too large" : "not a size");
	if (bytes < least)
		argp_failure(state, EXIT_USAGE, 0, "%s: '%s' is too small; the least is %s", name, arg,
			     coal_format_size(least, text));
	return bytes;
}

static uint32_t seconds_option(struct argp_state *state, const char *arg)
{
	char *end;
	double seconds = strtod(arg, &end);

	if (end == arg || *end || !(seconds >= 0.001 && seconds <= 86400))
		argp_failure(state, EXIT_USAGE, 0, "--fail-after: '%s' is not a time; write seconds from 0.001 to 86400",
			     arg);
	return (uint32_t)(seconds * 1000);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct run *run = state->input;

	switch (key) {
	case OPT_POOL:
		run->pool = arg;
		return 0;
	case OPT_LOCAL:
		run->local = size_option(state, "--local", arg, LEAST_LOCAL);
		return 0;
	case OPT_MIN_SIZE:
		run->min_size = size_option(state, "--min-size", arg, 0);
		return 0;
	case OPT_MMAP:
		run->mmap = size_option(state, "--mmap", arg, COAL_PAGE_SIZE);
		return 0;
	case OPT_KEY:
		run->key = arg;
		return 0;
	case OPT_FAIL_AFTER:
		run->fail_ms = seconds_option(state, arg);
		return 0;
	case OPT_STATS:
		run->stats = arg;
		return 0;
	case ARGP_KEY_ARG:
		run->argv = state->argv + state->next - 1;
		state->next = state->argc;
		return 0;
	case ARGP_KEY_NO_ARGS:
		argp_failure(state, EXIT_USAGE, 0,
			     "which program? Name it after the options: coal run --local 512M -- CMD ARGS...");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp argp = {
	.options = options,
	.parser = parse,
	.args_doc = "-- CMD [ARGUMENT...]",
	.doc = "Run CMD with its heap on memservers and a bounded part of it resident.\v"
	       "Sizes are numbers with K, M, G or T (powers of 1024). The exit status is that of CMD; 2 if the command "
	       "line is wrong, 1 if the memservers or the rights of this user do not allow it, 126 or 127 if CMD can't be "
	       "run. "
	       "`coal doctor' says what this machine lets coal do.",
};

static int check_key(const char *path)
{
	static struct coal_key key;
	int err = coal_key_load(path, &key);

	explicit_bzero(&key, sizeof(key));
	if (!err)
		return 0;
	if (err == -EPERM)
		complain("the key '%s' may be read by others than its owner; run: chmod 600 '%s'", path, path);
	else if (err == -EINVAL)
		complain("the key '%s' must have from %d to %d bytes; make one with: head -c 32 /dev/urandom > '%s'", path,
			 COAL_KEY_MIN, COAL_KEY_MAX, path);
	else
		complain("the key '%s' can't be read: %s; check its name and permissions", path, strerror(-err));
	return EXIT_USAGE;
}

static int check_uffd(void)
{
	const char *from;
	int fd = uffd_open(&from);

	if (fd >= 0) {
		close(fd);
		return 0;
	}
	if (fd == -ENOSYS)
		complain("this kernel has no userfaultfd, which paging needs; "
			 "use one built with CONFIG_USERFAULTFD, 6.1 or later");
	else
		complain("this user may not use userfaultfd (%s); run as root: sysctl -w vm.unprivileged_userfaultfd=1 "
			 "(`coal doctor' shows other ways)",
			 strerror(-fd));
	return EXIT_RUNTIME;
}

static int find_preload(struct run *run)
{
	static const char *const places[] = { ".", "../lib", "../lib/coal", NULL };
	int err = beside(places, "libcoal-malloc.so", run->preload, sizeof(run->preload));

	if (err) {
		complain("libcoal-malloc.so is neither beside this executable nor in ../lib; is coal installed whole?");
		return EXIT_RUNTIME;
	}
	if (strpbrk(run->preload, ": ")) {
		complain("the path '%s' has a space or colon, which LD_PRELOAD can't carry; install coal elsewhere",
			 run->preload);
		return EXIT_RUNTIME;
	}
	return 0;
}

static int open_stats(struct run *run)
{
	run->stats_fd = -1;
	if (!run->stats || !strcmp(run->stats, "-"))
		return 0;
	run->stats_fd = open(run->stats, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (run->stats_fd >= 0)
		return 0;
	complain("--stats: '%s' can't be written: %s; name a file in a folder that you may write to", run->stats,
		 strerror(errno));
	return EXIT_USAGE;
}

struct sentence {
	enum coal_log_level level;
	char text[512];
};

/* Of several, the most serious says why; of equals the last. */
static void keep_sentence(void *ctx, enum coal_log_level level, const char *text)
{
	struct sentence *s = ctx;

	if (*s->text && level > s->level)
		return;
	s->level = level;
	snprintf(s->text, sizeof(s->text), "%s", text);
}

static void __attribute__((noreturn)) try_pool(const struct run *run, int out)
{
	struct coal_pool_opts opts = COAL_POOL_OPTS_INIT;
	struct sentence why = { .level = COAL_LOG_DEBUG };
	coal_pool *pool;

	opts.budget = run->local;
	opts.key_file = run->key;
	opts.fail_ms = run->fail_ms;
	coal_set_log(keep_sentence, &why);
	int err = coal_pool_open(run->pool, &opts, &pool);
	if (!err) {
		coal_pool_close(pool);
		exit(0);
	}
	if (*why.text && why.level <= COAL_LOG_WARN)
		dprintf(out, "%s", why.text);
	else
		dprintf(out,
			"the pool '%s' can't be opened: %s; are its memservers running, and are these their addresses?",
			run->pool, strerror(-err));
	exit(err == -EINVAL ? EXIT_USAGE : EXIT_RUNTIME);
}

/* Open and close the pool as the program will. In a process of its own: no threads and no statistics page stay behind. */
static int check_pool(const struct run *run)
{
	char text[1024];
	size_t len = 0;
	ssize_t n;
	int status, out[2];

	if (pipe2(out, O_CLOEXEC))
		goto err;
	pid_t pid = fork();
	if (!pid)
		try_pool(run, out[1]);
	close(out[1]);
	while (pid > 0 && len < sizeof(text) - 1 && (n = read(out[0], text + len, sizeof(text) - 1 - len)) != 0)
		if (n > 0)
			len += (size_t)n;
		else if (errno != EINTR)
			break;
	text[len] = 0;
	close(out[0]);
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		goto err;
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return 0;
	complain("%s", len ? text : "opening the pool ended in a crash; please report it");
	return WIFEXITED(status) && len ? WEXITSTATUS(status) : EXIT_RUNTIME;
err:
	complain("the pool can't be tried: %s", strerror(errno));
	return EXIT_RUNTIME;
}

static void set_number(const char *name, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	setenv(name, text, 1);
}

static void set_or_unset(const char *name, const char *value)
{
	if (value)
		setenv(name, value, 1);
	else
		unsetenv(name);
}

/* What libcoal-malloc.so reads. What was not asked for must not come in from an outer coal run. */
static int set_environment(const struct run *run)
{
	const char *outer = getenv("LD_PRELOAD");
	char *preload, *key = run->key ? realpath(run->key, NULL) : NULL;

	setenv("COAL_POOL", run->pool, 1);
	set_number("COAL_LOCAL", run->local);
	set_number("COAL_MIN_SIZE", run->min_size);
	unsetenv("COAL_MMAP");
	if (run->mmap)
		set_number("COAL_MMAP", run->mmap);
	unsetenv("COAL_FAIL_MS");
	if (run->fail_ms)
		set_number("COAL_FAIL_MS", run->fail_ms);
	set_or_unset("COAL_KEY", key);
	set_or_unset("COAL_STATPAGE", run->stats ? "keep" : NULL);
	free(key);
	if (asprintf(&preload, "%s%s%s", run->preload, outer && *outer ? ":" : "", outer ? outer : "") < 0)
		return -ENOMEM;
	setenv("LD_PRELOAD", preload, 1);
	free(preload);
	return 0;
}

static void write_stats(const struct run *run, pid_t pid)
{
	static struct statpage page;
	int err = statfile_read(pid, &page);

	if (err) {
		complain("no statistics: the program used no remote memory (%s)", strerror(-err));
	} else if (run->stats_fd < 0) {
		statpage_print(&page, stderr);
	} else {
		err = statpage_dump(&page, run->stats_fd);
		if (err)
			complain("--stats: '%s' can't be written: %s", run->stats, strerror(-err));
	}
}

static int preflight(struct run *run)
{
	int status = run->key ? check_key(run->key) : 0;

	if (!status)
		status = program_find(run->argv[0], run->path, sizeof(run->path));
	if (!status)
		status = program_check(run->path);
	if (!status)
		status = find_preload(run);
	if (!status)
		status = check_uffd();
	if (!status && run->pool)
		status = check_pool(run);
	if (!status)
		status = open_stats(run);
	return status;
}

int cmd_run(int argc, char **argv)
{
	struct run run = { .local = DEFAULT_LOCAL };
	struct server server = { 0 };
	pid_t pid;

	argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &run);
	supervise_prepare();
	int status = preflight(&run);
	if (status)
		return status;
	if (!run.pool) {
		if (server_start(&server))
			return EXIT_RUNTIME;
		run.pool = server.spec;
	}
	int err = set_environment(&run);
	if (!err)
		err = supervise(run.path, run.argv, &pid);
	if (err) {
		complain("'%s' can't be started: %s", run.path, strerror(-err));
		server_end(&server);
		return EXIT_RUNTIME;
	}
	if (run.stats)
		write_stats(&run, pid);
	statfile_unlink(pid); /* a program that was killed could not */
	server_end(&server);
	return supervise_end(pid);
}
