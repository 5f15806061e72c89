// SPDX-License-Identifier: LGPL-2.1-or-later
/* IOMMU groups by their listings. */
#define _GNU_SOURCE
#include <string.h>

#include "cleanup.h"
#include "pciscan_internal.h"

#define NAME_MAX_ 32 /* a number of 32 bits and "/devices" */

static void format_name(uint32_t group, char *out)
{
	char digits[10];
	int n = 0;

	do {
		digits[n++] = (char)('0' + group % 10);
		group /= 10;
	} while (group);
	while (n > 0)
		*out++ = digits[--n];
	strcpy(out, "/devices");
}

static int open_listed(int bus_fd, const struct phd_buffers *buffers, const char *name)
{
	char path[NAME_MAX_ + 32] = "../../kernel/iommu_groups/";

	strcat(path, name);
	return phd_open_bus(bus_fd, buffers, path, "", O_RDONLY | O_DIRECTORY);
}

/* Open the directory of a group's members. */
static int open_group(int groups_fd, const struct phd_buffers *buffers, uint32_t group)
{
	char name[NAME_MAX_];
	int fd;

	format_name(group, name);
	if (buffers->root_fd < 0) {
		fd = openat(groups_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		return fd < 0 ? -errno : fd;
	}
	fd = phd_open_directory_at(groups_fd, name);
	return fd == -ELOOP ? open_listed(-1, buffers, name) : fd;
}

/*
 * The rest of a group that the link of the current function shows to be large.  A failure needs no
 * report: the links of the others are still there.
 */
void phd_list_group(struct phd_scan *scan, uint32_t group)
{
	char text[NAME_MAX_];
	PHD_AUTO_CLOSE int fd = -1;
	struct phd_dents dents = {
		.buffer = scan->buffers->scratch,
		.size = scan->buffers->scratch_size,
		.steps = &scan->steps,
	};
	struct phd_record *record;
	const char *name;
	uint64_t key;
	int ret;

	format_name(group, text);
	dents.fd = fd = open_listed(scan->bus_fd, scan->buffers, text);
	while (fd >= 0 && (name = phd_next_name(&dents, &ret))) {
		record = phd_parse_address(name, &key) ? phd_find(scan, key) : NULL;
		if (!record || key <= scan->current)
			continue;
		record->iommu_group = group;
		record->have |= PHD_HAVE_IOMMU_GROUP;
	}
}

/* 1 if all members are records of this group, 0 if not; an absent group has no members. */
static int is_known(struct phd_scan *scan, int groups_fd, uint32_t group)
{
	PHD_AUTO_CLOSE int fd = open_group(groups_fd, scan->buffers, group);
	struct phd_dents dents = {
		.fd = fd,
		.buffer = scan->buffers->scratch,
		.size = scan->buffers->scratch_size,
		.steps = &scan->steps,
	};
	const struct phd_record *record;
	const char *name;
	uint64_t key;
	int ret;

	if (fd < 0)
		return phd_is_absent(-fd) ? 1 : fd;
	while ((name = phd_next_name(&dents, &ret))) {
		record = phd_parse_address(name, &key) ? phd_find(scan, key) : NULL;
		if (!record || !(record->have & PHD_HAVE_IOMMU_GROUP) ||
		    record->iommu_group != group)
			return 0;
	}
	return ret < 0 ? ret : 1;
}

int phd_known_groups(int groups_fd, struct phd_record *records, size_t count,
		     const uint32_t *groups, size_t group_count, const struct phd_buffers *buffers,
		     uint8_t *known)
{
	struct phd_scan scan = {.buffers = buffers, .records = records, .count = count};

	for (size_t i = 0; i < group_count; i++) {
		int ret = is_known(&scan, groups_fd, groups[i]);

		if (ret < 0)
			return ret;
		known[i] = (uint8_t)ret;
	}
	return 0;
}
