// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>
#include <string.h>
#include <sys/vfs.h>

#include "cleanup.h"
#include "pciscan_internal.h"

#define NUMBER_DIGITS 10 /* of a 32-bit number */
#define NEAR	      8	 /* functions that a search passes one by one */

static int list_keys(struct phd_dents *dents, uint64_t *keys, size_t capacity, size_t *count)
{
	const char *name;
	uint64_t key;
	int ret;

	*count = 0;
	while ((name = phd_next_name(dents, &ret))) {
		if (!phd_parse_address(name, &key))
			continue;
		if (*count < capacity)
			keys[*count] = key;
		++*count;
	}
	if (ret == 0 && *count > capacity)
		ret = -ENOBUFS;
	return ret;
}

/* Items of one or two words, sorted by one byte of the first word. */
static inline void sort_by_byte(const uint64_t *from, uint64_t *to, size_t count, size_t words,
				int shift)
{
	size_t start[256] = {0}, sum = 0;

	for (size_t i = 0; i < count; i++)
		start[from[i * words] >> shift & 0xff]++;
	for (int byte = 0; byte < 256; byte++) {
		size_t here = start[byte];

		start[byte] = sum;
		sum += here;
	}
	for (size_t i = 0; i < count; i++)
		memcpy(to + words * start[from[i * words] >> shift & 0xff]++, from + i * words,
		       words * sizeof(*from));
}

/* Sort by bytes from the lowest up; bytes that are the same in all keys are skipped. */
static inline void sort(uint64_t *items, uint64_t *scratch, size_t count, size_t words)
{
	uint64_t differ = 0, *from = items, *to = scratch;

	for (size_t i = 1; i < count; i++)
		differ |= items[i * words] ^ items[0];
	for (int shift = 0; shift < 64; shift += 8) {
		uint64_t *was = from;

		if (!(differ >> shift & 0xff))
			continue;
		sort_by_byte(from, to, count, words, shift);
		from = to;
		to = was;
	}
	if (from != items)
		memcpy(items, from, count * words * sizeof(*items));
}

static struct phd_dents start_listing(int fd, const struct phd_buffers *buffers, uint32_t *steps)
{
	return (struct phd_dents){
		.fd = fd,
		.buffer = buffers->scratch,
		.size = buffers->scratch_size,
		.steps = steps,
	};
}

int phd_list(int bus_fd, uint64_t *keys, size_t capacity, const struct phd_buffers *buffers,
	     size_t *count, struct phd_error *err)
{
	PHD_AUTO_CLOSE int fd =
		phd_open_bus(bus_fd, buffers, "devices", "", O_RDONLY | O_DIRECTORY);
	uint32_t steps = 0;
	struct phd_dents dents = start_listing(fd, buffers, &steps);
	int ret;

	if (fd < 0)
		return phd_fail(err, fd, "devices", NULL);
	ret = list_keys(&dents, keys, capacity, count);
	if (ret < 0)
		return phd_fail(err, ret, "devices", NULL);
	sort(keys, keys + capacity, *count, 1);
	return 0;
}

static bool parse_number(const char *name, uint64_t *number)
{
	size_t length = strspn(name, "0123456789");

	if (length == 0 || length > NUMBER_DIGITS || name[length])
		return false;
	*number = 0;
	for (size_t i = 0; i < length; i++)
		*number = *number * 10 + (uint64_t)(name[i] - '0');
	return true;
}

int phd_list_entries(int fd, int are_numbers, struct phd_entry *entries, size_t capacity,
		     const struct phd_buffers *buffers, size_t *count)
{
	uint32_t steps = 0;
	struct phd_dents dents = start_listing(fd, buffers, &steps);
	const char *name;
	uint64_t key;
	int ret;

	*count = 0;
	while ((name = phd_next_name(&dents, &ret))) {
		if (!(are_numbers ? parse_number(name, &key) : phd_parse_address(name, &key)))
			continue;
		if (*count < capacity)
			entries[*count] = (struct phd_entry){key, dents.inode};
		++*count;
	}
	if (ret == 0 && *count > capacity)
		ret = -ENOBUFS;
	if (ret == 0)
		sort((uint64_t *)entries, (uint64_t *)(entries + capacity), *count, 2);
	return ret;
}

size_t phd_only_in(const struct phd_entry *entries, size_t count, const struct phd_entry *other,
		   size_t other_count, uint64_t *keys)
{
	const struct phd_entry *end = other + other_count;
	size_t found = 0;

	for (size_t i = 0; i < count; i++) {
		while (other < end && other->key < entries[i].key)
			other++;
		if (other == end || other->key != entries[i].key ||
		    other->inode != entries[i].inode)
			keys[found++] = entries[i].key;
	}
	return found;
}

int phd_is_sysfs(int fd)
{
	struct statfs status;

	return fstatfs(fd, &status) < 0 ? -errno : status.f_type == PHD_SYSFS_MAGIC;
}

size_t phd_format(const struct phd_record *records, size_t count, char *text)
{
	char *out = text;

	for (size_t i = 0; i < count; i++) {
		out += phd_format_address(records[i].key, out);
		*out++ = '\n';
	}
	return (size_t)(out - text);
}

/* The first record whose key is not below this one; the end if all are below. */
static struct phd_record *bisect(const struct phd_scan *scan, uint64_t key)
{
	size_t low = 0, high = scan->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (scan->records[middle].key < key)
			low = middle + 1;
		else
			high = middle;
	}
	return &scan->records[low];
}

/*
 * The search starts near the last result: some file systems list in order, or in reverse.  The
 * kernel's sysfs does neither.
 */
struct phd_record *phd_find(struct phd_scan *scan, uint64_t key)
{
	struct phd_record *record = scan->records + scan->last_found;
	const struct phd_record *end = scan->records + scan->count;

	for (int i = 0; i < NEAR && record < end && record->key < key; i++)
		record++;
	for (int i = 0; i < NEAR && record > scan->records && record[-1].key >= key; i++)
		record--;
	if (record == end || record->key != key)
		record = bisect(scan, key);
	scan->last_found = (size_t)(record - scan->records);
	return record < end && record->key == key ? record : NULL;
}
