/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doctor.c - `coal doctor`: what this kernel and this user may do. Everything is tried or read, nothing assumed from a
 * version but the floor; each finding that is not ok says what that costs and what mends it.
 */
#include "cmd.h"
#include "statpage.h"
#include <argp.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/bpf.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

enum level { OK, WARN, FAIL, LEVELS };
static const char *const level_names[LEVELS] = { "ok", "warn", "fail" };
static const char *const level_colours[LEVELS] = { "\033[32m", "\033[33m", "\033[31m" };

struct finding {
	enum level level;
	char text[160];
	const char *cost, *remedy; /* NULL when there is nothing to mend */
};

static void found(struct finding *f, enum level level, const char *cost, const char *remedy, const char *fmt, ...)
	__attribute__((format(printf, 5, 6)));
static void found(struct finding *f, enum level level, const char *cost, const char *remedy, const char *fmt, ...)
{
	va_list args;

	f->level = level;
	f->cost = cost;
	f->remedy = remedy;
	va_start(args, fmt);
	vsnprintf(f->text, sizeof(f->text), fmt, args);
	va_end(args);
}

/* The first line of a file, without its newline; "" if it can't be read. */
static const char *first_line(const char *path)
{
	static char text[256];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	text[strcspn(text, "\n")] = 0;
	return text;
}

static void check_kernel(struct finding *f)
{
	struct utsname name;
	unsigned major = 0, minor = 0;

	uname(&name);
	sscanf(name.release, "%u.%u", &major, &minor);
	bool enough = major > 6 || (major == 6 && minor >= 1);
	found(f, enough ? OK : FAIL, enough ? NULL : "the pager needs userfaultfd as of 6.1",
	      enough ? NULL : "apt-get install linux-image-amd64 (Debian 12 or later), then reboot", "%s", name.release);
}

static void check_uffd(struct finding *f)
{
	const char *from;
	int fd = uffd_open(&from);

	if (fd >= 0) {
		found(f, OK, NULL, NULL, "allowed, with faults inside system calls, by %s", from);
		close(fd);
	} else if (fd == -ENOSYS) {
		found(f, FAIL, "no paging at all",
		      "a kernel with CONFIG_USERFAULTFD=y, or a container that allows the system call",
		      "not in this kernel, or blocked");
	} else {
		found(f, FAIL, "no paging: this user gets no userfaultfd that sees faults inside system calls",
		      "as root: sysctl -w vm.unprivileged_userfaultfd=1, or chmod 666 /dev/userfaultfd, "
		      "or give CAP_SYS_PTRACE",
		      "refused: %s", strerror(-fd));
	}
}

static const struct feature {
	const char *name;
	uint64_t bit;
	const char *cost; /* NULL: nothing depends on it */
} uffd_features_wanted[] = {
	{ "WP", UFFD_FEATURE_PAGEFAULT_FLAG_WP, "clean pages can't be told from modified ones" },
	{ "MOVE", 1 << 16, "pages are copied, about 1 us more each; O_DIRECT input into a leaving page can be lost" },
	{ "POISON", 1 << 14, "lost pages are marked by unmapping: more mappings after a failure" },
	{ "WP_ASYNC", 1 << 15, NULL },
	{ "SIGBUS", UFFD_FEATURE_SIGBUS, NULL },
	{ "THREAD_ID", UFFD_FEATURE_THREAD_ID, NULL },
};

static void check_features(struct finding *f)
{
	static char cost[256];
	char have[80] = "", missing[80] = "";
	const char *from;
	uint64_t features;
	int fd = uffd_open(&from);

	if (fd < 0 || uffd_features(fd, &features)) {
		found(f, WARN, "what the kernel offers is not known", "mend the line before first", "can't be asked");
		if (fd >= 0)
			close(fd);
		return;
	}
	close(fd);
	for (size_t i = 0; i < sizeof(uffd_features_wanted) / sizeof(uffd_features_wanted[0]); i++) {
		const struct feature *w = &uffd_features_wanted[i];
		char *list = features & w->bit ? have : missing;
		strcat(strcat(list, " "), w->name);
		if (!(features & w->bit) && w->cost)
			strcat(strcat(cost, *cost ? "; " : ""), w->cost);
	}
	enum level level = *cost ? WARN : OK;
	if (!(features & UFFD_FEATURE_PAGEFAULT_FLAG_WP))
		level = FAIL;
	found(f, level, *cost ? cost : NULL, *cost ? "a newer kernel: POISON is in 6.6, MOVE in 6.8" : NULL, "%s%s%s",
	      *have ? have + 1 : "none", *missing ? "; missing:" : "", missing);
}

