// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The facts of every function, with as few system calls as the host's shape allows.
 *
 * Following the link in devices/ costs more than reading the attributes, so functions on a bus
 * share one descriptor of their directory.  On a large host, VFs, drivers and the VFs' identity are
 * found in reverse.  These files are never opened: config (each dword costs a bus cycle and wakes
 * the device), uevent, driver_override and sriov_numvfs (they can wait for a stuck device).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "pciscan_internal.h"

#define ROW_OF_LARGE                                                                               \
	12 /* functions in a row with the same group, more than a device has without VFs: it is    \
	      listed instead of the next links */
#define BRIDGE_BASE_CLASS 0x06 /* PCI Code and ID Assignment 1.7; has no SR-IOV capability */

/* 1 if the function exists below fd, 0 if it does not */
static int is_there(struct phd_scan *scan, int fd)
{
	struct stat status;
	int ret;

	phd_attr(scan, ".");
	ret = fstatat(fd, scan->path, &status, 0);
	if (ret == 0)
		return 1;
	return phd_is_absent(errno) ? 0 : phd_fail_here(scan, -errno);
}

static int open_listed(struct phd_scan *scan)
{
	phd_attr(scan, ".");
	return phd_open_bus(-1, scan->buffers, "devices", scan->path, O_PATH | O_DIRECTORY);
}

/* 1 if the function exists through its link, 0 if it does not */
static int is_listed(struct phd_scan *scan)
{
	if (!scan->is_confined)
		return is_there(scan, scan->devices_fd);

	PHD_AUTO_CLOSE int fd = open_listed(scan);

	if (fd >= 0)
		return 1;
	return phd_is_absent(-fd) ? 0 : phd_fail_here(scan, fd);
}

/* 1 if the function's directory is still the opened one, 0 if it is gone, 2 if it was replaced */
static int is_same(struct phd_scan *scan)
{
	PHD_AUTO_CLOSE int fd = open_listed(scan);
	struct stat before, now;

	if (fd < 0)
		return phd_is_absent(-fd) ? 0 : phd_fail_here(scan, fd);
	if (fstat(fd, &now) < 0 || fstat(scan->function_fd, &before) < 0)
		return phd_fail_here(scan, -errno);
	return now.st_dev == before.st_dev && now.st_ino == before.st_ino ? 1 : 2;
}

/*
 * After an attribute or a link was absent: 1 if the function exists, 0 if it is gone, 2 if it must
 * be read again because another bus with the same number replaced its bus.
 */
static int confirm(struct phd_scan *scan)
{
	int ret;

	if (scan->function_fd >= 0)
		return is_same(scan);
	ret = is_there(scan, phd_here(scan));
	if (ret != 0 || scan->parent_fd < 0)
		return ret;
	ret = is_listed(scan);
	if (ret != 1)
		return ret;
	phd_reopen_bus(scan, scan->current);
	if (scan->parent_fd >= 0 && is_there(scan, scan->parent_fd) != 1)
		phd_leave_bus(scan);
	return 2;
}

static bool copy_ids(const struct phd_scan *scan, struct phd_record *record)
{
	const struct phd_record *from;

	if (!(record->flags & PHD_FLAG_SHARED))
		return false;
	from = &scan->records[record->class_code];
	record->class_code = 0;
	record->flags &= (uint16_t)~PHD_FLAG_SHARED;
	if (from->flags & PHD_FLAG_GONE)
		return false;
	record->vendor = from->vendor;
	record->device = from->device;
	record->subsystem_vendor = from->subsystem_vendor;
	record->subsystem_device = from->subsystem_device;
	record->class_code = from->class_code;
	record->have |=
		from->have & (PHD_HAVE_VENDOR | PHD_HAVE_DEVICE | PHD_HAVE_SUBSYSTEM_VENDOR |
			      PHD_HAVE_SUBSYSTEM_DEVICE | PHD_HAVE_CLASS);
	return true;
}

/* List a group instead of its functions' links, if the drivers' listings are trusted, too. */
static void note_row(struct phd_scan *scan, uint32_t group)
{
	scan->row = group == scan->row_group ? scan->row + 1 : 1;
	scan->row_group = group;
	if (scan->row == ROW_OF_LARGE && scan->is_crowd && scan->is_linked)
		phd_list_group(scan, group);
}

