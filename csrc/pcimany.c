// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Many small questions about paths in one call.  Questions about neighbours share a descriptor of
 * their directory, so that the path to it is walked once.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "pciscan_internal.h"

#define DIRECTORY_MAX 1024 /* bytes of a path; a longer one is walked at each question */
#define LISTING_SIZE  8192

struct asking {
	int root_fd; /* -1: the live host */
	int top_fd;  /* the directory of the question before; top_error where it could not be opened
		      */
	int top_error;
	size_t top_length; /* 0: none */
	char top[DIRECTORY_MAX];
	const struct phd_bounds *bounds;
	char *out;
	size_t left;
};

static int open_path(const struct asking *ask, const char *path, int flags)
{
	int fd;

	if (ask->root_fd >= 0)
		return phd_open_inside(ask->root_fd, path, flags);
	fd = open(path, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* The length of a path's directory; 0 if the path has none, or an end that is not a name. */
static size_t directory_length(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!slash || !strcmp(slash, "/") || !strcmp(slash, "/.") || !strcmp(slash, "/.."))
		return 0;
	return (size_t)(slash - path);
}

/*
 * Enter the directory of a path: 0, or 1 if it is not worth a descriptor because the next question
 * is about another one, or -errno.
 */
static int enter(struct asking *ask, const char *path, const char *next)
{
	size_t length = directory_length(path);

	if (length && length == ask->top_length && !memcmp(path, ask->top, length))
		return ask->top_error;
	if (!length || length >= sizeof(ask->top) || !next || directory_length(next) != length ||
	    memcmp(path, next, length))
		return 1;
	phd_close(&ask->top_fd);
	memcpy(ask->top, path, length);
	ask->top[length] = '\0';
	ask->top_length = length;
	ask->top_fd = open_path(ask, ask->top, O_PATH | O_DIRECTORY);
	ask->top_error = ask->top_fd < 0 ? ask->top_fd : 0;
	return ask->top_error;
}

static int answer_status(const struct asking *ask, const char *path, const char *name,
			 struct phd_answer *answer)
{
	PHD_AUTO_CLOSE int fd = -1;
	struct stat status;

	if (name && fstatat(ask->top_fd, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	if (!name || S_ISLNK(status.st_mode)) {
		fd = open_path(ask, path, O_PATH);
		if (fd < 0 || fstat(fd, &status) < 0)
			return fd < 0 ? fd : -errno;
	}
	answer->inode = status.st_ino;
	answer->device = status.st_rdev;
	answer->mode = status.st_mode;
	return 0;
}

static int open_regular(const struct asking *ask, const char *path, const char *name)
{
	PHD_AUTO_CLOSE int path_fd = -1;
	int fd = name ? phd_open_regular_at(ask->top_fd, name) : -ELOOP;

	if (fd != -ELOOP)
		return fd;
	path_fd = open_path(ask, path, O_PATH);
	return path_fd < 0 ? path_fd : phd_reopen_regular(path_fd);
}

/* One read: the kernel returns an attribute in one piece. */
static int answer_file(struct asking *ask, const char *path, const char *name,
		       struct phd_answer *answer)
{
	PHD_AUTO_CLOSE int fd = open_regular(ask, path, name);
	ssize_t n;

	if (fd < 0)
		return fd;
	n = read(fd, ask->out, ask->bounds->bytes + 1);
	if (n < 0)
		return -errno;
	answer->size = (uint32_t)n;
	return (size_t)n > ask->bounds->bytes ? -EFBIG : 0;
}

static int answer_link(struct asking *ask, const char *path, const char *name,
		       struct phd_answer *answer)
{
	PHD_AUTO_CLOSE int fd = -1;
	ssize_t n;

	if (!name) {
		fd = open_path(ask, path, O_PATH | O_NOFOLLOW);
		if (fd < 0)
			return fd;
	}
	n = readlinkat(name ? ask->top_fd : fd, name ? name : "", ask->out, PHD_LINK_MAX);
	if (n < 0) /* ENOENT: the name is empty, and the file is not a link */
		return !name && errno == ENOENT ? -EINVAL : -errno;
	answer->size = (uint32_t)n;
	return n == PHD_LINK_MAX ? -ENAMETOOLONG : 0;
}

/* Names that start with a dot are left out, as sysfs has none. */
static int answer_names(struct asking *ask, const char *path, struct phd_answer *answer)
{
	PHD_AUTO_CLOSE int fd = open_path(ask, path, O_RDONLY | O_DIRECTORY);
	char buffer[LISTING_SIZE] __attribute__((aligned(8)));
	uint32_t steps = 0, size = 0, names = 0;
	struct phd_dents dents = {
		.fd = fd, .buffer = buffer, .size = sizeof(buffer), .steps = &steps};
	const char *name;
	int ret;

	if (fd < 0)
		return fd;
	while ((name = phd_next_name(&dents, &ret))) {
		size_t length = strlen(name) + 1;

		if (++names > ask->bounds->names)
			return -EFBIG;
		if (size + length > ask->left)
			return -ENOBUFS;
		memcpy(ask->out + size, name, length);
		size += (uint32_t)length;
	}
	answer->size = size;
	return ret;
}

static int answer_one(struct asking *ask, char kind, const char *path, const char *next,
		      struct phd_answer *answer)
{
	int ret = kind == PHD_ASK_NAMES ? 1 : enter(ask, path, next);
	const char *name = ret == 0 ? path + ask->top_length + 1 : NULL;

	if (ret < 0)
		return ret;
	switch (kind) {
	case PHD_ASK_STATUS:
		return answer_status(ask, path, name, answer);
	case PHD_ASK_FILE:
		return answer_file(ask, path, name, answer);
	case PHD_ASK_LINK:
		return answer_link(ask, path, name, answer);
	default:
		return answer_names(ask, path, answer);
	}
}

/* Room for any file and any link. */
static bool has_room(const struct asking *ask)
{
	return ask->left > ask->bounds->bytes && ask->left >= PHD_LINK_MAX;
}

size_t phd_ask(const char *root, char kind, const char *paths, size_t count,
	       const struct phd_bounds *bounds, struct phd_answer *answers, char *out, size_t size)
{
	PHD_AUTO_CLOSE int root_fd = -1;
	struct asking ask = {.top_fd = -1, .bounds = bounds, .out = out, .left = size};
	size_t done = 0;

	if (*root)
		root_fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	ask.root_fd = root_fd;
	for (int failed = *root && root_fd < 0 ? -errno : 0; done < count && has_room(&ask);
	     done++) {
		const char *next = paths + strlen(paths) + 1;
		struct phd_answer *answer = &answers[done];

		*answer = (struct phd_answer){0};
		answer->result = failed ? failed
					: answer_one(&ask, kind, paths,
						     done + 1 < count ? next : NULL, answer);
		if (answer->result == -ENOBUFS)
			break;
		ask.out += answer->size;
		ask.left -= answer->size;
		paths = next;
	}
	phd_close(&ask.top_fd);
	return done;
}
