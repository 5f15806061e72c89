/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening below a root, whose links may have been made by a stranger; each returns a descriptor or
 * -errno. */
#ifndef PHD_PCIROOT_H
#define PHD_PCIROOT_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>

#include "pciscan.h"

/* What is opened is a regular file; were it exchanged meanwhile, nobody waits for a FIFO's writer.
 */
#define PHD_FILE_FLAGS (O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)

/* With O_PATH what is there, links at the end too with O_NOFOLLOW; else a directory for its names.
 */
int phd_open_inside(int root_fd, const char *path, int flags);
/*
 * The file of an O_PATH descriptor for reading; -EISDIR, or -EMEDIUMTYPE for what is neither file
 * nor directory: a device may do something when it is opened, so nothing but a file is.
 */
int phd_reopen_regular(int path_fd);
/* A file that no link leads to, with fewer calls; -ELOOP when one does, or it cannot be told. */
int phd_open_regular_at(int fd, const char *path);

#endif
