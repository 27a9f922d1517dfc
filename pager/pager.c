/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pager.c - the process's pager: its threads, how they wait and wake each other.
 *
 * The control thread is started first and leaves the program's file-descriptor table (unshare(CLONE_FILES)); the others are
 * its children and share its new table. So the program can close every descriptor it finds, and none of ours is among them;
 * a child of fork inherits none; exec closes all.
 */
#include "pager.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define LOOKS 8 /* at the wire, between two looks at anything else */
#define SPIN_NS 50000u /* polling for a reply: a good round trip is far below, a bad one far above */
#define CROWDED_NS 1500000u /* who yields and comes back after this long has met somebody that computes */
#define SLEEPY_NS 50000000u /* then we don't poll for this long: who sleeps is woken sooner than who has yielded */

struct pager pager;
__thread int in_pager __attribute__((tls_model("initial-exec")));

static _Atomic uint32_t start_state; /* 0 starting, 1 runs, 2 failed */
static int start_error;

void futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns)
{
	struct timespec ts = { (time_t)(timeout_ns / 1000000000), (long)(timeout_ns % 1000000000) };

	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, timeout_ns == UINT64_MAX ? NULL : &ts, NULL, 0);
}

void futex_wake(_Atomic uint32_t *word, int n)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

void pager_turn(unsigned thread)
{
	pager.turn[thread]++;
}

void pager_kick(unsigned thread)
{
	uint64_t one = 1;

	if (thread == LANE_CONTROL)
		control_poke();
	ssize_t n = write(pager.efd[thread], &one, sizeof(one));
	(void)n; /* a full counter wakes as well */
}

void pager_synchronize(bool connect)
{
	unsigned threads[] = { LANE_FAULT, LANE_WRITE, LANE_PREFETCH, LANES };

	for (unsigned i = 0; i < (connect ? 4u : 3u); i++) {
		uint64_t seen = pager.turn[threads[i]];
		/* Two turns: the one under way may have begun with what is now gone. */
		while (pager.turn[threads[i]] < seen + 2) {
			pager_kick(threads[i]);
			sched_yield();
		}
	}
}

static unsigned collect_lanes(unsigned thread, struct pollfd *fds, struct lane **lanes)
{
	unsigned n = 0;

	for (unsigned i = 0; thread < LANES && i < MAX_POOLS; i++) {
		struct pool *pool = pager.pool[i];
		for (unsigned k = 0; pool && k < pool->nservers; k++) {
			struct lane *lane = &pool->server[k].lane[thread];
			if (lane->state != LANE_UP || n == MAX_SERVERS * 2)
				continue;
			fds[n].fd = lane->server->fabric->wait_fd(lane->conn, &fds[n].events);
			lanes[n++] = lane;
		}
	}
	return n;
}

bool pager_pending(unsigned thread)
{
	for (unsigned i = 0; thread < LANES && i < MAX_POOLS; i++) {
		struct pool *pool = pager.pool[i];
		for (unsigned k = 0; pool && k < pool->nservers; k++)
			if (pool->server[k].lane[thread].head)
				return true;
	}
	return false;
}