static void check_limit(struct finding *f, int which, rlim_t enough, const char *cost, const char *remedy)
{
	struct rlimit limit;

	getrlimit(which, &limit);
	bool low = limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < enough;
	char text[32] = "unlimited";
	if (limit.rlim_cur != RLIM_INFINITY)
		snprintf(text, sizeof(text), "%llu", (unsigned long long)limit.rlim_cur);
	found(f, low ? WARN : OK, low ? cost : NULL, low ? remedy : NULL, "%s", text);
}

static void check_nofile(struct finding *f)
{
	check_limit(f, RLIMIT_NOFILE, 1024, "few memservers and forks at once", "ulimit -n 4096");
}

static void check_memlock(struct finding *f)
{
	check_limit(f, RLIMIT_MEMLOCK, 8 << 20,
		    "the pager's own memory may be swapped out; RDMA buffers can't be registered",
		    "ulimit -l unlimited (as root, or by a line in /etc/security/limits.conf)");
}

static void check_map_count(struct finding *f)
{
	unsigned long count = strtoul(first_line("/proc/sys/vm/max_map_count"), NULL, 10);
	bool low = count < 65530;

	found(f, low ? WARN : OK, low ? "programs that unmap in pieces run out of mappings (ENOMEM)" : NULL,
	      low ? "sysctl -w vm.max_map_count=262144" : NULL, "%lu", count);
}

static void check_overcommit(struct finding *f)
{
	bool strict = *first_line("/proc/sys/vm/overcommit_memory") == '2';

	found(f, strict ? WARN : OK,
	      strict ? "mappings larger than the commit limit are refused, though their pages are remote" : NULL,
	      strict ? "sysctl -w vm.overcommit_memory=0" : NULL, "vm.overcommit_memory is %s",
	      first_line("/proc/sys/vm/overcommit_memory"));
}

static void check_shm(struct finding *f)
{
	struct statvfs fs;
	int fd = open(STATPAGE_DIR, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	bool room = !statvfs(STATPAGE_DIR, &fs) && fs.f_bavail * fs.f_bsize >= sizeof(struct statpage);

	if (fd >= 0 && room)
		found(f, OK, NULL, NULL, "writable");
	else
		found(f, WARN, "no statistics: coal stat and coal top see nothing",
		      "mount -t tmpfs -o mode=1777 tmpfs " STATPAGE_DIR, "%s",
		      room ? strerror(errno) : "full or not there");
	if (fd >= 0)
		close(fd);
}

static void check_cores(struct finding *f)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	found(f, cores > 1 ? OK : WARN,
	      cores > 1 ? NULL : "pager and program take turns: each fault costs two context switches",
	      cores > 1 ? NULL : "give the machine or the container a second core", "%ld online", cores);
}

static void check_thp(struct finding *f)
{
	const char *mode = first_line("/sys/kernel/mm/transparent_hugepage/enabled");

	found(f, OK, NULL, NULL, "%s (managed memory always uses 4 KiB pages)", *mode ? mode : "not in this kernel");
}

static void check_seccomp(struct finding *f)
{
	char line[128], *mode = NULL;
	FILE *status = fopen("/proc/self/status", "re");

	while (status && !mode && fgets(line, sizeof(line), status))
		if (!strncmp(line, "Seccomp:", 8))
			mode = line + 8;
	if (status)
		fclose(status);
	bool filtered = mode && atoi(mode) == 2;
	found(f, filtered ? WARN : OK,
	      filtered ? "a container's filter may refuse userfaultfd; the line userfaultfd says whether it does" : NULL,
	      filtered ? "docker run --security-opt seccomp=PROFILE, with userfaultfd allowed in PROFILE" : NULL, "%s",
	      filtered ? "a filter is active" : "no filter");
}

static void check_bpf(struct finding *f)
{
	union bpf_attr attr = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1 };
	int fd = (int)syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr));
	const char *why = fd < 0 ? strerror(errno) : "allowed";
	bool btf = !access("/sys/kernel/btf/vmlinux", R_OK);

	if (fd >= 0)
		close(fd);
	found(f, OK, NULL, NULL, "BPF %s, kernel types (BTF) %s; not needed today", why, btf ? "present" : "absent");
}

