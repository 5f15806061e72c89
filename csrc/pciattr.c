// SPDX-License-Identifier: LGPL-2.1-or-later
/* Attributes and links of the current function of the scan. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>

#include "cleanup.h"
#include "pciscan_internal.h"

#define MODALIAS_LENGTH 53

int phd_fail(struct phd_error *err, int ret, const char *top, const char *name)
{
	size_t used = 0;

	err->errnum = -ret;
	for (const char *p = top; *p && used < sizeof(err->path) - 1; p++)
		err->path[used++] = *p;
	if (name && used < sizeof(err->path) - 1)
		err->path[used++] = '/';
	for (const char *p = name; p && *p && used < sizeof(err->path) - 1; p++)
		err->path[used++] = *p;
	err->path[used] = '\0';
	return ret;
}

int phd_fail_here(struct phd_scan *scan, int ret)
{
	return phd_fail(scan->err, ret, "devices", scan->path);
}

static void set_current(struct phd_scan *scan, uint64_t key)
{
	if (scan->prefix && key >> 8 == scan->current >> 8) {
		phd_format_slot(key, scan->path + scan->prefix - 1 - PHD_SLOT_LENGTH);
	} else {
		scan->prefix = phd_format_address(key, scan->path);
		scan->path[scan->prefix++] = '/';
	}
	scan->path[scan->prefix] = '\0';
	scan->current = key;
}

/*
 * In an untrusted tree a function's name may be a link to anywhere.  Unless the listing showed it
 * as a directory, the directory is opened below the root.
 */
int phd_enter_function(struct phd_scan *scan, size_t index)
{
	const struct phd_record *record = &scan->records[index];
	int fd;

	phd_close(&scan->function_fd);
	set_current(scan, record->key);
	if (!scan->is_confined || (scan->parent_fd >= 0 && record->flags & PHD_FLAG_REAL))
		return 0;
	fd = phd_open_bus(-1, scan->buffers, "devices", scan->path, O_PATH | O_DIRECTORY);
	if (fd < 0)
		return phd_is_absent(-fd) ? 1 : phd_fail_here(scan, fd);
	scan->function_fd = fd;
	return 0;
}

int phd_here(const struct phd_scan *scan)
{
	if (scan->function_fd >= 0)
		return scan->function_fd;
	return scan->parent_fd >= 0 ? scan->parent_fd : scan->devices_fd;
}

/* Open an attribute that is a link. */
static int open_linked(const struct phd_scan *scan)
{
	PHD_AUTO_CLOSE int fd = phd_open_bus(-1, scan->buffers, "devices", scan->path, O_PATH);

	return fd < 0 ? fd : phd_reopen_regular(fd);
}

/* Open an attribute: a regular file, or anything in a tree made by the kernel. */
static int open_attr(struct phd_scan *scan, const char *name)
{
	const char *path = phd_attr(scan, name);
	int fd;

	if (scan->is_confined) {
		fd = phd_open_regular_at(phd_here(scan), path);
		return fd == -ELOOP ? open_linked(scan) : fd;
	}
	fd = openat(phd_here(scan), path, PHD_FILE_FLAGS);
	return fd < 0 ? -errno : fd;
}

/* Returns -ENOENT for every absent attribute; ENODEV: the function went after the open. */
ssize_t phd_read_attr(struct phd_scan *scan, const char *name, char *out, size_t size)
{
	PHD_AUTO_CLOSE int fd = open_attr(scan, name);
	ssize_t n = fd;

	if (fd >= 0) {
		n = read(fd, out, size);
		n = n < 0 ? -errno : n;
	}
	return n < 0 && phd_is_absent((int)-n) ? -ENOENT : n;
}

/* Parses count digits; UINT32_MAX for an invalid digit or a value above limit */
static uint32_t hex(const char *text, int count, uint32_t limit)
{
	uint32_t value = 0;

	for (int i = 0; i < count; i++) {
		int digit = phd_hex_digit(text[i]);

		if (digit < 0)
			return UINT32_MAX;
		value = value << 4 | (uint32_t)digit;
	}
	return value <= limit ? value : UINT32_MAX;
}

/* Takes a tag and the digits that follow it; false if the text does not start so. */
static inline bool take_field(const char **text, const char *tag, int digits, uint32_t *value)
{
	size_t length = strlen(tag);

	if (memcmp(*text, tag, length))
		return false;
	*value = hex(*text + length, digits, 0xffff);
	*text += length + (size_t)digits;
	return *value != UINT32_MAX;
}

/*
 * pci:v00008086d00001521sv00008086sd00000001bc02sc00i00, every field of fixed width (kernel:
 * modalias_show)
 */