/* *is_sure is cleared if the function may be gone */
static int read_group(struct phd_scan *scan, struct phd_record *record, bool *is_sure)
{
	char target[PHD_LINK_MAX];
	const char *name;
	uint64_t group = 0;
	ssize_t n;

	if (record->have & PHD_HAVE_IOMMU_GROUP) { /* found by the group's listing */
		*is_sure = true;
		return 0;
	}
	n = phd_read_link(scan, phd_attr(scan, "iommu_group"), target, &name);
	if (n < 0)
		return (int)n;
	if (n == 0) {
		*is_sure = *is_sure && !scan->has_groups;
		return 0;
	}
	for (ssize_t i = 0; i < n; i++) {
		if (name[i] < '0' || name[i] > '9' || i > 9)
			return phd_fail_here(scan, -EBADMSG);
		group = group * 10 + (uint64_t)(name[i] - '0');
	}
	if (group >= PHD_NONE32)
		return phd_fail_here(scan, -EBADMSG);
	record->iommu_group = (uint32_t)group;
	record->have |= PHD_HAVE_IOMMU_GROUP;
	*is_sure = scan->has_groups = true;
	note_row(scan, record->iommu_group);
	return 0;
}

static int read_driver(struct phd_scan *scan, struct phd_record *record)
{
	char target[PHD_LINK_MAX];
	const char *name;
	ssize_t n;

	if (scan->are_drivers_known && (scan->is_linked || record->have & PHD_HAVE_DRIVER))
		return 0;
	n = phd_read_link(scan, phd_attr(scan, "driver"), target, &name);
	if (n <= 0)
		return (int)n;
	record->have |= PHD_HAVE_DRIVER;
	return phd_add_driver(scan, name, (size_t)n, &record->driver);
}

static int read_physfn(struct phd_scan *scan, struct phd_record *record)
{
	uint64_t pf;
	int ret = phd_read_address_link(scan, phd_attr(scan, "physfn"), &pf);

	if (ret < 0 || pf == PHD_NONE64)
		return ret;
	record->physfn = pf;
	record->have |= PHD_HAVE_PHYSFN;
	return 0;
}

static int read_sriov(struct phd_scan *scan, size_t index)
{
	struct phd_record *record = &scan->records[index];
	bool is_bridge =
		record->have & PHD_HAVE_CLASS && record->class_code >> 16 == BRIDGE_BASE_CLASS;
	int ret = 0;

	if (record->have & PHD_HAVE_PHYSFN)
		return 0;
	if (!scan->is_crowd || scan->doubtful_domain == record->key >> 16)
		ret = read_physfn(scan, record);
	if (ret < 0 || !scan->is_crowd || is_bridge || record->have & PHD_HAVE_PHYSFN)
		return ret;
	if (scan->is_closed && index + 1 == scan->directory_end)
		return 0; /* no later function can be its VF */
	return phd_find_vfs(scan, index);
}

/* 1 if an entry of the function's directory exists, 0 if it does not */
static int has_entry(struct phd_scan *scan, const char *name)
{
	struct stat status;

	if (fstatat(phd_here(scan), phd_attr(scan, name), &status, AT_SYMLINK_NOFOLLOW) == 0)
		return 1;
	return phd_is_absent(errno) ? 0 : phd_fail_here(scan, -errno);
}

static int read_inode(struct phd_scan *scan, struct phd_more *more)
{
	struct stat status;

	phd_attr(scan, ".");
	if (fstatat(phd_here(scan), scan->function_fd < 0 ? scan->path : ".", &status, 0) < 0)
		return phd_is_absent(errno) ? 0 : phd_fail_here(scan, -errno);
	more->inode = status.st_ino;
	return 0;
}

/* A driver that is not vfio-pci is one of its variants if it has made this directory. */
static int is_vfio(struct phd_scan *scan, const struct phd_record *record)
{
	if (!(record->have & PHD_HAVE_DRIVER))
		return 0;
	if (!strcmp(scan->buffers->names + record->driver, "vfio-pci"))
		return 1;
	return has_entry(scan, "vfio-dev");
}

/*
 * The kernel has reset_method since 5.15, for the functions that have reset; before, reset alone
 * tells that there is a method.
 */
static int read_resets(struct phd_scan *scan, struct phd_more *more)
{
	char text[PHD_METHODS_MAX];
	ssize_t n = phd_read_attr(scan, "reset_method", text, sizeof(text));
	int reset = n == -ENOENT ? has_entry(scan, "reset") : 1;

	if (reset < 0)
		return reset;
	more->flags |= reset ? PHD_MORE_RESET : 0;
	if (n == -ENOENT)
		return 0;
	if (n < 0 || n == sizeof(text))
		return phd_fail_here(scan, n < 0 ? (int)n : -EFBIG);
	if (memchr(text, '\0', (size_t)n)) /* it would be several names of the pool */
		return phd_fail_here(scan, -EBADMSG);
	return phd_add_name(scan, text, (size_t)n, &more->methods);
}

static int read_more(struct phd_scan *scan, const struct phd_record *record, struct phd_more *more)
{
	int vfio = is_vfio(scan, record);

	if (vfio < 0)
		return vfio;
	more->flags = vfio ? PHD_MORE_VFIO : 0;
	return read_resets(scan, more);
}

