// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The directory that functions of a bus share, and where VFs that belong to it end.
 *
 * VFs are in their PF's directory, on its bus or on those that follow.  The buses below a bridge
 * have consecutive numbers (PCI-to-PCI Bridge 1.2, 3.2.5), so where functions begin that are not
 * below it, its VFs are over.  A root bus has no bridge that says so.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#include "cleanup.h"
#include "pciscan_internal.h"

/* Where the function's link leads, without its name; nowhere when it is no link to such a name. */
static void read_directory(const struct phd_scan *scan, uint64_t key, struct phd_directory *dir)
{
	char name[PHD_ADDRESS_MAX];
	size_t length = phd_format_address(key, name);
	ssize_t n;

	name[length] = '\0';
	dir->length = 0;
	n = readlinkat(scan->devices_fd, name, dir->path, sizeof(dir->path)) - (ssize_t)length - 1;
	if (n > 0 && (size_t)n + length + 1 < sizeof(dir->path) && dir->path[n] == '/' &&
	    !memcmp(dir->path + n + 1, name, length)) {
		dir->path[n] = '\0';
		dir->length = (size_t)n;
	}
}

static bool is_same(const struct phd_directory *a, const struct phd_directory *b)
{
	return a->length == b->length && !memcmp(a->path, b->path, a->length);
}

static bool is_below(const struct phd_directory *a, const struct phd_directory *b)
{
	return a->length > b->length && !memcmp(a->path, b->path, b->length) &&
	       a->path[b->length] == '/';
}

/* A bridge's directory is called as the bridge is, a root bus' as its domain and number. */
static bool is_bridge(const struct phd_directory *dir)
{
	const char *slash = dir->length ? memrchr(dir->path, '/', dir->length) : NULL;
	uint64_t key;

	return slash && phd_parse_address(slash + 1, &key);
}

static size_t end_of_bus(const struct phd_scan *scan, size_t index)
{
	uint64_t bus = scan->records[index].key >> 8;

	while (index < scan->count && scan->records[index].key >> 8 == bus)
		index++;
	return index;
}

/* Find the end of the current directory's functions, reading the link of the first of the next. */
static void look_ahead(struct phd_scan *scan)
{
	const struct phd_directory *here = &scan->directories[scan->here];
	struct phd_directory *next = &scan->directories[!scan->here];
	size_t end = scan->directory_end;

	next->length = 0;
	while (here->length && end < scan->count) {
		read_directory(scan, scan->records[end].key, next);
		if (!is_same(here, next))
			break;
		end = end_of_bus(scan, end);
		next->length = 0;
	}
	scan->directory_end = end;
	scan->is_closed =
		is_bridge(here) && (end == scan->count || (next->length && !is_below(next, here)));
}

/*
 * Mark those functions of a stranger's directory that are directories in it.  What is not found, in
 * a listing without end for one, is opened function by function.
 */
static void find_real(struct phd_scan *scan, size_t index)
{
	struct phd_dents dents = {
		.fd = scan->parent_fd,
		.buffer = scan->lent->scratch,
		.size = scan->lent->scratch_size,
		.steps = &scan->steps,
	};
	size_t left = scan->directory_end - index;
	struct phd_record *record;
	const char *name;
	uint64_t key;
	int ret;

	while (left && (name = phd_next_name(&dents, &ret))) {
		if (dents.type != DT_DIR || !phd_parse_address(name, &key))
			continue;
		record = phd_find(scan, key);
		if (!record || record < scan->records + index ||
		    record >= scan->records + scan->directory_end)
			continue;
		record->flags |= PHD_FLAG_REAL;
		left--;
	}
}

/*
 * Whatever stands in the way, the function is still to be reached by its entry in devices/, so
 * there is nothing to report.
 */
static void open_directory(struct phd_scan *scan, size_t index)
{
	const struct phd_directory *dir = &scan->directories[scan->here];

	if (!dir->length)
		return;
	if (!scan->is_confined) {
		scan->parent_fd =
			openat(scan->devices_fd, dir->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
		return;
	}
	scan->parent_fd =
		phd_open_bus(-1, scan->lent, "devices", dir->path, O_RDONLY | O_DIRECTORY);
	if (scan->parent_fd >= 0)
		find_real(scan, index);
}

void phd_leave_bus(struct phd_scan *scan)
{
	phd_close(&scan->parent_fd);
}

void phd_reopen_bus(struct phd_scan *scan, uint64_t key)
{
	phd_leave_bus(scan);
	scan->is_closed = false;
	if (scan->is_confined)
		return;
	read_directory(scan, key, &scan->directories[scan->here]);
	open_directory(scan, 0);
}

/* One function alone is not worth a descriptor of its directory. */
int phd_enter_bus(struct phd_scan *scan, size_t index)
{
	uint64_t key = scan->records[index].key;
	int ret = phd_derive_vfs(scan);

	scan->bus = key >> 8;
	if (index < scan->directory_end)
		return ret;
	phd_leave_bus(scan);
	scan->directories[scan->here].length = 0;
	scan->here = !scan->here;
	scan->directory_end = end_of_bus(scan, index);
	if (!scan->is_crowd && index + 1 == scan->directory_end)
		return ret;
	if (!scan->directories[scan->here].length)
		read_directory(scan, key, &scan->directories[scan->here]);
	if (scan->is_crowd)
		look_ahead(scan);
	if (index + 1 < scan->directory_end)
		open_directory(scan, index);
	return ret;
}
