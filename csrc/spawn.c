// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A program that runs as another user, started from a threaded process.
 *
 * Between fork and exec only this code runs, and it only makes system calls: no Python, no malloc,
 * no lock that another thread may hold.  The memory is copied (fork), not shared (vfork,
 * posix_spawn): a process that has become another user must not share root's memory.
 *
 * It does what subprocess.Popen(user=) leaves out: it empties the bounding set, which only root can
 * do, so before the user changes, and it sets no_new_privs; without that, a setuid file of root
 * would give all privileges back.
 */
#define _GNU_SOURCE
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FIRST_KEPT	 3
#define MANY_DESCRIPTORS (1u << 20)
#define EXIT_FAILED	 127

#ifndef SYS_close_range
#define SYS_close_range 436 /* since 5.9, the same everywhere */
#endif

#ifndef SYS_clone3
#define SYS_clone3 435 /* since 5.3, the same everywhere */
#endif

/* struct clone_args of Linux 5.3; later fields are zero if left out. */
struct clone_args_v0 {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
};

/*
 * The bare calls: those of libc change every thread of the process, and this one has only one.
 * The first calls of 32-bit machines had 16-bit ids.
 */
#ifdef SYS_setresuid32
#define PHD_SETGROUPS SYS_setgroups32
#define PHD_SETRESGID SYS_setresgid32
#define PHD_SETRESUID SYS_setresuid32
#else
#define PHD_SETGROUPS SYS_setgroups
#define PHD_SETRESGID SYS_setresgid
#define PHD_SETRESUID SYS_setresuid
#endif

static int result_of(long ret)
{
	return ret < 0 ? -errno : 0;
}

/*
 * Fork into a new PID namespace, whose processes all end with the first one; a plain fork without
 * permission (EPERM), in too many nested namespaces (ENOSPC), or without the call.
 */
static pid_t fork_contained(void)
{
	struct clone_args_v0 args = {.flags = CLONE_NEWPID, .exit_signal = SIGCHLD};
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));

	return pid < 0 ? fork() : pid;
}

/* Fork with every signal blocked: no handler of the importer runs in the copy. */
static pid_t fork_blocked(sigset_t *before, int is_contained)
{
	sigset_t all;
	pid_t pid;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, before);
	pid = is_contained ? fork_contained() : fork();
	if (pid != 0) {
		int errnum = errno;

		pthread_sigmask(SIG_SETMASK, before, NULL);
		errno = errnum;
	}
	return pid;
}

/* An ignored signal stays ignored across an exec; Python ignores SIGPIPE. */
static void forget_signals(void)
{
	struct sigaction action = {.sa_handler = SIG_DFL};
	sigset_t none;

	for (int number = 1; number < NSIG; number++)
		sigaction(number, &action, NULL); /* fails for SIGKILL and SIGSTOP, which is fine */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static void close_each(unsigned int first, unsigned int last)
{
	struct rlimit limit;
	unsigned int end = MANY_DESCRIPTORS;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_max < end)
		end = (unsigned int)limit.rlim_max;
	for (unsigned int fd = first; fd <= last && fd < end; fd++)
		close((int)fd);
}

static int close_between(unsigned int first, unsigned int last)
{
	if (first > last)
		return 0;
	if (syscall(SYS_close_range, first, last, 0) == 0)
		return 0;
	if (errno != ENOSYS)
		return -errno;
	close_each(first, last); /* before Linux 5.9 */
	return 0;
}

/* Close all from FIRST_KEPT on, except an ascending list and one more, at any position in it. */
static int close_others(const int *keep, size_t n_keep, int more)
{
	unsigned int next = FIRST_KEPT;
	int ret = 0;

	for (size_t i = 0; i <= n_keep && ret == 0; i++) {
		unsigned int end = i < n_keep ? (unsigned int)keep[i] : ~0u;

		if (more >= 0 && (unsigned int)more >= next && (unsigned int)more < end) {
			if ((unsigned int)more > next)
				ret = close_between(next, (unsigned int)more - 1);
			next = (unsigned int)more + 1;
		}
		if (ret == 0 && i < n_keep && end > next)
			ret = close_between(next, end - 1);
		if (ret == 0 && i == n_keep)
			ret = close_between(next, ~0u);
		next = end + 1;
	}
	return ret;
}

static int inherit_standard(int out_fd)
{
	int empty = open("/dev/null", O_RDONLY | O_CLOEXEC);

	if (empty < 0)
		return -errno;
	if (dup2(out_fd, STDOUT_FILENO) < 0 || dup2(out_fd, STDERR_FILENO) < 0 ||
	    dup2(empty, STDIN_FILENO) < 0)
		return -errno;
	return 0;
}

static int inherit(const struct phd_spawn_request *req, int report_fd)
{
	int ret;

	for (size_t i = 0; i < req->n_keep; i++)
		if (req->keep[i] < (i ? req->keep[i - 1] + 1 : FIRST_KEPT))
			return -EBADF;
	if (req->out_fd < FIRST_KEPT || report_fd < FIRST_KEPT)
		return -EBADF;
	ret = inherit_standard(req->out_fd);
	if (ret == 0)
		ret = close_others(req->keep, req->n_keep, report_fd);
	for (size_t i = 0; i < req->n_keep && ret == 0; i++)
		ret = result_of(fcntl(req->keep[i], F_SETFD, 0));
	return ret;
}

/* The set that limits what a file can grant; EINVAL comes after the last capability. */
static int empty_bounding_set(void)
{
	for (unsigned long capability = 0; prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0;)
		capability++;
	return errno == EINVAL ? 0 : -errno;
}

static int drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};

	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
		return -errno; /* EINVAL: before Linux 4.3 */
	return result_of(syscall(SYS_capset, &header, none));
}

