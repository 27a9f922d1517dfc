/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of memserver, and the order in which its parts start and end. */
#include "log.h"
#include "loop.h"
#include "metrics.h"

#include <argp.h>
#include <coal/size.h>
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#define FD_RESERVE 64u /* descriptors that connections leave for everything else */
#define MAX_LEASE 86400.0

/* argp finds it by its name; without this it would be hidden, as all names are. */
__attribute__((visibility("default"))) const char *argp_program_version = "memserver (Coalesce) " COAL_VERSION;

struct options {
	const char *listen[MS_MAX_LISTENERS];
	uint32_t nlisten;
	uint64_t capacity, max_client; /* bytes; 0: not given */
	const char *store_path;	       /* NULL: ram */
	const char *key_path;
	const char *metrics;
	double lease;
	uint32_t threads;
	bool insecure, once;
};

/* One sentence with its remedy, and the status for a bad command line. */
#define usage(...)                                                                                                         \
	do {                                                                                                               \
		ms_log(MS_ERROR, __VA_ARGS__);                                                                             \
		exit(2);                                                                                                   \
	} while (0)

enum { OPT_KEY = 256, OPT_MAX_CLIENT, OPT_METRICS, OPT_LEASE, OPT_INSECURE, OPT_THREADS, OPT_ONCE };

static uint64_t parse_pages(const char *option, const char *text)
{
	uint64_t bytes;

	if (coal_parse_size(text, &bytes))
		usage("cannot read --%s '%s'; write a size such as 4096, 512M or 64G", option, text);
	if (bytes < MS_PAGE)
		usage("--%s %s is less than a page; give at least 4096", option, text);
	if (bytes / MS_PAGE > MS_STORE_MAX_PAGES)
		usage("--%s %s is more than one memserver can hold (just under 16T); start several", option, text);
	return bytes / MS_PAGE * MS_PAGE;
}

static double parse_number(const char *option, const char *text, double low, double high)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= low && value <= high))
		usage("cannot read --%s '%s'; write a number from %g to %g", option, text, low, high);
	return value;
}

