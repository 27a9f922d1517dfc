/* SPDX-License-Identifier: Apache-2.0 */
/* sysio.c - system calls whose arguments and buffers lie in memory that is not resident, one scene each. */
#include "pattern.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>

#define SIZE scaled(24 * MIB)

static char local[MIB] __attribute__((aligned(4096))); /* stays resident: not from malloc */

/* Touch so much other memory that everything older is evicted. */
static void evict(void)
{
	static char *ballast;
	if (!ballast)
		ballast = must_alloc(SIZE);
	pattern_fill(ballast, SIZE, 99);
}

static int scratch_file(const char *dir, int flags)
{
	static char path[4096];
	snprintf(path, sizeof(path), "%s/scratch", dir);
	int fd = open(path, O_RDWR | O_CREAT | flags, 0600);
	must(fd >= 0);
	return fd;
}

static void all_io(ssize_t (*io)(int, void *, size_t), int fd, char *at, size_t size)
{
	while (size) {
		ssize_t n = io(fd, at, size);
		must(n > 0);
		at += n;
		size -= (size_t)n;
	}
}

static ssize_t do_write(int fd, void *at, size_t size)
{
	return write(fd, at, size);
}

static void file_must_hold(int fd, uint64_t seed)
{
	for (size_t off = 0; off < SIZE; off += sizeof(local)) {
		must(pread(fd, local, sizeof(local), (off_t)off) == (ssize_t)sizeof(local));
		for (size_t i = 0; i < sizeof(local) / 8; i++)
			must(((uint64_t *)local)[i] == pattern_word(seed, off / 8 + i));
	}
}

static void write_file(char **argv)
{
	char *data = must_alloc(SIZE);
	int fd = scratch_file(argv[0], 0);
	pattern_fill(data, SIZE, 1);
	all_io(do_write, fd, data, SIZE);
	file_must_hold(fd, 1);
}

static void read_file(char **argv)
{
	char *data = must_alloc(SIZE);
	int fd = scratch_file(argv[0], 0);
	pattern_fill(data, SIZE, 1);
	all_io(do_write, fd, data, SIZE);
	pattern_fill(data, SIZE, 2);
	must(lseek(fd, 0, SEEK_SET) == 0);
	all_io(read, fd, data, SIZE);
	pattern_must_hold("read", data, SIZE, 1);
}

#define PARTS 512

/* Scatter: part i of the file goes to where the vector says, in an order of its own. The vector itself is remote too. */
static struct iovec *vector_over(char *data)
{
	struct iovec *iov = must_alloc(PARTS * sizeof(*iov));
	for (size_t i = 0; i < PARTS; i++)
		iov[i] = (struct iovec){ data + i * 167 % PARTS * (SIZE / PARTS), SIZE / PARTS };
	return iov;
}

static void vectors(char **argv)
{
	char *from = must_alloc(SIZE), *to = must_alloc(SIZE);
	struct iovec *out = vector_over(from), *in = vector_over(to);
	int fd = scratch_file(argv[0], 0);
	pattern_fill(from, SIZE, 1);
	evict();
	must(writev(fd, out, PARTS) == (ssize_t)SIZE);
	must(lseek(fd, 0, SEEK_SET) == 0);
	must(readv(fd, in, PARTS) == (ssize_t)SIZE);
	pattern_must_hold("readv", to, SIZE, 1);
}

struct transfer {
	int fd;
	struct msghdr *msg;
};

static void advance(struct msghdr *msg, size_t n)
{
	while (n && msg->msg_iovlen) {
		size_t part = n < msg->msg_iov->iov_len ? n : msg->msg_iov->iov_len;
		msg->msg_iov->iov_base = (char *)msg->msg_iov->iov_base + part;
		msg->msg_iov->iov_len -= part;
		n -= part;
		if (!msg->msg_iov->iov_len) {
			msg->msg_iov++;
			msg->msg_iovlen--;
		}
	}
}

static void *receive(void *arg)
{
	struct transfer *t = arg;
	while (t->msg->msg_iovlen) {
		ssize_t n = recvmsg(t->fd, t->msg, 0);
		must(n > 0);
		advance(t->msg, (size_t)n);
	}
	return NULL;
}

static struct msghdr *message_over(char *data)
{
	struct msghdr *msg = must_alloc(PAGE);
	memset(msg, 0, sizeof(*msg));
	msg->msg_iov = vector_over(data);
	msg->msg_iovlen = PARTS;
	return msg;
}

