/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a starter of programs sees; read by the compiler and by cffi, so without preprocessor
 * lines. */

/* Where a new process failed; its errno comes along. */
enum phd_spawn_stage {
	PHD_SPAWN_FORK,	       /* no process could be made */
	PHD_SPAWN_DESCRIPTORS, /* hand over what it inherits, close the rest */
	PHD_SPAWN_LIMIT,       /* let it lock so much memory */
	PHD_SPAWN_BOUNDS,      /* bound what it may use */
	PHD_SPAWN_USER,	       /* become the user and give up every privilege */
	PHD_SPAWN_EXEC,	       /* execute the file */
};

struct phd_spawn_error {
	int32_t stage;
	int32_t errnum;
};

/* Whom the process runs as; without any capability, and none can be won back by a file. */
struct phd_user {
	uint32_t uid;
	uint32_t gid;
	const uint32_t *groups;
	size_t n_groups;
};

/*
 * What a program may use that is asked a question and writes no file.
 *
 * It dies with the thread that started it, a file gives it no privilege, and where a PID namespace
 * can be made, nothing that it starts outlives it.
 */
struct phd_bounds {
	uint64_t cpu_s;
	uint64_t address_bytes;
	uint64_t n_processes; /* of its user altogether; 0: as the caller */
};

struct phd_spawn_request {
	const char *file; /* an absolute path */
	char *const *argv;
	char *const *envp;
	int out_fd;	 /* standard output and error; standard input is empty */
	const int *keep; /* descriptors that are inherited as they are: ascending, from 3 on */
	size_t n_keep;
	const struct phd_user *user; /* NULL: as the caller */
	const uint64_t *memlock;     /* soft and hard limit of locked bytes; NULL: as the caller */
	const struct phd_bounds *bounds; /* of a program that only answers; NULL: a free one */
};

/*
 * Start a program in a session of its own, in "/", with the umask 077 and no signal blocked,
 * ignored or handled.
 *
 * Its pid (a child of the caller's, not reaped), or -1 with *error filled.
 */
int phd_spawn(const struct phd_spawn_request *req, struct phd_spawn_error *error);

struct phd_access {
	const char *path;
	int mode; /* R_OK | W_OK | X_OK */
};

/*
 * Start a process that asks the kernel, as a user, whether it may open files, and opens none.
 *
 * It writes an errno, an int32_t, for each of them to out_fd, 0 for "yes", and ends.  Its pid, or
 * -errno.  When it cannot become the user it writes nothing.
 */
int phd_access_start(const struct phd_access *files, size_t n_files, const struct phd_user *user,
		     int out_fd);
