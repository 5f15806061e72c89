/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Open paths below a root that may contain untrusted links; each call returns a descriptor or
 * -errno. */
#ifndef PHD_PCIROOT_H
#define PHD_PCIROOT_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>

#include "pciscan.h"

/* For regular files; O_NONBLOCK in case a FIFO replaces the file before the open. */
#define PHD_FILE_FLAGS (O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)

/* With O_PATH any entry, including a final link with O_NOFOLLOW; else a directory to list. */
int phd_open_inside(int root_fd, const char *path, int flags);
/*
 * Open the file of an O_PATH descriptor for reading; -EISDIR for a directory, -EMEDIUMTYPE for any
 * other non-regular file.  Only regular files are opened: opening a device may have effects.
 */
int phd_reopen_regular(int path_fd);
/* Open a file not reached through a link, with fewer calls; -ELOOP for a link or if unsure. */
int phd_open_regular_at(int fd, const char *path);

/* Open a directory for listing, not reached through a link; -ELOOP as above. */
int phd_open_directory_at(int fd, const char *path);

#endif
