// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Paths that never lead out of a root: a link to /etc is a link to ROOT/etc, and ROOT/.. is ROOT.
 *
 * The kernel resolves them (openat2 with RESOLVE_IN_ROOT, Linux 5.6).  If it cannot, or a sandbox
 * forbids it, the code below walks the path, one component at a time.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "cleanup.h"
#include "pciroot.h"

#ifndef SYS_openat2
#define SYS_openat2 437 /* the same for every architecture */
#endif

#define RESOLVE_NO_MAGICLINKS_ 0x02 /* linux/openat2.h */
#define RESOLVE_NO_SYMLINKS_   0x04
#define RESOLVE_BENEATH_       0x08
#define RESOLVE_IN_ROOT_       0x10

#define TRIES_MAX 64   /* while directories of the path are being renamed */
#define DEPTH_MAX 64   /* sysfs itself has 20 */
#define LINKS_MAX 40   /* MAXSYMLINKS of the kernel */
#define PATH_SIZE 4096 /* PATH_MAX of the kernel */
#define NAME_SIZE 256

struct how {
	uint64_t flags;
	uint64_t mode;
	uint64_t resolve;
};

/* A walk from the root down: fds[0] is the root and belongs to the caller. */
struct walk {
	int fds[DEPTH_MAX];
	int depth;
	int links;
	char todo[PATH_SIZE];
};

static int open_resolved(int fd, const char *path, int flags, uint64_t resolve)
{
	struct how how = {.flags = (uint64_t)(flags | O_CLOEXEC), .resolve = resolve};
	long ret;

	for (int i = 0; i < TRIES_MAX; i++) {
		ret = syscall(SYS_openat2, fd, path, &how, sizeof(how));
		if (ret >= 0 || (errno != EAGAIN && errno != EXDEV))
			break;
	}
	return ret < 0 ? -errno : (int)ret;
}

/* The call is missing, a sandbox refuses it, or the tree changed meanwhile: EXDEV means that the
 * result was moved out of the root. */
static bool is_refused(int ret)
{
	return ret == -ENOSYS || ret == -EPERM || ret == -EAGAIN || ret == -EXDEV;
}

static void go_up(struct walk *walk, int depth)
{
	while (walk->depth > depth)
		phd_close(&walk->fds[walk->depth--]);
}

/* Take the first remaining component; 0 if there is none, *is_last if none follows. */
static int next_name(struct walk *walk, char *name, bool *is_last)
{
	char *start = walk->todo + strspn(walk->todo, "/"), *rest;
	size_t length = strcspn(start, "/");

	if (length >= NAME_SIZE)
		return -ENAMETOOLONG;
	memcpy(name, start, length);
	name[length] = '\0';
	rest = start + length;
	*is_last = *rest == '\0';
	memmove(walk->todo, rest, strlen(rest) + 1);
	return length > 0;
}

static int follow(struct walk *walk, int link_fd)
{
	char target[PATH_SIZE];
	ssize_t n = readlinkat(link_fd, "", target, sizeof(target));
	size_t rest = strlen(walk->todo);

	if (n < 0)
		return -errno;
	if (n == 0 || ++walk->links > LINKS_MAX)
		return n == 0 ? -ENOENT : -ELOOP;
	if ((size_t)n + rest + 1 > sizeof(walk->todo))
		return -ENAMETOOLONG;
	memmove(walk->todo + n, walk->todo, rest + 1);
	memcpy(walk->todo, target, (size_t)n);
	if (target[0] == '/')
		go_up(walk, 0);
	return 0;
}

