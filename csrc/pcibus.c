// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The directory shared by the functions of a bus, and the end of the VFs that belong to it.
 *
 * VFs are in their PF's directory, on its bus or on the buses that follow.  The buses below a
 * bridge have consecutive numbers (PCI-to-PCI Bridge 1.2, 3.2.5), so the bridge's VFs end at the
 * first function that is not below it.  A root bus has no such bridge.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#include "cleanup.h"
#include "pciscan_internal.h"

/* The target of the function's link, without its name; empty if it does not end in that name. */
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

/* A bridge's directory has the bridge's name, a root bus' directory its domain and number. */
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

/* Find the end of the current directory's functions; reads the link of the next one's first. */
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
 * Mark the functions that are real directories in an untrusted directory.  Any function not found,
 * for example in an endless listing, is opened individually.
 */
static void find_real(struct phd_scan *scan, size_t index)
{
	struct phd_dents dents = {
		.fd = scan->parent_fd,
		.buffer = scan->buffers->scratch,
		.size = scan->buffers->scratch_size,
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
 * A failure needs no report: the function can still be reached through its entry in devices/.
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
		phd_open_bus(-1, scan->buffers, "devices", dir->path, O_RDONLY | O_DIRECTORY);
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

/* A single function is not worth a descriptor of its directory. */
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
