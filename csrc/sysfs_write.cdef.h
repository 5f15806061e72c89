/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the write helper's user sees; read by the compiler and by cffi, so without preprocessor
 * lines. */

/* What the helper is at; it stays where it is when the helper fails, hangs or is killed. */
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
	int32_t errnum; /* why the stage failed, 0 while it has not */
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
 * ends.
 *
 * The process has a session of its own, no descriptor but the two directories, sends no SIGCHLD
 * when it ends and is no child that wait(2) for any child would find.  Its lock is freed by the
 * kernel when the write is over, whoever is left to see that.  The request is copied.
 *
 * A pidfd, or -errno.  *result is to be given to phd_write_end once the process has ended, and
 * never before: the process stands on the memory around it.
 */
int phd_write_start(const struct phd_write_request *req, const struct phd_write_result **result);

/* Free what phd_write_start made. */
void phd_write_end(const struct phd_write_result *result);