static int go_down(struct walk *walk, const char *name, bool is_last, int flags)
{
	PHD_AUTO_CLOSE int fd =
		openat(walk->fds[walk->depth], name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct stat status;

	if (fd < 0 || fstat(fd, &status) < 0)
		return -errno;
	if (S_ISLNK(status.st_mode) && !(is_last && flags & O_NOFOLLOW))
		return follow(walk, fd);
	if (!S_ISDIR(status.st_mode) && (!is_last || flags & O_DIRECTORY))
		return -ENOTDIR;
	if (walk->depth + 1 == DEPTH_MAX)
		return -ENAMETOOLONG;
	walk->fds[++walk->depth] = fd;
	fd = -1;
	return 0;
}

static int walk_down(struct walk *walk, int flags)
{
	char name[NAME_SIZE];
	bool is_last;
	int ret;

	while ((ret = next_name(walk, name, &is_last)) > 0) {
		ret = 0;
		if (!strcmp(name, ".."))
			go_up(walk, walk->depth > 0 ? walk->depth - 1 : 0);
		else if (strcmp(name, "."))
			ret = go_down(walk, name, is_last, flags);
		if (ret < 0)
			break;
	}
	return ret;
}

int phd_walk_inside(int root_fd, const char *path, int flags)
{
	struct walk walk = {.fds = {root_fd}};
	size_t length = strlen(path);
	int ret, end;

	if (length >= sizeof(walk.todo))
		return -ENAMETOOLONG;
	memcpy(walk.todo, path, length + 1);
	ret = walk_down(&walk, flags);
	end = walk.fds[walk.depth];
	if (ret == 0 && flags & O_PATH)
		ret = fcntl(end, F_DUPFD_CLOEXEC, 0);
	else if (ret == 0)
		ret = openat(end, ".", flags | O_DIRECTORY | O_CLOEXEC);
	ret = ret == -1 ? -errno : ret;
	go_up(&walk, 0);
	return ret;
}

int phd_open_inside(int root_fd, const char *path, int flags)
{
	int ret = open_resolved(root_fd, *path ? path : ".", flags,
				RESOLVE_IN_ROOT_ | RESOLVE_NO_MAGICLINKS_);

	return is_refused(ret) ? phd_walk_inside(root_fd, path, flags) : ret;
}

static int open_again(int fd, int flags)
{
	char path[32] = "/proc/self/fd/", digits[16], *out = path + strlen(path);
	int n = 0, ret;

	do {
		digits[n++] = (char)('0' + fd % 10);
		fd /= 10;
	} while (fd);
	while (n > 0)
		*out++ = digits[--n];
	ret = open(path, flags);
	if (ret >= 0)
		return ret;
	/* The file exists, so only /proc can be missing: the file must not count as absent. */
	return errno == ENOENT ? -ENOSYS : -errno;
}

/* A directory has its own errno. */
static int check_regular(mode_t mode)
{
	if (S_ISREG(mode))
		return 0;
	return S_ISDIR(mode) ? -EISDIR : -EMEDIUMTYPE;
}

int phd_reopen_regular(int path_fd)
{
	struct stat status;
	int ret = fstat(path_fd, &status) < 0 ? -errno : check_regular(status.st_mode);

	return ret < 0 ? ret : open_again(path_fd, PHD_FILE_FLAGS);
}

int phd_open_regular_at(int fd, const char *path)
{
	struct stat status;
	int ret = fstatat(fd, path, &status, AT_SYMLINK_NOFOLLOW);

	if (ret < 0 || S_ISLNK(status.st_mode))
		return ret < 0 ? -errno : -ELOOP;
	ret = check_regular(status.st_mode);
	if (ret < 0)
		return ret;
	ret = open_resolved(fd, path, PHD_FILE_FLAGS | O_NOFOLLOW,
			    RESOLVE_BENEATH_ | RESOLVE_NO_SYMLINKS_);
	return is_refused(ret) ? -ELOOP : ret;
}

int phd_open_directory_at(int fd, const char *path)
{
	int ret = open_resolved(fd, path, O_RDONLY | O_DIRECTORY,
				RESOLVE_BENEATH_ | RESOLVE_NO_SYMLINKS_);

	return is_refused(ret) ? -ELOOP : ret;
}

int phd_open_below(const char *root, const char *path, int flags)
{
	PHD_AUTO_CLOSE int root_fd = -1;
	int fd;

	if (*root) {
		root_fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
		return root_fd < 0 ? -errno : phd_open_inside(root_fd, path, flags);
	}
	fd = open(path, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int phd_open_file(const char *root, const char *path)
{
	PHD_AUTO_CLOSE int fd = phd_open_below(root, path, O_PATH);

	return fd < 0 ? fd : phd_reopen_regular(fd);
}
