/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Guards: a descriptor that a function opened is closed on every path out of it. */
#ifndef PHD_CLEANUP_H
#define PHD_CLEANUP_H

#include <errno.h>
#include <unistd.h>

static inline void phd_close(int *fd)
{
	if (*fd >= 0) {
		int saved = errno;

		close(*fd);
		errno = saved;
	}
	*fd = -1;
}

#define PHD_AUTO_CLOSE __attribute__((cleanup(phd_close)))

#endif
