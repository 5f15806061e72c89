// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * What the kernel alone takes for a scan: the system calls that no scan can do without, replayed
 * with as little around them as C allows.  Nothing is parsed but addresses, nothing is kept.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pciaddress.h"

#define MAX_FUNCTIONS (1 << 17)
#define BUFFER_SIZE   (1 << 18)

struct dirent_head {
	uint64_t ino;
	int64_t off;
	unsigned short length;
	unsigned char type;
	char name[];
};

struct floor {
	int devices;
	int parent;
	uint64_t bus;
	size_t count;
	uint64_t keys[MAX_FUNCTIONS];
	char buffer[BUFFER_SIZE];
	char path[64];
	size_t prefix;
};

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void list(struct floor *f)
{
	long n;

	f->count = 0;
	while ((n = syscall(SYS_getdents64, f->devices, f->buffer, BUFFER_SIZE)) > 0) {
		for (long at = 0; at < n;) {
			struct dirent_head *entry = (void *)(f->buffer + at);

			at += entry->length;
			if (f->count < MAX_FUNCTIONS &&
			    phd_parse_address(entry->name, &f->keys[f->count]))
				f->count++;
		}
	}
	qsort(f->keys, f->count, sizeof(*f->keys), compare);
}

/* One descriptor for each bus: no walk goes through the links of devices/. */
static void enter_bus(struct floor *f, uint64_t key)
{
	char target[1024];
	ssize_t n;

	if (f->parent >= 0)
		close(f->parent);
	f->bus = key >> 8;
	f->path[f->prefix] = '\0';
	n = readlinkat(f->devices, f->path, target, sizeof(target) - 1);
	while (n > 0 && target[n - 1] != '/')
		n--;
	target[n > 0 ? n - 1 : 0] = '\0';
	f->parent = openat(f->devices, target, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

static const char *attr(struct floor *f, const char *name)
{
	strcpy(f->path + f->prefix, name);
	return f->path;
}

static void identify(struct floor *f, bool *is_bridge)
{
	char text[64] = "";
	int fd = openat(f->parent, attr(f, "/modalias"), O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, text, sizeof(text));

	close(fd);
	*is_bridge = n > 46 && !memcmp(text + 42, "bc06", 4);
}

/* The identity of every function, of those that are no VFs, or of none. */
enum identities { NO_IDENTITY, IDENTITY_WITHOUT_VFS, EVERY_IDENTITY };

static void visit(struct floor *f, uint64_t key, enum identities which, bool is_vf)
{
	char target[1024];
	bool is_bridge = true;

	f->prefix = phd_format_address(key, f->path);
	if (key >> 8 != f->bus)
		enter_bus(f, key);
	if (which == EVERY_IDENTITY || (which == IDENTITY_WITHOUT_VFS && !is_vf))
		identify(f, &is_bridge);
	readlinkat(f->parent, attr(f, "/iommu_group"), target, sizeof(target));
	if (!is_bridge && which == EVERY_IDENTITY)
		readlinkat(f->parent, attr(f, "/virtfn0"), target, sizeof(target));
}

static void list_driver(struct floor *f, int drivers, const char *name)
{
	char listing[BUFFER_SIZE / 4];
	int fd = openat(drivers, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	while (fd >= 0 && syscall(SYS_getdents64, fd, listing, sizeof(listing)) > 0)
		;
	close(fd);
}

/* What every driver is bound to. */
static void list_drivers(struct floor *f, const char *bus_path)
{
	char path[4096];
	int fd;
	long n;

	strcat(strncpy(path, bus_path, sizeof(path) - 16), "/drivers");
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	while (fd >= 0 && (n = syscall(SYS_getdents64, fd, f->buffer, BUFFER_SIZE)) > 0) {
		for (long at = 0; at < n;) {
			struct dirent_head *entry = (void *)(f->buffer + at);

			at += entry->length;
			if (entry->name[0] != '.')
				list_driver(f, fd, entry->name);
		}
	}
	close(fd);
}

static long replay(const char *bus_path, enum identities which, const uint64_t *vfs, size_t vf_count)
{
	static struct floor f;
	char path[4096];
	size_t next = 0;

	strcat(strncpy(path, bus_path, sizeof(path) - 16), "/devices");
	f.devices = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (f.devices < 0)
		return -errno;
	f.parent = -1;
	f.bus = UINT64_MAX;
	list(&f);
	if (which == IDENTITY_WITHOUT_VFS)
		list_drivers(&f, bus_path);
	for (size_t i = 0; i < f.count; i++) {
		while (next < vf_count && vfs[next] < f.keys[i])
			next++;
		visit(&f, f.keys[i], which, next < vf_count && vfs[next] == f.keys[i]);
	}
	close(f.parent);
	close(f.devices);
	return (long)f.count;
}

/* f4: the listing, and the IOMMU group of every function. */
long floor_f4(const char *bus_path)
{
	return replay(bus_path, NO_IDENTITY, NULL, 0);
}

/* f5: f4, the functions of every driver, and the identity of every function except VFs, whose keys
 * are given, sorted. */
long floor_f5(const char *bus_path, const uint64_t *vfs, size_t count)
{
	return replay(bus_path, IDENTITY_WITHOUT_VFS, vfs, count);
}

/* fpm: the identity of every function as well; and the search for VFs that a host needs that has
 * none. */
long floor_fpm(const char *bus_path)
{
	return replay(bus_path, EVERY_IDENTITY, NULL, 0);
}
