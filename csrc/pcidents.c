// SPDX-License-Identifier: LGPL-2.1-or-later
#define _GNU_SOURCE
#include <string.h>
#include <sys/syscall.h>

#include "cleanup.h"
#include "pciscan_internal.h"

struct linux_dirent64 {
	uint64_t d_ino;
	int64_t d_off;
	unsigned short d_reclen;
	unsigned char d_type;
	char d_name[];
};

/* Append text to a path, after a slash; false if it does not fit */
static bool append(char *path, size_t size, const char *text)
{
	size_t used = strlen(path), length = strlen(text);

	if (used + length + 2 > size)
		return false;
	if (used)
		path[used++] = '/';
	memcpy(path + used, text, length + 1);
	return true;
}

/* An absolute link starts at the root. */
int phd_open_bus(int bus_fd, const struct phd_buffers *buffers, const char *dir, const char *name,
		 int flags)
{
	const char *parts[] = {buffers->root_fd < 0 ? "" : buffers->bus, dir, name};
	char path[2 * PHD_LINK_MAX] = "";
	int ret;

	for (int i = *name == '/' ? 2 : 0; i < 3; i++)
		if (*parts[i] && !append(path, sizeof(path), parts[i]))
			return -ENAMETOOLONG;
	if (buffers->root_fd >= 0)
		return phd_open_inside(buffers->root_fd, path, flags);
	ret = openat(bus_fd, path, flags | O_CLOEXEC);
	return ret < 0 ? -errno : ret;
}

/*
 * 1 if there are more names, 0 at the end.  Only an empty answer is the end: a pending signal cuts
 * a listing short, whatever room is left (filldir64, fs/readdir.c).
 */
static int refill(struct phd_dents *dents)
{
	if (dents->next < dents->filled)
		return 1;
	dents->filled = syscall(SYS_getdents64, dents->fd, dents->buffer, dents->size);
	dents->next = 0;
	if (dents->filled < 0)
		return -errno;
	return dents->filled > 0;
}

const char *phd_next_name(struct phd_dents *dents, int *ret)
{
	while ((*ret = refill(dents)) > 0) {
		struct linux_dirent64 *entry = (void *)(dents->buffer + dents->next);

		dents->next += entry->d_reclen;
		if (++*dents->steps > PHD_MAX_ENTRIES) {
			*ret = -EOVERFLOW;
			return NULL;
		}
		if (entry->d_name[0] != '.') {
			dents->type = entry->d_type;
			dents->inode = entry->d_ino;
			*ret = 0;
			return entry->d_name;
		}
	}
	return NULL;
}