static bool parse_modalias(const char *text, ssize_t n, struct phd_record *record)
{
	uint32_t vendor, device, subvendor, subdevice, base, sub, interface;

	if (n != MODALIAS_LENGTH && (n != MODALIAS_LENGTH + 1 || text[n - 1] != '\n'))
		return false;
	if (!take_field(&text, "pci:v0000", 4, &vendor) ||
	    !take_field(&text, "d0000", 4, &device) ||
	    !take_field(&text, "sv0000", 4, &subvendor) ||
	    !take_field(&text, "sd0000", 4, &subdevice) || !take_field(&text, "bc", 2, &base) ||
	    !take_field(&text, "sc", 2, &sub) || !take_field(&text, "i", 2, &interface))
		return false;
	record->vendor = (uint16_t)vendor;
	record->device = (uint16_t)device;
	record->subsystem_vendor = (uint16_t)subvendor;
	record->subsystem_device = (uint16_t)subdevice;
	record->class_code = base << 16 | sub << 8 | interface;
	record->have |= PHD_HAVE_VENDOR | PHD_HAVE_DEVICE | PHD_HAVE_SUBSYSTEM_VENDOR |
			PHD_HAVE_SUBSYSTEM_DEVICE | PHD_HAVE_CLASS;
	return true;
}

/* Reads a number like 0x8086; returns 1 if the attribute is absent */
static int read_number(struct phd_scan *scan, const char *name, uint32_t limit, uint32_t *value)
{
	char text[16];
	ssize_t n = phd_read_attr(scan, name, text, sizeof(text));
	size_t start;

	if (n < 0)
		return n == -ENOENT ? 1 : phd_fail_here(scan, (int)n);
	if (n > 0 && text[n - 1] == '\n')
		n--;
	start = n > 2 && text[0] == '0' && (text[1] == 'x' || text[1] == 'X') ? 2 : 0;
	n -= (ssize_t)start;
	*value = n > 0 && n <= 8 ? hex(text + start, (int)n, limit) : UINT32_MAX;
	return *value == UINT32_MAX ? phd_fail_here(scan, -EBADMSG) : 0;
}

static int read_id(struct phd_scan *scan, const char *name, struct phd_record *record, uint16_t *id,
		   enum phd_have bit)
{
	uint32_t value;
	int ret = read_number(scan, name, 0xffff, &value);

	if (ret == 0) {
		*id = (uint16_t)value;
		record->have |= (uint16_t)bit;
	}
	return ret;
}

static int read_class(struct phd_scan *scan, struct phd_record *record)
{
	uint32_t value;
	int ret = read_number(scan, "class", 0xffffff, &value);

	if (ret == 0) {
		record->class_code = value;
		record->have |= PHD_HAVE_CLASS;
	}
	return ret;
}

static int read_id_files(struct phd_scan *scan, struct phd_record *r)
{
	int vendor = read_id(scan, "vendor", r, &r->vendor, PHD_HAVE_VENDOR);
	int ret = vendor;

	if (ret >= 0)
		ret = read_id(scan, "device", r, &r->device, PHD_HAVE_DEVICE);
	if (ret >= 0)
		ret = read_id(scan, "subsystem_vendor", r, &r->subsystem_vendor,
			      PHD_HAVE_SUBSYSTEM_VENDOR);
	if (ret >= 0)
		ret = read_id(scan, "subsystem_device", r, &r->subsystem_device,
			      PHD_HAVE_SUBSYSTEM_DEVICE);
	if (ret >= 0)
		ret = read_class(scan, r);
	return ret < 0 ? ret : vendor;
}

int phd_read_ids(struct phd_scan *scan, struct phd_record *record)
{
	char text[64];
	ssize_t n = phd_read_attr(scan, "modalias", text, sizeof(text));

	if (n >= 0 && parse_modalias(text, n, record))
		return 0;
	if (n < 0 && n != -ENOENT)
		return phd_fail_here(scan, (int)n);
	return read_id_files(scan, record);
}

ssize_t phd_read_link(struct phd_scan *scan, const char *path, char *target, const char **name)
{
	ssize_t n = readlinkat(phd_here(scan), path, target, PHD_LINK_MAX);
	const char *slash;

	if (n < 0)
		return phd_is_absent(errno) ? 0 : phd_fail_here(scan, -errno);
	if (n == PHD_LINK_MAX)
		return phd_fail_here(scan, -ENAMETOOLONG);
	target[n] = '\0';
	slash = memrchr(target, '/', (size_t)n);
	*name = slash ? slash + 1 : target;
	n -= *name - target;
	return n > 0 ? n : phd_fail_here(scan, -EBADMSG);
}

int phd_read_address_link(struct phd_scan *scan, const char *path, uint64_t *key)
{
	char target[PHD_LINK_MAX];
	const char *name;
	ssize_t n = phd_read_link(scan, path, target, &name);

	*key = PHD_NONE64;
	if (n <= 0)
		return (int)n;
	return phd_parse_address(name, key) ? 0 : phd_fail_here(scan, -EBADMSG);
}
