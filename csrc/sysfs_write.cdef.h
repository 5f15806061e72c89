/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The interface of the write helper; read by the compiler and by cffi, so without preprocessor
 * lines. */

/* The helper's current step; it does not change any more after a failure, a hang or a kill. */
enum phd_write_stage {
	PHD_STAGE_ISOLATE, /* leave the session, close what was inherited */
	PHD_STAGE_LOCK,	   /* take the device's in-flight lock */
	PHD_STAGE_OPEN,	   /* open the attribute */
	PHD_STAGE_WRITE,   /* write the value */
	PHD_STAGE_DONE,
};

/* In memory shared with the helper. */
struct phd_write_result {
	int32_t stage;
	int32_t errnum; /* why the step failed, 0 if it has not */
	int64_t count;	/* what write(2) returned */
	int32_t pid;
};

struct phd_write_request {
	int dir_fd;	       /* the attribute's directory */
	const char *name;      /* the attribute */
	int lock_dir_fd;       /* the directory of in-flight locks */
	const char *lock_name; /* the device's file in it */
	const void *value;
	size_t size;
};

/*
 * Start a process that takes the lock, opens the attribute, writes the value with one write(2) and
 * exits.
 *
 * The process has its own session and only the descriptors of the two directories.  It sends no
 * SIGCHLD, and a wait(2) for any child does not find it.  The kernel releases its lock when the
 * write is over, even if no other process is left.  The request is copied.
 *
 * Returns a pidfd, or -errno.  Pass *result to phd_write_end once the process has ended, and never
 * before: the process uses the memory around it.
 */
int phd_write_start(const struct phd_write_request *req, const struct phd_write_result **result);

/* Free the memory of phd_write_start. */
void phd_write_end(const struct phd_write_result *result);
