/* SPDX-License-Identifier: Apache-2.0 */
/* stat.c - `coal stat`: what the pagers of running programs did so far. */
#include "cmd.h"
#include "statfile.h"
#include <argp.h>
#include <coal/size.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct stat_args {
	pid_t pid; /* 0: all */
	bool json;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct stat_args *args = state->input;
	char *end;

	switch (key) {
	case 'j':
		args->json = true;
		return 0;
	case ARGP_KEY_ARG: {
		long pid = strtol(arg, &end, 10);
		if (args->pid)
			argp_failure(state, EXIT_USAGE, 0, "one process at a time; leave the number out to see all");
		if (end == arg || *end || pid <= 0 || pid > INT32_MAX)
			argp_failure(state, EXIT_USAGE, 0,
				     "'%s' is not a process number; `coal stat' lists them", arg);
		args->pid = (pid_t)pid;
		return 0;
	}
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp_option options[] = { { "json", 'j', NULL, 0, "Write JSON", 0 }, { 0 } };
static const struct argp argp = {
	.options = options,
	.parser = parse,
	.args_doc = "[PID]",
	.doc = "Show what the pager of process PID did so far, or a line for each process that uses coal.\v"
	       "Times are from the fault's arrival at the pager until the thread goes on (zero: first touch; read: "
	       "fetched; "
	       "write: first store to a clean page; soft: caught while leaving), and for fetched pages their stages.",
};

static int write_json(json_t *root)
{
	int err = json_dumpf(root, stdout, JSON_INDENT(2)) || putchar('\n') == EOF || fflush(stdout);

	json_decref(root);
	if (err)
		complain("can't write: %s", strerror(errno));
	return err ? EXIT_RUNTIME : 0;
}

static int show_one(pid_t pid, bool json)
{
	static struct statpage page;
	int err = statfile_read(pid, &page);

	switch (err) {
	case 0:
		break;
	case -ESRCH:
		complain("there is no process %d; `coal stat' lists those that use coal", (int)pid);
		return EXIT_RUNTIME;
	case -EACCES:
		complain("process %d is another user's; run coal stat as that user or as root", (int)pid);
		return EXIT_RUNTIME;
	case -ENOENT:
		complain("process %d does not use coal; start it with `coal run', or open a pool in it", (int)pid);
		return EXIT_RUNTIME;
	default:
		complain("%s/%s%d is not a statistics page of process %d and this version of coal (%s)", STATPAGE_DIR,
			 STATPAGE_PREFIX, (int)pid, (int)pid, strerror(-err));
		return EXIT_RUNTIME;
	}
	if (json)
		return write_json(statpage_json(&page));
	statpage_print(&page, stdout);
	return 0;
}

static void print_line(const struct statpage *p)
{
	char resident[16], budget[16], remote[16], mapped[16];
	uint64_t faults = 0;

	for (unsigned i = 0; i < STAT_KINDS; i++)
		faults += p->faults[i];
	printf("%7u %-15.15s %8s %8s %8s %8s %12llu\n", p->pid, p->command, coal_format_size(p->resident_bytes, resident),
	       coal_format_size(p->budget_bytes, budget), coal_format_size(p->remote_bytes, remote),
	       coal_format_size(p->mapped_bytes, mapped), (unsigned long long)faults);
}

static int show_all(bool json)
{
	static struct statpage page;
	json_t *list = json ? json_array() : NULL;
	pid_t *pids;
	size_t count;
	int err = statfile_list(&pids, &count);

	if (err) {
		complain("%s can't be read: %s", STATPAGE_DIR, strerror(-err));
		return EXIT_RUNTIME;
	}
	if (!json)
		printf("%7s %-15s %8s %8s %8s %8s %12s\n", "PID", "COMMAND", "RESIDENT", "BUDGET", "REMOTE", "MAPPED",
		       "FAULTS");
	for (size_t i = 0; i < count; i++) {
		if (statfile_read(pids[i], &page))
			continue;
		if (json)
			json_array_append_new(list, statpage_json(&page));
		else
			print_line(&page);
	}
	free(pids);
	return json ? write_json(list) : 0;
}

int cmd_stat(int argc, char **argv)
{
	struct stat_args args = { 0 };

	argp_parse(&argp, argc, argv, 0, NULL, &args);
	return args.pid ? show_one(args.pid, args.json) : show_all(args.json);
}