static int read_function(struct phd_scan *scan, size_t index, bool *is_sure)
{
	struct phd_record *record = &scan->records[index];
	struct phd_more *more = scan->buffers->more ? &scan->buffers->more[index] : NULL;
	bool is_copied = copy_ids(scan, record);
	int ret = more ? read_inode(scan, more) : 0;

	*is_sure = false;
	if (ret < 0)
		return ret;
	if (!is_copied) {
		ret = phd_read_ids(scan, record);
		if (ret < 0)
			return ret;
		*is_sure = ret == 0;
	}
	ret = read_group(scan, record, is_sure);
	if (ret == 0)
		ret = read_driver(scan, record);
	if (ret == 0)
		ret = read_sriov(scan, index);
	if (ret == 0 && more)
		ret = read_more(scan, record, more);
	return ret;
}

/* 1 if the function has to be read again */
static int try_function(struct phd_scan *scan, size_t index)
{
	bool is_sure;
	int ret;

	ret = phd_enter_function(scan, index);
	if (ret == 0) {
		ret = read_function(scan, index, &is_sure);
		if (ret < 0 || is_sure)
			return ret;
		ret = confirm(scan);
	} else if (ret == 1) {
		ret = 0;
	}
	if (ret == 0)
		scan->records[index].flags |= PHD_FLAG_GONE;
	return ret == 2 ? 1 : ret < 0 ? ret : 0;
}

static int visit(struct phd_scan *scan, size_t index)
{
	struct phd_record *record = &scan->records[index];
	struct phd_record before;
	int ret = 0;

	if (record->key >> 8 != scan->bus)
		ret = phd_enter_bus(scan, index);
	else if (record->key >= scan->pending_first)
		ret = phd_derive_vfs(scan);
	if (ret < 0)
		return ret;
	before = *record;
	ret = try_function(scan, index);
	if (ret == 1) {
		*record = before;
		ret = try_function(scan, index);
	}
	return ret < 0 ? ret : 0;
}

static void prepare(struct phd_scan *scan, const uint64_t *keys)
{
	scan->is_linked = scan->tuning->linked || phd_is_sysfs(scan->devices_fd) == 1;
	scan->bus = PHD_NONE64;
	scan->doubtful_domain = PHD_NONE64;
	scan->pending_first = PHD_NONE64;
	/* Links of sysfs, too: in an untrusted root, a link may reach another file system. */
	scan->is_confined = scan->buffers->root_fd >= 0;
	scan->is_crowd = scan->count >= scan->tuning->crowd;
	scan->buffers->names[0] = '\0';
	scan->names_used = 1;
	for (size_t i = 0; i < scan->count; i++)
		scan->records[i] = (struct phd_record){.key = keys[i]};
}

static void drop_gone(struct phd_scan *scan, struct phd_summary *summary)
{
	size_t kept = 0, grouped = 0;

	for (size_t i = 0; i < scan->count; i++) {
		if (scan->records[i].flags & PHD_FLAG_GONE)
			continue;
		grouped += !!(scan->records[i].have & PHD_HAVE_IOMMU_GROUP);
		if (scan->buffers->more)
			scan->buffers->more[kept] = scan->buffers->more[i];
		scan->records[kept++] = scan->records[i];
	}
	*summary = (struct phd_summary){
		.count = kept,
		.vanished = scan->count - kept,
		.names_used = scan->names_used,
		.grouped = grouped,
	};
}

int phd_fill(int bus_fd, const struct phd_tuning *tuning, const uint64_t *keys, size_t count,
	     struct phd_record *records, const struct phd_buffers *buffers,
	     struct phd_summary *summary, struct phd_error *err)
{
	PHD_AUTO_CLOSE int fd = phd_open_bus(bus_fd, buffers, "devices", "", O_PATH | O_DIRECTORY);
	struct phd_scan scan = {
		.bus_fd = bus_fd,
		.devices_fd = fd,
		.parent_fd = -1,
		.function_fd = -1,
		.tuning = tuning,
		.buffers = buffers,
		.records = records,
		.count = count,
		.err = err,
	};
	int ret = 0;

	if (fd < 0)
		return phd_fail(err, fd, "devices", NULL);
	prepare(&scan, keys);
	if (scan.is_crowd || tuning->inverted)
		ret = phd_invert_drivers(&scan, bus_fd);
	for (size_t i = 0; i < count && ret == 0; i++)
		ret = visit(&scan, i);
	phd_leave_bus(&scan);
	phd_close(&scan.function_fd);
	if (ret == 0)
		drop_gone(&scan, summary);
	return ret;
}