static void check_rdma(struct finding *f)
{
	char names[96] = "";
	struct dirent *entry;
	DIR *dir = opendir("/sys/class/infiniband");

	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] != '.' && strlen(names) + strlen(entry->d_name) + 2 < sizeof(names))
			strcat(strcat(names, " "), entry->d_name);
	if (dir)
		closedir(dir);
	found(f, OK, NULL, NULL, "%s; memservers are reached by TCP", *names ? names + 1 : "no devices");
}

static void check_install(struct finding *f)
{
	static const char *const places[] = { ".", "../lib", "../lib/coal", NULL };
	char path[4096];
	int err = beside(places, "libcoal-malloc.so", path, sizeof(path));

	found(f, err ? FAIL : OK, err ? "coal run has no allocator to put under a program" : NULL,
	      err ? "make install, or run the coal of a whole build" : NULL, "%.150s",
	      err ? "libcoal-malloc.so not found" : path);
}

static const struct check {
	const char *name;
	void (*run)(struct finding *f);
} checks[] = {
	{ "kernel", check_kernel },
	{ "userfaultfd", check_uffd },
	{ "features", check_features },
	{ "libcoal-malloc", check_install },
	{ "open files", check_nofile },
	{ "locked memory", check_memlock },
	{ "max_map_count", check_map_count },
	{ "overcommit", check_overcommit },
	{ STATPAGE_DIR, check_shm },
	{ "cores", check_cores },
	{ "huge pages", check_thp },
	{ "seccomp", check_seccomp },
	{ "bpf", check_bpf },
	{ "rdma", check_rdma },
};
#define NCHECKS (sizeof(checks) / sizeof(checks[0]))

static error_t parse(int key, char *arg, struct argp_state *state)
{
	(void)arg;
	if (key == 'j')
		*(bool *)state->input = true;
	else if (key == ARGP_KEY_ARG)
		argp_failure(state, EXIT_USAGE, 0, "'%s' is one word too many; coal doctor takes only --json", arg);
	else
		return ARGP_ERR_UNKNOWN;
	return 0;
}

static const struct argp_option options[] = { { "json", 'j', NULL, 0, "Write JSON", 0 }, { 0 } };
static const struct argp argp = {
	.options = options,
	.parser = parse,
	.doc = "Say what this kernel lets this user do, what is missing, what that costs, and the command that mends it.\v"
	       "The exit status is 0 when coal can run here, else 1.",
};

static void print_finding(const char *name, const struct finding *f, bool colours)
{
	printf("%s%-4s%s  %-14s  %s\n", colours ? level_colours[f->level] : "", level_names[f->level],
	       colours ? "\033[0m" : "", name, f->text);
	if (f->cost)
		printf("      %-14s  cost: %s\n", "", f->cost);
	if (f->remedy)
		printf("      %-14s  mend: %s\n", "", f->remedy);
}

static json_t *finding_json(const char *name, const struct finding *f)
{
	return json_pack("{s:s, s:s, s:s, s:s?, s:s?}", "name", name, "level", level_names[f->level], "text", f->text,
			 "cost", f->cost, "remedy", f->remedy);
}

int cmd_doctor(int argc, char **argv)
{
	enum level worst = OK;
	bool json = false;

	argp_parse(&argp, argc, argv, 0, NULL, &json);
	bool colours = isatty(STDOUT_FILENO) && !getenv("NO_COLOR");
	json_t *list = json ? json_array() : NULL;
	for (size_t i = 0; i < NCHECKS; i++) {
		struct finding f;
		checks[i].run(&f);
		if (f.level > worst)
			worst = f.level;
		if (json)
			json_array_append_new(list, finding_json(checks[i].name, &f));
		else
			print_finding(checks[i].name, &f, colours);
	}
	if (json) {
		json_t *root = json_pack("{s:b, s:o}", "can_run", worst != FAIL, "checks", list);
		json_dumpf(root, stdout, JSON_INDENT(2));
		putchar('\n');
		json_decref(root);
	} else {
		printf("%s\n", worst == FAIL ? "coal can't run here; mend the lines marked fail" : "coal can run here");
	}
	return worst == FAIL ? EXIT_RUNTIME : 0;
}
