// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>

#include "cleanup.h"
#include "pciroot.h"
#include "pciscan.h"

int64_t phd_read_at(const char *root, const char *path, uint64_t offset, uint8_t *out, size_t size)
{
	PHD_AUTO_CLOSE int fd = phd_open_file(root, path);
	ssize_t n;

	if (fd < 0)
		return fd;
	do {
		n = pread(fd, out, size, (off_t)offset);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}
