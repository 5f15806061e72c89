/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef PHD_SYSFS_WRITE_H
#define PHD_SYSFS_WRITE_H

#include <stddef.h>
#include <stdint.h>

#include "sysfs_write.cdef.h"

#endif