static void messages(char **argv)
{
	(void)argv;
	int pair[2];
	pthread_t thread;
	char *from = must_alloc(SIZE), *to = must_alloc(SIZE);
	struct msghdr *out = message_over(from), *in = message_over(to);
	pattern_fill(from, SIZE, 1);
	evict();
	must(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	struct transfer t = { pair[1], in };
	must(!pthread_create(&thread, NULL, receive, &t));
	while (out->msg_iovlen) {
		ssize_t n = sendmsg(pair[0], out, 0);
		must(n > 0);
		advance(out, (size_t)n);
	}
	must(!pthread_join(thread, NULL));
	pattern_must_hold("recvmsg", to, SIZE, 1);
}

struct stream {
	int fd;
	char *to;
};

static void *drain(void *arg)
{
	struct stream *s = arg;
	all_io(read, s->fd, s->to, SIZE);
	return NULL;
}

static void pipes(char **argv)
{
	(void)argv;
	int ends[2];
	pthread_t thread;
	char *from = must_alloc(SIZE), *to = must_alloc(SIZE);
	pattern_fill(from, SIZE, 1);
	pattern_fill(to, SIZE, 2);
	must(!pipe(ends));
	struct stream s = { ends[0], to };
	must(!pthread_create(&thread, NULL, drain, &s));
	all_io(do_write, ends[1], from, SIZE);
	must(!pthread_join(thread, NULL));
	pattern_must_hold("pipe", to, SIZE, 1);
}

#define WORDS scaled(4096)

static void futex_wait_for(int *word, int value)
{
	for (;;) {
		int now = __atomic_load_n(word, __ATOMIC_ACQUIRE);
		if (now == value)
			return;
		syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
	}
}

static void futex_set(int *word, int value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
	must(syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) >= 0);
}

static void *answer_all(void *words)
{
	for (size_t i = 0; i < WORDS; i++) {
		int *word = (int *)((char *)words + i * PAGE);
		futex_wait_for(word, 1);
		futex_set(word, 2);
	}
	return NULL;
}

/* One futex a page, none of them resident when it is its turn; a wake-up that is lost hangs. */
static void futexes(char **argv)
{
	(void)argv;
	pthread_t thread;
	char *words = must_alloc(WORDS * PAGE);
	memset(words, 0, WORDS * PAGE);
	evict();
	must(!pthread_create(&thread, NULL, answer_all, words));
	for (size_t i = 0; i < WORDS; i++) {
		int *word = (int *)(words + i * PAGE);
		futex_set(word, 1);
		futex_wait_for(word, 2);
	}
	must(!pthread_join(thread, NULL));
	for (size_t i = 0; i < WORDS; i++)
		must(*(int *)(words + i * PAGE) == 2);
}

struct turnstile {
	pthread_mutex_t lock;
	pthread_cond_t moved;
	unsigned turn;
	char fill[4096];
};

#define TURNSTILES 2048 /* twice the budget of the test */

static struct turnstile *turnstiles[TURNSTILES];

static void *take_turns(void *odd)
{
	for (unsigned i = 0; i < scaled(20000); i++) {
		struct turnstile *t = turnstiles[i % scaled(TURNSTILES)];
		must(!pthread_mutex_lock(&t->lock));
		while (t->turn % 2 != (odd != NULL))
			must(!pthread_cond_wait(&t->moved, &t->lock));
		t->turn++;
		must(!pthread_cond_broadcast(&t->moved));
		must(!pthread_mutex_unlock(&t->lock));
	}
	return NULL;
}

static void mutexes(char **argv)
{
	(void)argv;
	pthread_t thread;
	struct turnstile *all = must_alloc(scaled(TURNSTILES) * sizeof(*all));
	memset(all, 0, scaled(TURNSTILES) * sizeof(*all));
	for (size_t i = 0; i < scaled(TURNSTILES); i++) {
		turnstiles[i] = &all[i];
		must(!pthread_mutex_init(&turnstiles[i]->lock, NULL) && !pthread_cond_init(&turnstiles[i]->moved, NULL));
	}
	evict();
	must(!pthread_create(&thread, NULL, take_turns, ""));
	take_turns(NULL);
	must(!pthread_join(thread, NULL));
	unsigned turns = 0;
	for (size_t i = 0; i < scaled(TURNSTILES); i++)
		turns += turnstiles[i]->turn;
	must(turns == 2 * scaled(20000));
}

static int press_stop;

static void *press(void *ballast)
{
	uint64_t seed = 1000;
	do {
		pattern_fill(ballast, SIZE / 2, ++seed);
		pattern_must_hold("ballast", ballast, SIZE / 2, seed);
	} while (!__atomic_load_n(&press_stop, __ATOMIC_ACQUIRE));
	return NULL;
}

