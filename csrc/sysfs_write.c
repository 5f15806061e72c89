// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A write to sysfs that may never return, in a process that the caller need not wait for.
 *
 * The process runs in the importing process' memory, on its own stack.  Copying the page tables, as
 * fork does, took 43 ms in a process of 1 GB, and 190 ms of page faults afterwards in the importer;
 * this takes under 0.1 ms at any size.  Starting a program instead (vfork and exec) took twice as
 * long, and would need an installed program besides the library.  CLONE_VFORK is not used: it would
 * stop the caller for as long as the write hangs.
 *
 * So the helper must leave no trace in that memory: it only makes bare system calls, and only
 * accesses its own block.  It uses no errno, no libc call (the dynamic linker would bind its
 * first use), no stack protector (whose value is in the storage of a thread that may have ended),
 * and no signal handler.  The importer's end does not end the helper: exit_group ends one thread
 * group, and the memory is freed with its last user.
 *
 * On a machine without bare system calls the memory is copied, as by fork.
 */
#define _GNU_SOURCE
#include "sysfs_write.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "rawcall.h"

#define MANY_DESCRIPTORS (1u << 20)
#define STACK_SIZE	 (size_t)(1 << 16) /* a multiple of every page size */
#define GUARD_SIZE	 (size_t)(1 << 16)

/* The exit signal is 0: the importer gets no SIGCHLD. */
#define CLONE_FLAGS (CLONE_PIDFD | (PHD_HAVE_RAWCALL ? CLONE_VM : 0))

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000 /* linux/sched.h, since 5.2 */
#endif
#ifndef SYS_close_range
#define SYS_close_range 436 /* since 5.9, the same everywhere */
#endif

/* The helper's data: above its stack, with a guard page below that the stack cannot cross. */
struct block {
	struct phd_write_result result; /* first: the caller identifies the block by it */
	size_t mapped;
	pid_t manager;
	int dir_fd;
	int lock_dir_fd;
	size_t size;
	const char *name;
	const char *lock_name;
	char value[]; /* followed by the two names */
};

static PHD_BARE void close_each(unsigned int first, unsigned int last)
{
	struct rlimit64 limit;
	unsigned int end = MANY_DESCRIPTORS;

	if (phd_rawcall(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, (long)&limit) == 0 &&
	    limit.rlim_max < end)
		end = (unsigned int)limit.rlim_max;
	for (unsigned int fd = first; fd <= last && fd < end; fd++)
		phd_rawcall(SYS_close, (long)fd, 0, 0, 0);
}

static PHD_BARE int close_between(unsigned int first, unsigned int last)
{
	long ret;

	if (first > last)
		return 0;
	ret = phd_rawcall(SYS_close_range, (long)first, (long)last, 0, 0);
	if (ret != -ENOSYS)
		return (int)ret;
	close_each(first, last); /* before Linux 5.9 */
	return 0;
}

static PHD_BARE int keep_only(int a, int b)
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

static PHD_BARE void begin(struct block *block, enum phd_write_stage stage)
{
	__atomic_store_n(&block->result.stage, (int32_t)stage, __ATOMIC_RELEASE);
}

/* The descriptor stays open: only the end of the process releases the lock. */
static PHD_BARE long take_lock(const struct block *block)
{
	long fd = phd_rawcall(SYS_openat, block->lock_dir_fd, (long)block->lock_name,
			      O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

	return fd < 0 ? fd : phd_rawcall(SYS_flock, fd, LOCK_EX | LOCK_NB, 0, 0);
}

static PHD_BARE long perform(struct block *block)
{
	long ret;

	phd_rawcall(SYS_setsid, 0, 0, 0, 0);
	ret = keep_only(block->dir_fd, block->lock_dir_fd);
	if (ret < 0)
		return ret;
	begin(block, PHD_STAGE_LOCK);
	ret = take_lock(block);
	if (ret < 0)
		return ret;
	/* Until the lock was taken, a recovery after the manager's death would not have waited. */
	if (phd_rawcall(SYS_getppid, 0, 0, 0, 0) != block->manager)
		return -ECANCELED;
	begin(block, PHD_STAGE_OPEN);
	ret = phd_rawcall(SYS_openat, block->dir_fd, (long)block->name, O_WRONLY | O_CLOEXEC, 0);
	if (ret < 0)
		return ret;
	begin(block, PHD_STAGE_WRITE);
	ret = phd_rawcall(SYS_write, ret, (long)block->value, (long)block->size, 0);
	if (ret < 0)
		return ret;
	block->result.count = ret;
	begin(block, PHD_STAGE_DONE);
	return 0;
}

static PHD_BARE int run(void *arg)
{
	struct block *block = arg;

	block->result.pid = (int32_t)phd_rawcall(SYS_getpid, 0, 0, 0, 0);
	block->result.errnum = (int32_t)-perform(block);
	phd_rawcall(SYS_exit_group, 0, 0, 0, 0);
	__builtin_unreachable();
}

/* Shared memory, for a helper whose other memory is a copy. */
static struct block *make_block(const struct phd_write_request *req)
{
	size_t name = strlen(req->name) + 1, lock_name = strlen(req->lock_name) + 1;
	size_t size = GUARD_SIZE + STACK_SIZE + sizeof(struct block) + req->size + name + lock_name;
	char *bottom = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	struct block *block;
	char *names;

	if (bottom == MAP_FAILED)
		return NULL;
	mprotect(bottom, GUARD_SIZE, PROT_NONE); /* only a safety net: the stack use is known */
	block = (void *)(bottom + GUARD_SIZE + STACK_SIZE);
	names = block->value + req->size;
	block->mapped = size;
	block->manager = getpid();
	block->dir_fd = req->dir_fd;
	block->lock_dir_fd = req->lock_dir_fd;
	block->size = req->size;
	memcpy(block->value, req->value, req->size);
	block->name = memcpy(names, req->name, name);
	block->lock_name = memcpy(names + name, req->lock_name, lock_name);
	block->result.stage = PHD_STAGE_ISOLATE;
	return block;
}

/* Signals stay blocked in the helper: a handler of the importer must not run there. */
static int start(struct block *block)
{
	sigset_t all, before;
	int pidfd = -1, ret = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (clone(run, block, CLONE_FLAGS, block, &pidfd, NULL, NULL) < 0)
		ret = -errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return ret < 0 ? ret : pidfd;
}

int phd_write_start(const struct phd_write_request *req, const struct phd_write_result **result)
{
	struct block *block = make_block(req);
	int ret;

	*result = NULL;
	if (!block)
		return -errno;
	ret = start(block);
	if (ret < 0)
		phd_write_end(&block->result);
	else
		*result = &block->result;
	return ret;
}

void phd_write_end(const struct phd_write_result *result)
{
	const struct block *block = (const void *)result;

	munmap((char *)(uintptr_t)block - STACK_SIZE - GUARD_SIZE, block->mapped);
}
