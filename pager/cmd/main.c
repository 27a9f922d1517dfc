/* SPDX-License-Identifier: Apache-2.0 */
/* main.c - `coal`: finds the subcommand and hands over. */
#include "cmd.h"
#include <argp.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char cmd_name[32] = "coal";

static const struct command {
	const char *name;
	int (*run)(int argc, char **argv);
} commands[] = {
	{ "run", cmd_run },
	{ "stat", cmd_stat },
	{ "top", cmd_top },
	{ "doctor", cmd_doctor },
};
#define NCOMMANDS (sizeof(commands) / sizeof(commands[0]))

static const char doc[] = "Use the memory of other machines as if it were this one's.\v"
			  "Commands:\n"
			  "  run     run a program whose memory lives on memservers\n"
			  "  stat    what the pagers of running programs did so far\n"
			  "  top     the same, live\n"
			  "  doctor  what this machine lets coal do, and what to mend\n"
			  "\n"
			  "`coal COMMAND --help' says more; so does `man coal'.";

void complain(const char *fmt, ...)
{
	va_list args;

	fflush(stdout);
	fprintf(stderr, "%s: ", cmd_name);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	int *first = state->input;

	(void)arg;
	switch (key) {
	case ARGP_KEY_ARG:
		*first = state->next - 1;
		state->next = state->argc;
		return 0;
	case ARGP_KEY_NO_ARGS:
		argp_error(state, "which command? run, stat, top or doctor");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp argp = { .parser = parse, .args_doc = "COMMAND [ARGUMENT...]", .doc = doc };

static int dispatch(int argc, char **argv)
{
	for (size_t i = 0; i < NCOMMANDS; i++) {
		if (strcmp(argv[0], commands[i].name))
			continue;
		snprintf(cmd_name, sizeof(cmd_name), "coal %s", commands[i].name);
		argv[0] = cmd_name;
		return commands[i].run(argc, argv);
	}
	complain("there is no command '%s'; `coal --help' lists them", argv[0]);
	return EXIT_USAGE;
}

/* `coal help`, `coal help run`: the same as --help. */
static int help(int argc, char **argv)
{
	static char flag[] = "--help";

	if (argc > 1) {
		char *sub[] = { argv[1], flag, NULL };
		return dispatch(2, sub);
	}
	argp_help(&argp, stdout, ARGP_HELP_STD_HELP & ~ARGP_HELP_EXIT_OK, cmd_name);
	return 0;
}

/* A standard stream that our caller closed would lend its number to a file of ours. The program finds it closed again. */
static void occupy_standard_streams(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	int first = 0;

	occupy_standard_streams();
	argp_program_version = "coal " COAL_VERSION;
	argp_err_exit_status = EXIT_USAGE;
	argv[0] = cmd_name;
	argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &first);
	argc -= first;
	argv += first;
	if (!strcmp(argv[0], "help"))
		return help(argc, argv);
	return dispatch(argc, argv);
}
