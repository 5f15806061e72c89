// SPDX-License-Identifier: LGPL-2.1-or-later
#define _GNU_SOURCE
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

/* 1 when there are names to look at, 0 at the end */
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
		if (++dents->steps > PHD_MAX_ENTRIES) {
			*ret = -EOVERFLOW;
			return NULL;
		}
		if (entry->d_name[0] != '.') {
			*ret = 0;
			return entry->d_name;
		}
	}
	return NULL;
}