int pager_wait(unsigned thread, int extra_fd, uint64_t until)
{
	struct pollfd fds[MAX_SERVERS * 2 + 2];
	struct lane *lanes[MAX_SERVERS * 2];
	unsigned n = collect_lanes(thread, fds, lanes), nlanes = n;
	uint64_t now = os->now(), tick = 20000000, counter;

	fds[n++] = (struct pollfd){ .fd = pager.efd[thread], .events = POLLIN };
	if (extra_fd >= 0)
		fds[n++] = (struct pollfd){ .fd = extra_fd, .events = POLLIN };
	if (pager_pending(thread) && (until == UINT64_MAX || until > now + tick))
		until = now + tick; /* deadlines of requests are looked at this often */
	uint64_t ns = until <= now ? 0 : until - now;
	struct timespec ts = { (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
	int r = ppoll(fds, n, until == UINT64_MAX ? NULL : &ts, NULL);
	for (unsigned i = 0; r > 0 && i < nlanes; i++)
		lanes[i]->readable |= fds[i].revents != 0;
	if (r > 0 && fds[nlanes].revents) {
		ssize_t got = read(pager.efd[thread], &counter, sizeof(counter));
		(void)got;
	}
	return r;
}

bool pager_progress(unsigned thread)
{
	bool moved = false;

	for (unsigned i = 0; i < MAX_POOLS; i++) {
		struct pool *pool = pager.pool[i];
		for (unsigned k = 0; pool && k < pool->nservers; k++)
			moved |= lane_progress(&pool->server[k].lane[thread]);
	}
	return moved;
}

/* Poll a thread's lanes for as long as replies come soon; between the looks, whoever else wants this processor gets it (the
 * memserver may need this very one), and `other` looks after something else: true if that was something. */
void pager_spin(unsigned thread, bool (*other)(void))
{
	static _Atomic uint64_t sleepy;
	uint64_t since = os->now(), now = since;

	if (now < sleepy || pager.processors == 1)
		return;
	while (pager_pending(thread) && now - since < SPIN_NS) {
		for (int i = 0; i < LOOKS; i++) {
			if (!pager_progress(thread))
				continue;
			if (!pager_pending(thread))
				return;
			since = os->now();
		}
		uint64_t before = os->now();
		sched_yield();
		now = os->now();
		if (now - before > CROWDED_NS)
			sleepy = now + SLEEPY_NS;
		if (other && other())
			since = now;
		if (now < sleepy)
			return;
	}
}

/* ---- start ---- */

static int leave_files(void)
{
	if (unshare(CLONE_FILES))
		return -errno;
	if (close_range(0, ~0u, 0))
		return -errno;
	/* Nothing may write to a socket of ours by its number 0, 1 or 2. */
	for (int i = 0; i < 3; i++)
		if (open("/dev/null", O_RDWR | O_CLOEXEC) != i)
			return -EMFILE;
	return 0;
}

static int spawn(void *(*fn)(void *), const char *name)
{
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, 512 << 10);
	int err = pthread_create(&thread, &attr, fn, NULL);
	pthread_attr_destroy(&attr);
	if (!err)
		pthread_setname_np(thread, name);
	return -err;
}

static int set_up(void)
{
	int err = leave_files();

	if (!err)
		err = os_open_uffd();
	for (unsigned t = 0; !err && t <= LANES; t++) {
		pager.efd[t] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		err = pager.efd[t] < 0 ? -errno : 0;
	}
	if (!err && !pager.mapping) {
		pager.mapping = mem_map(MAX_MAPPINGS * sizeof(*pager.mapping), MEM_META);
		pager.nmapping = 1;
		err = pager.mapping ? 0 : -ENOMEM;
	}
	if (!err)
		err = stat_open();
	if (!err)
		err = fork_adopt();
	if (!err)
		err = spawn(fault_main, "coal-fault");
	if (!err)
		err = spawn(evict_main, "coal-evict");
	if (!err)
		err = spawn(prefetch_main, "coal-prefetch");
	if (!err)
		err = spawn(connect_main, "coal-connect");
	if (!err)
		err = spawn(touch_main, "coal-touch");
	return err;
}

static void *first_main(void *arg)
{
	(void)arg;
	in_pager = 1;
	pager.pid = getpid();
	pager.processors = get_nprocs();
	start_error = set_up();
	start_state = start_error ? 2 : 1;
	futex_wake(&start_state, 1);
	if (!start_error)
		control_main(NULL);
	return NULL;
}

static void explain(int err)
{
	if (err == -EPERM)
		log_err("this user may not serve page faults of system calls by userfaultfd; run as root, give CAP_SYS_PTRACE, or "
			"sysctl vm.unprivileged_userfaultfd=1 (see `coal doctor`)");
	else
		log_err("can't start the pager: %s (see `coal doctor`)", err == -ENOSYS ? "this kernel's userfaultfd can't "
			"write-protect; Linux 6.1 or newer is needed" : strerrordesc_np(-err));
}

/* Start the threads and wait until they run; the caller's signals stay the program's. */
int pager_start(void)
{
	sigset_t all, old;

	start_state = 0;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	in_pager++;
	int err = spawn(first_main, "coal-control");
	in_pager--;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	while (!err && !start_state)
		futex_wait(&start_state, 0, UINT64_MAX);
	if (!err && start_state == 2)
		err = start_error;
	if (err)
		explain(err);
	else
		pager.running = 1;
	return err;
}
