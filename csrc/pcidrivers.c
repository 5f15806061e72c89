// SPDX-License-Identifier: LGPL-2.1-or-later
/* Find drivers in reverse: a few large listings instead of one link for each function. */
#include <fcntl.h>
#include <string.h>

#include "cleanup.h"
#include "pciscan_internal.h"

#define LISTING_COST                                                                               \
	5 /* listing a driver costs as much as reading this many functions' links                  \
	   */

/* Offset 0 of the pool is the empty name, so offset 0 means "no driver". */
int phd_add_driver(struct phd_scan *scan, const char *name, size_t length, uint32_t *driver)
{
	size_t at = scan->last_driver;
	int ret = 0;

	if (at && !strncmp(scan->buffers->names + at, name, length) &&
	    !scan->buffers->names[at + length]) {
		*driver = (uint32_t)at;
		return 0;
	}
	ret = phd_add_name(scan, name, length, driver);
	scan->last_driver = *driver;
	return ret;
}

int phd_add_name(struct phd_scan *scan, const char *name, size_t length, uint32_t *found)
{
	char *names = scan->buffers->names;
	size_t at;

	for (at = 1; at < scan->names_used; at += strlen(names + at) + 1)
		if (!strncmp(names + at, name, length) && !names[at + length])
			break;
	if (at >= scan->names_used) {
		if (scan->names_used + length + 1 > scan->buffers->names_size)
			return phd_fail(scan->err, -ENOBUFS, "drivers", NULL);
		memcpy(names + at, name, length);
		names[at + length] = '\0';
		scan->names_used += length + 1;
	}
	*found = (uint32_t)at;
	return 0;
}

/* *at is the name's offset in the pool, 0 before the driver's first function */
static int take_function(struct phd_scan *scan, const char *driver, uint64_t key, uint32_t *at)
{
	struct phd_record *record = phd_find(scan, key);
	int ret = 0;

	if (!record) /* bound since the functions were listed */
		return 0;
	if (!*at)
		ret = phd_add_name(scan, driver, strlen(driver), at);
	record->driver = *at;
	if (ret == 0)
		record->have |= PHD_HAVE_DRIVER;
	return ret;
}

static int open_driver(const struct phd_scan *scan, int drivers_fd, const char *driver)
{
	int fd;

	if (scan->is_confined)
		return phd_open_bus(-1, scan->buffers, "drivers", driver, O_RDONLY | O_DIRECTORY);
	fd = openat(drivers_fd, driver, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int invert_driver(struct phd_scan *scan, int drivers_fd, const char *driver)
{
	PHD_AUTO_CLOSE int fd = open_driver(scan, drivers_fd, driver);
	size_t half = scan->buffers->scratch_size / 2;
	struct phd_dents dents = {
		.fd = fd,
		.buffer = scan->buffers->scratch + half,
		.size = half,
		.steps = &scan->steps,
	};
	const char *name;
	uint32_t at = 0;
	uint64_t key;
	int ret;

	if (fd < 0) /* unloaded meanwhile, or not a driver */
		return phd_is_absent(-fd) ? 0 : phd_fail(scan->err, fd, "drivers", driver);
	while ((name = phd_next_name(&dents, &ret))) {
		if (!phd_parse_address(name, &key))
			continue;
		ret = take_function(scan, driver, key, &at);
		if (ret < 0)
			return ret;
	}
	return ret < 0 ? phd_fail(scan->err, ret, "drivers", driver) : 0;
}

static int open_drivers(struct phd_scan *scan, int bus_fd, struct phd_dents *dents)
{
	int fd = phd_open_bus(bus_fd, scan->buffers, "drivers", "", O_RDONLY | O_DIRECTORY);

	*dents = (struct phd_dents){
		.fd = fd,
		.buffer = scan->buffers->scratch,
		.size = scan->buffers->scratch_size / 2,
		.steps = &scan->steps,
	};
	return fd;
}

/* Tell whether listing the drivers is cheaper than reading the links. */
static int is_worth_it(struct phd_scan *scan, struct phd_dents *dents, bool *is_worth)
{
	size_t drivers = 0;
	int ret;

	while (phd_next_name(dents, &ret))
		drivers++;
	*is_worth = scan->tuning->inverted || (drivers && scan->count / drivers >= LISTING_COST);
	if (ret == 0 && *is_worth && lseek(dents->fd, 0, SEEK_SET) < 0)
		ret = -errno;
	dents->filled = dents->next = 0;
	return ret < 0 ? phd_fail(scan->err, ret, "drivers", NULL) : 0;
}

int phd_invert_drivers(struct phd_scan *scan, int bus_fd)
{
	struct phd_dents dents;
	PHD_AUTO_CLOSE int fd = open_drivers(scan, bus_fd, &dents);
	bool is_worth = false;
	const char *driver;
	int ret;

	if (fd < 0)
		return fd == -ENOENT ? 0 : phd_fail(scan->err, fd, "drivers", NULL);
	ret = is_worth_it(scan, &dents, &is_worth);
	if (ret < 0 || !is_worth)
		return ret;
	while ((driver = phd_next_name(&dents, &ret))) {
		ret = invert_driver(scan, fd, driver);
		if (ret < 0)
			return ret;
	}
	scan->are_drivers_known = true;
	return ret < 0 ? phd_fail(scan->err, ret, "drivers", NULL) : 0;
}