/* The device reads and writes the pages directly while another thread pushes them out of the budget. */
static void direct_io(char **argv)
{
	pthread_t thread;
	size_t size = scaled(8 * MIB);
	char *data = must_alloc(size);
	int fd = scratch_file(argv[0], O_DIRECT);
	must(!pthread_create(&thread, NULL, press, must_alloc(SIZE / 2)));
	for (uint64_t seed = 1; seed < 4; seed++) {
		pattern_fill(data, size, seed);
		for (size_t off = 0; off < size; off += MIB)
			must(pwrite(fd, data + off, MIB, (off_t)off) == (ssize_t)MIB);
		memset(data, 0x55, size); /* to be overwritten: no fill that a check would miss */
		for (size_t off = 0; off < size; off += MIB)
			must(pread(fd, data + off, MIB, (off_t)off) == (ssize_t)MIB);
		pattern_must_hold("read with O_DIRECT", data, size, seed);
	}
	__atomic_store_n(&press_stop, 1, __ATOMIC_RELEASE);
	must(!pthread_join(thread, NULL));
}

/* Small structures that the kernel reads and fills in. */
static void structures(char **argv)
{
	size_t n = scaled(2000);
	struct record {
		char path[512];
		struct stat st;
		struct utsname uts;
		struct pollfd poll;
		struct timespec time;
		sigset_t set;
		char fill[2048];
	} *all = must_alloc(n * sizeof(*all));
	struct stat want;
	int fd = scratch_file(argv[0], 0);
	must(ftruncate(fd, 12345) == 0 && !fstat(fd, &want));
	for (size_t i = 0; i < n; i++)
		snprintf(all[i].path, sizeof(all[i].path), "%s/scratch", argv[0]);
	evict();
	for (size_t i = 0; i < n; i++) {
		must(!stat(all[i].path, &all[i].st) && !uname(&all[i].uts));
		all[i].poll = (struct pollfd){ .fd = fd, .events = POLLIN };
		must(poll(&all[i].poll, 1, 0) == 1);
		must(!clock_gettime(CLOCK_REALTIME, &all[i].time));
		must(!syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &all[i].set, 8));
	}
	evict();
	for (size_t i = 0; i < n; i++) {
		must(all[i].st.st_size == 12345 && all[i].st.st_ino == want.st_ino);
		must(!strcmp(all[i].uts.sysname, "Linux") && all[i].poll.revents == POLLIN && all[i].time.tv_sec > 0);
	}
}

static volatile sig_atomic_t handled;

static void on_signal(int number, siginfo_t *info, void *context)
{
	char on_stack[3 * PAGE];
	(void)context;
	pattern_fill(on_stack, sizeof(on_stack), 5);
	pattern_must_hold("alternate stack", on_stack, sizeof(on_stack), 5);
	if (number == SIGUSR1 && info->si_pid == getpid())
		handled++;
}

static void signal_stack(char **argv)
{
	(void)argv;
	stack_t stack = { .ss_sp = must_alloc(MIB), .ss_size = MIB };
	struct sigaction act = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	char *data = must_alloc(SIZE);
	must(!sigaltstack(&stack, NULL) && !sigaction(SIGUSR1, &act, NULL));
	for (int i = 1; i <= 4; i++) {
		pattern_fill(data, SIZE, (uint64_t)i); /* pushes the stack's pages out */
		must(!raise(SIGUSR1));
		must(handled == i);
		pattern_must_hold("after the handler", data, SIZE, (uint64_t)i);
	}
}

static uint64_t descend(unsigned depth, uint64_t seed)
{
	char frame[2 * PAGE];
	pattern_fill(frame, sizeof(frame), seed + depth);
	uint64_t below = depth ? descend(depth - 1, seed) : 0;
	pattern_must_hold("stack frame", frame, sizeof(frame), seed + depth);
	return below + 1;
}

static void *on_remote_stack(void *arg)
{
	for (uint64_t i = 0; i < 4; i++)
		must(descend((unsigned)scaled(500), (uintptr_t)arg + i) == scaled(500) + 1);
	return arg;
}

static void thread_stacks(char **argv)
{
	(void)argv;
	enum { THREADS = 6 };
	pthread_t thread[THREADS];
	for (uintptr_t i = 0; i < THREADS; i++) {
		pthread_attr_t attr;
		must(!pthread_attr_init(&attr) && !pthread_attr_setstack(&attr, must_alloc(8 * MIB), 8 * MIB));
		must(!pthread_create(&thread[i], &attr, on_remote_stack, (void *)(i * 1000)));
	}
	for (uintptr_t i = 0; i < THREADS; i++) {
		void *got;
		must(!pthread_join(thread[i], &got) && got == (void *)(i * 1000));
	}
}

static const struct scene scenes[] = {
	{ "write", write_file },
	{ "read", read_file },
	{ "vectors", vectors },
	{ "messages", messages },
	{ "pipes", pipes },
	{ "futexes", futexes },
	{ "mutexes", mutexes },
	{ "direct-io", direct_io },
	{ "structures", structures },
	{ "signal-stack", signal_stack },
	{ "thread-stacks", thread_stacks },
	{ NULL, NULL },
};

int main(int argc, char **argv)
{
	(void)argc;
	return play_scene(scenes, argv);
}
