/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The interface for starting programs; read by the compiler and by cffi, so without preprocessor
 * lines. */

/* The step at which a new process failed; its errno is returned with it. */
enum phd_spawn_stage {
	PHD_SPAWN_FORK,	       /* create the process */
	PHD_SPAWN_DESCRIPTORS, /* pass the inherited descriptors, close the rest */
	PHD_SPAWN_LIMIT,       /* set the limit of locked memory */
	PHD_SPAWN_BOUNDS,      /* limit its resources */
	PHD_SPAWN_USER,	       /* become the user and give up every privilege */
	PHD_SPAWN_EXEC,	       /* execute the file */
};

struct phd_spawn_error {
	int32_t stage;
	int32_t errnum;
};

/* The user of the process; it has no capability, and no file can grant it one. */
struct phd_user {
	uint32_t uid;
	uint32_t gid;
	const uint32_t *groups;
	size_t n_groups;
};

/*
 * The limits of a program that only answers a query and writes no file.
 *
 * It dies with the thread that started it and gains no privilege from a file.  If a PID namespace
 * can be created, none of its children outlives it.
 */
struct phd_bounds {
	uint64_t cpu_s;
	uint64_t address_bytes;
	uint64_t n_processes; /* of its user in total; 0: the caller's limit */
};

struct phd_spawn_request {
	const char *file; /* an absolute path */
	char *const *argv;
	char *const *envp;
	int out_fd;	 /* standard output and error; standard input is empty */
	const int *keep; /* descriptors inherited under their own numbers: ascending, from 3 on */
	size_t n_keep;
	const struct phd_user *user; /* NULL: the caller's */
	const uint64_t *memlock;     /* soft and hard limit of locked bytes; NULL: the caller's */
	const struct phd_bounds *bounds; /* of a program that only answers; NULL: no limits */
};

/*
 * Start a program in its own session, in "/", with the umask 077 and without blocked, ignored or
 * handled signals.
 *
 * Returns its pid (a child of the caller, not reaped), or -1 with *error filled.
 */
int phd_spawn(const struct phd_spawn_request *req, struct phd_spawn_error *error);

struct phd_access {
	const char *path;
	int mode; /* R_OK | W_OK | X_OK */
};

/*
 * Start a process that asks the kernel, as a user, whether it may open files, and opens none.
 *
 * For each file it writes an errno (int32_t) to out_fd, 0 for "yes"; then it exits.  If it cannot
 * become the user, it writes nothing.  Returns its pid, or -errno.
 */
int phd_access_start(const struct phd_access *files, size_t n_files, const struct phd_user *user,
		     int out_fd);