/* Irrevocable: sets the real, effective and saved ids, and the file system's with them. */
static int become(const struct phd_user *user)
{
	int ret = empty_bounding_set();

	if (ret == 0)
		ret = result_of(syscall(PHD_SETGROUPS, user->n_groups, user->groups));
	if (ret == 0)
		ret = result_of(syscall(PHD_SETRESGID, user->gid, user->gid, user->gid));
	if (ret == 0)
		ret = result_of(syscall(PHD_SETRESUID, user->uid, user->uid, user->uid));
	if (ret == 0)
		ret = drop_capabilities();
	if (ret == 0)
		ret = result_of(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	return ret;
}

static int limit_memlock(const uint64_t *memlock)
{
	struct rlimit limit = {.rlim_cur = (rlim_t)memlock[0], .rlim_max = (rlim_t)memlock[1]};

	return result_of(setrlimit(RLIMIT_MEMLOCK, &limit));
}

static int limit_to(int resource, uint64_t value)
{
	struct rlimit limit = {.rlim_cur = (rlim_t)value, .rlim_max = (rlim_t)value};
	struct rlimit now;

	if (getrlimit(resource, &now) == 0 && now.rlim_max < limit.rlim_max)
		limit.rlim_cur = limit.rlim_max = now.rlim_max; /* only root can raise it */
	return result_of(setrlimit(resource, &limit));
}

static int limit_all(const struct phd_bounds *bounds)
{
	int ret = limit_to(RLIMIT_CPU, bounds->cpu_s);

	if (ret == 0)
		ret = limit_to(RLIMIT_AS, bounds->address_bytes);
	if (ret == 0)
		ret = limit_to(RLIMIT_FSIZE, 0);
	if (ret == 0)
		ret = limit_to(RLIMIT_CORE, 0);
	if (ret == 0 && bounds->n_processes)
		ret = limit_to(RLIMIT_NPROC, bounds->n_processes);
	return ret;
}

/* Called after the user has changed, because that change clears the parent-death signal. */
static int bind_to_parent(void)
{
	int ret = result_of(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));

	return ret == 0 ? result_of(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)) : ret;
}

static _Noreturn void fail(int report_fd, enum phd_spawn_stage stage, int errnum)
{
	struct phd_spawn_error error = {.stage = (int32_t)stage, .errnum = errnum};

	/* If the report cannot be written, the exit status is the only answer. */
	_exit(write(report_fd, &error, sizeof(error)) < 0 ? EXIT_FAILED - 1 : EXIT_FAILED);
}

static _Noreturn void run_child(const struct phd_spawn_request *req, int report_fd)
{
	int ret;

	setsid();
	umask(077);
	ret = inherit(req, report_fd);
	if (ret == 0)
		ret = result_of(chdir("/"));
	if (ret < 0)
		fail(report_fd, PHD_SPAWN_DESCRIPTORS, -ret);
	ret = req->memlock ? limit_memlock(req->memlock) : 0;
	if (ret < 0)
		fail(report_fd, PHD_SPAWN_LIMIT, -ret);
	ret = req->bounds ? limit_all(req->bounds) : 0;
	if (ret < 0)
		fail(report_fd, PHD_SPAWN_BOUNDS, -ret);
	ret = req->user ? become(req->user) : 0;
	if (ret == 0 && req->bounds)
		ret = bind_to_parent();
	if (ret < 0)
		fail(report_fd, PHD_SPAWN_USER, -ret);
	forget_signals();
	execve(req->file, req->argv, req->envp);
	fail(report_fd, PHD_SPAWN_EXEC, errno);
}

/* The child's report before its exec, which closes the pipe; empty after a success. */
static int read_report(int fd, struct phd_spawn_error *error)
{
	ssize_t n;

	do
		n = read(fd, error, sizeof(*error));
	while (n < 0 && errno == EINTR);
	return n == sizeof(*error) ? -1 : 0;
}

static int set_error(struct phd_spawn_error *error, int errnum)
{
	error->stage = PHD_SPAWN_FORK;
	error->errnum = errnum;
	return -1;
}

static void reap(pid_t pid)
{
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		continue;
}

int phd_spawn(const struct phd_spawn_request *req, struct phd_spawn_error *error)
{
	int report[2], failed;
	sigset_t before;
	pid_t pid;

	if (pipe2(report, O_CLOEXEC) < 0)
		return set_error(error, errno);
	pid = fork_blocked(&before, req->bounds != NULL);
	if (pid == 0)
		run_child(req, report[1]);
	failed = pid < 0 ? set_error(error, errno) : 0;
	close(report[1]);
	if (pid > 0)
		failed = read_report(report[0], error);
	close(report[0]);
	if (failed && pid > 0)
		reap(pid);
	return failed ? -1 : (int)pid;
}

static _Noreturn void answer(const struct phd_access *files, size_t n_files,
			     const struct phd_user *user, int out_fd)
{
	setsid();
	if (out_fd < FIRST_KEPT || close_others(NULL, 0, out_fd) < 0 || (user && become(user) < 0))
		_exit(EXIT_FAILED);
	forget_signals();
	for (size_t i = 0; i < n_files; i++) {
		int32_t errnum =
			faccessat(AT_FDCWD, files[i].path, files[i].mode, 0) < 0 ? errno : 0;

		if (write(out_fd, &errnum, sizeof(errnum)) != sizeof(errnum))
			_exit(EXIT_FAILED);
	}
	_exit(0);
}

int phd_access_start(const struct phd_access *files, size_t n_files, const struct phd_user *user,
		     int out_fd)
{
	sigset_t before;
	pid_t pid = fork_blocked(&before, 0);

	if (pid == 0)
		answer(files, n_files, user, out_fd);
	return pid < 0 ? -errno : (int)pid;
}