static void parse_store(struct options *options, const char *text)
{
	if (!strncmp(text, "file:", 5) && text[5])
		options->store_path = text + 5;
	else if (!strcmp(text, "ram"))
		options->store_path = NULL;
	else
		usage("unknown store '%s'; write --store ram or --store file:PATH", text);
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct options *options = state->input;

	switch (key) {
	case 'l':
		if (options->nlisten == MS_MAX_LISTENERS)
			usage("too many --listen; give at most %d", MS_MAX_LISTENERS);
		options->listen[options->nlisten++] = arg;
		break;
	case 'c':
		options->capacity = parse_pages("capacity", arg);
		break;
	case 's':
		parse_store(options, arg);
		break;
	case OPT_KEY:
		options->key_path = arg;
		break;
	case OPT_MAX_CLIENT:
		options->max_client = parse_pages("max-client", arg);
		break;
	case OPT_METRICS:
		options->metrics = arg;
		break;
	case OPT_LEASE:
		options->lease = parse_number("lease", arg, 0, MAX_LEASE);
		break;
	case OPT_THREADS:
		options->threads = (uint32_t)parse_number("threads", arg, 1, MS_MAX_THREADS);
		break;
	case OPT_INSECURE:
		options->insecure = true;
		break;
	case OPT_ONCE:
		options->once = true;
		break;
	case 'v':
		ms_log_set_level(MS_INFO);
		break;
	case ARGP_KEY_ARG:
		usage("unexpected argument '%s'; addresses follow --listen, see memserver --help", arg);
	case ARGP_KEY_END:
		if (!options->nlisten)
			usage("nowhere to listen; give --listen HOST:PORT or --listen unix:PATH");
		if (!options->capacity)
			usage("how much memory to offer? Give --capacity SIZE, for example --capacity 4G");
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static const struct argp_option option_list[] = {
	{"listen", 'l', "HOST:PORT|unix:PATH", 0, "Listen there; may be repeated. Port 0 takes a free one", 0},
	{"capacity", 'c', "SIZE", 0, "Offer this much memory, for example 64G", 0},
	{"store", 's', "ram|file:PATH", 0, "Keep pages in memory (the default) or in a new file", 0},
	{"key", OPT_KEY, "FILE", 0, "Serve only clients that hold the same key file", 0},
	{"max-client", OPT_MAX_CLIENT, "SIZE", 0, "The most that one client may have (default: all)", 0},
	{"lease", OPT_LEASE, "SECONDS", 0, "Keep the memory of a lost client so long (default 30)", 0},
	{"metrics", OPT_METRICS, "HOST:PORT", 0, "Serve Prometheus metrics over HTTP there", 0},
	{"threads", OPT_THREADS, "N", 0, "Serve with this many threads (default 1)", 0},
	{"insecure", OPT_INSECURE, NULL, 0, "Allow other machines to connect without a key", 0},
	{"once", OPT_ONCE, NULL, 0, "End when standard input is at its end and no client is left", 0},
	{"verbose", 'v', NULL, 0, "Log clients that come and go", 0},
	{0},
};

static const struct argp parser = {
	.options = option_list,
	.parser = parse_option,
	.doc = "Offer this machine's memory to programs on others (see coal-run).\v"
	       "Clients prove that they hold the key; what they send is not encrypted.",
};

static void load_key(const struct options *options, struct coal_key *key)
{
	if (!options->key_path)
		return;
	int err = coal_key_load(options->key_path, key);
	if (err == -EPERM)
		usage("others may read the key file %s; run: chmod 600 %s", options->key_path, options->key_path);
	if (err == -EINVAL)
		usage("the key file %s must have %d to %d bytes; make one: head -c 32 /dev/urandom > %s", options->key_path,
		      COAL_KEY_MIN, COAL_KEY_MAX, options->key_path);
	if (err)
		usage("cannot read the key file %s: %s; check --key", options->key_path, strerror(-err));
}

struct addresses {
	struct ms_address clients[MS_MAX_LISTENERS];
	uint32_t n;
	struct ms_address metrics;
};

/* Everything is resolved and checked before anything is opened. */
static void resolve(const struct options *options, struct addresses *addresses)
{
	for (uint32_t i = 0; i < options->nlisten; i++) {
		struct ms_address *first = &addresses->clients[addresses->n];
		int got = ms_address_parse(options->listen[i], first, (int)(MS_MAX_LISTENERS - addresses->n));
		if (got < 0)
			exit(2);
		for (int j = 0; j < got; j++)
			if (!options->key_path && !options->insecure && !ms_address_is_local(&first[j]))
				usage("other machines can reach %s: give --key FILE, or --insecure to serve anyone",
				      options->listen[i]);
		addresses->n += (uint32_t)got;
	}
	if (options->metrics && ms_address_parse(options->metrics, &addresses->metrics, 1) < 0)
		exit(2);
}

static int open_store(const struct options *options, struct ms_store *store)
{
	const uint64_t pages = options->capacity / MS_PAGE;
	int err;

	if (!options->store_path) {
		err = ms_store_open_ram(store, pages, options->threads * COAL_WIRE_MAX_PAGES);
		if (err)
			ms_log(MS_ERROR, "cannot set up memory for the capacity: %s (give a smaller --capacity)",
			       strerror(-err));
		return err;
	}
	err = ms_store_open_file(store, pages, options->store_path);
	if (err == -EEXIST)
		ms_log(MS_ERROR,
		       "the store %s is there already, and would be overwritten; remove it or choose another path",
		       options->store_path);
	else if (err == -EOPNOTSUPP)
		ms_log(MS_ERROR, "the file system of %s cannot reserve room; choose one that can (ext4, xfs, btrfs, tmpfs)",
		       options->store_path);
	else if (err)
		ms_log(MS_ERROR, "cannot make the store %s: %s (check the directory, its rights and its free room)",
		       options->store_path, strerror(-err));
	return err;
}

/* As many descriptors as we may have; returns how many connections that allows. */
static uint32_t raise_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return 256;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	getrlimit(RLIMIT_NOFILE, &limit);
	uint64_t n = limit.rlim_cur < 65536 ? limit.rlim_cur : 65536;
	return n > 2 * FD_RESERVE ? (uint32_t)n - FD_RESERVE : (uint32_t)n / 2;
}

static int open_listeners(const struct ms_address *addresses, uint32_t n, struct ms_listener *listeners, uint32_t *opened)
{
	for (uint32_t i = 0; i < n; i++) {
		int err = ms_listen(&addresses[i], &listeners[*opened]);
		if (err)
			return err;
		(*opened)++;
	}
	return 0;
}

static int serve(const struct options *options, struct ms_server *server, const struct addresses *addresses)
{
	static struct ms_listener listeners[MS_MAX_LISTENERS];
	static struct ms_loops loops;
	struct ms_metrics *metrics = NULL;
	int err;

	loops = (struct ms_loops){.server = server, .listeners = listeners, .n = options->threads, .once = options->once};
	loops.max_connections = raise_descriptors();
	/* Before any thread is made, so that only the loop takes these signals, and from now on none is missed. */
	sigemptyset(&loops.ends);
	sigaddset(&loops.ends, SIGTERM);
	sigaddset(&loops.ends, SIGINT);
	pthread_sigmask(SIG_BLOCK, &loops.ends, NULL);
	err = open_listeners(addresses->clients, addresses->n, listeners, &loops.nlisteners);
	if (!err && options->metrics)
		err = ms_metrics_start(server, &addresses->metrics, &metrics);
	if (err)
		goto close;
	for (uint32_t i = 0; i < loops.nlisteners; i++)
		printf("memserver: listening on %s\n", listeners[i].name);
	if (metrics)
		printf("memserver: metrics on http://%s/metrics\n", ms_metrics_address(metrics));
	fflush(stdout);
	err = ms_loops_run(&loops);
	if (err)
		ms_log(MS_ERROR, "cannot serve: %s", strerror(-err));
close:
	ms_metrics_stop(metrics);
	for (uint32_t i = 0; i < loops.nlisteners; i++)
		ms_listener_close(&listeners[i]);
	return err;
}

int main(int argc, char **argv)
{
	static struct ms_server server;
	static struct addresses addresses;
	struct options options = {.lease = 30, .threads = 1};
	pthread_mutexattr_t attributes;

	argp_err_exit_status = 2;
	argp_parse(&parser, argc, argv, 0, NULL, &options);
	signal(SIGPIPE, SIG_IGN);
	/* Buffers come and go with large vectors: keep their memory instead of asking the kernel each time. */
	mallopt(M_MMAP_THRESHOLD, 4 << 20);
	mallopt(M_TRIM_THRESHOLD, 8 << 20);

	load_key(&options, &server.key);
	resolve(&options, &addresses);
	server.max_client = options.max_client ? options.max_client / MS_PAGE : UINT64_MAX;
	server.lease_ms = (uint32_t)(options.lease * 1000);
	/* It is held for less than a microsecond: sleeping would take longer than to wait for it. */
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
	pthread_mutex_init(&server.lock, &attributes);
	ms_clients_init(&server.clients);
	if (getrandom(server.instance, sizeof(server.instance), 0) != sizeof(server.instance)) {
		ms_log(MS_ERROR, "the kernel gives no random bytes: %s", strerror(errno));
		return 1;
	}
	if (open_store(&options, &server.space.store))
		return 1;
	int err = serve(&options, &server, &addresses);
	ms_store_close(&server.space.store);
	return err ? 1 : 0;
}
