// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A write to sysfs that may never return, in a process that nobody has to wait for.
 *
 * Between clone and exit the helper makes system calls only: the importing process may have
 * threads, and a lock of its allocator can be held for ever in the copy.
 */
#define _GNU_SOURCE
#include "sysfs_write.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "cleanup.h"

#define MANY_DESCRIPTORS (1u << 20)

static int close_each(unsigned int first, unsigned int last)
{
	struct rlimit limit;
	unsigned int end = MANY_DESCRIPTORS;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_max < end)
		end = (unsigned int)limit.rlim_max;
	for (unsigned int fd = first; fd <= last && fd < end; fd++)
		close((int)fd);
	return 0;
}

static int close_between(unsigned int first, unsigned int last)
{
	if (first > last)
		return 0;
	if (syscall(SYS_close_range, first, last, 0) == 0)
		return 0;
	return errno == ENOSYS ? close_each(first, last) : -errno; /* before Linux 5.9 */
}

static int keep_only(int a, int b)
{
	unsigned int low = (unsigned int)(a < b ? a : b);
	unsigned int high = (unsigned int)(a < b ? b : a);
	int ret = 0;

	if (low > 0)
		ret = close_between(0, low - 1);
	if (ret == 0)
		ret = close_between(low + 1, high - 1);
	if (ret == 0)
		ret = close_between(high + 1, ~0u);
	return ret;
}

static void begin(struct phd_write_result *result, enum phd_write_stage stage)
{
	__atomic_store_n(&result->stage, (int32_t)stage, __ATOMIC_RELEASE);
}

/* The descriptor stays open: the end of the process frees the lock, and nothing else does. */
static int take_lock(const struct phd_write_request *req)
{
	int fd = openat(req->lock_dir_fd, req->lock_name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW,
			0600);

	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
		return -errno;
	return 0;
}

static int perform(const struct phd_write_request *req, struct phd_write_result *result)
{
	int ret, fd;

	setsid();
	ret = keep_only(req->dir_fd, req->lock_dir_fd);
	if (ret < 0)
		return ret;
	begin(result, PHD_STAGE_LOCK);
	ret = take_lock(req);
	if (ret < 0)
		return ret;
	begin(result, PHD_STAGE_OPEN);
	fd = openat(req->dir_fd, req->name, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	begin(result, PHD_STAGE_WRITE);
	result->count = write(fd, req->value, req->size);
	if (result->count < 0)
		return -errno;
	begin(result, PHD_STAGE_DONE);
	return 0;
}

/* As fork, but with a pidfd and without a signal to the parent at the end. */
static long fork_silently(int *pidfd)
{
	struct clone_args args = {
		.flags = CLONE_PIDFD,
		.pidfd = (uint64_t)(uintptr_t)pidfd,
	};
	long pid = syscall(SYS_clone3, &args, sizeof(args));

#if !defined(__s390__)			/* its clone takes the stack first */
	if (pid < 0 && errno == ENOSYS) /* some containers' seccomp filters know no clone3 */
		pid = syscall(SYS_clone, (unsigned long)CLONE_PIDFD, NULL, pidfd, NULL, NULL);
#endif
	return pid < 0 ? -errno : pid;
}

int phd_write_start(const struct phd_write_request *req, struct phd_write_result *result)
{
	sigset_t all, before;
	int pidfd = -1;
	long pid;

	*result = (struct phd_write_result){.stage = PHD_STAGE_ISOLATE};
	/* A handler of the importing process must not run in the helper. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pid = fork_silently(&pidfd);
	if (pid == 0) {
		result->pid = (int32_t)syscall(SYS_getpid);
		result->errnum = -perform(req, result);
		_exit(0);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return pid < 0 ? (int)pid : pidfd;
}
