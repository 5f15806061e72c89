/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Declarations shared by the parts of the scanner. */
#ifndef PHD_PCISCAN_INTERNAL_H
#define PHD_PCISCAN_INTERNAL_H

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/types.h>

#include "pciaddress.h"
#include "pciroot.h"
#include "pciscan.h"

#define PHD_MAX_ENTRIES (1u << 22) /* in all listings of a scan: no finite one has more */
#define PHD_MAX_PENDING 256	   /* PFs on one bus */
#define PHD_ATTR_MAX	32	   /* a name like "subsystem_vendor" */
#define PHD_PREFIX_MAX	(PHD_ADDRESS_MAX + 1)
#define PHD_LINK_MAX	1024
#define PHD_METHODS_MAX 256	   /* all reset methods of the kernel take 60 bytes */
#define PHD_SYSFS_MAGIC 0x62656572 /* linux/magic.h */

enum phd_flags {
	PHD_FLAG_GONE = 1,
	PHD_FLAG_SHARED =
		2, /* class_code temporarily holds the index of the VF to copy the identity from */
	PHD_FLAG_REAL = 4, /* a directory in the current bus' directory, not a link */
};

/* A PF whose VFs have not been found in the listing yet. */
struct phd_pending {
	size_t index;
	uint64_t first;	 /* key of VF 0 */
	uint64_t stride; /* 0 for a single VF; 1 until the links tell another */
};

/* A directory of functions, as named by a link of devices/; length 0: unknown. */
struct phd_directory {
	size_t length;
	char path[PHD_LINK_MAX];
};

struct phd_scan {
	int bus_fd;
	int devices_fd;
	int parent_fd;	  /* the directory of the current bus' functions, -1: use the links of
			     devices/ */
	int function_fd;  /* the current function's directory, -1: a name in phd_here() */
	bool is_confined; /* the tree's links may be untrusted */
	uint32_t steps;	  /* names listed so far */
	uint64_t bus;	  /* key >> 8 */
	uint64_t current;
	struct phd_directory directories[2]; /* the current function's, and the next one */
	int here;			     /* the index of the current one */
	size_t directory_end;		     /* the end of the current directory's functions */
	bool is_closed;			     /* no later function can be a VF of this directory */
	bool is_crowd;
	bool is_linked; /* between devices and drivers both ways, as in the kernel's own tree */
	bool are_drivers_known; /* found by listing the drivers */
	bool has_groups;
	uint32_t row_group;	  /* of the functions that were read last */
	uint32_t row;		  /* how many in a row were in that group */
	uint64_t doubtful_domain; /* a domain whose VFs cannot be derived: all of them are read */
	const struct phd_tuning *tuning;
	const struct phd_buffers *buffers;
	size_t names_used;
	size_t last_driver;
	size_t last_found;
	struct phd_record *records;
	size_t count;
	struct phd_pending pending[PHD_MAX_PENDING];
	size_t pending_count;
	uint64_t pending_first;			  /* lowest key of a pending PF's VF */
	char path[PHD_PREFIX_MAX + PHD_ATTR_MAX]; /* "0000:01:00.0/" and an attribute */
	size_t prefix;
	struct phd_error *err;
};

/* The path does not exist: the object never existed, or it is gone. */
static inline bool phd_is_absent(int errnum)
{
	return errnum == ENOENT || errnum == ENOTDIR || errnum == ELOOP || errnum == ENODEV;
}

/* pcidents.c */

/* Open DIR/NAME of the bus; with a root, below the root and without leaving it. */
int phd_open_bus(int bus_fd, const struct phd_buffers *buffers, const char *dir, const char *name,
		 int flags);

struct phd_dents {
	int fd;
	char *buffer;
	size_t size;
	long filled;
	long next;
	unsigned char type; /* of the last name */
	uint64_t inode;	    /* of the last name */
	uint32_t *steps;    /* names so far, of all listings together */
};

/* The next name that does not start with a dot, NULL at the end; *ret is 0 or -errno. */
const char *phd_next_name(struct phd_dents *dents, int *ret);

/* pciattr.c */

int phd_fail(struct phd_error *err, int ret, const char *top, const char *name);
int phd_fail_here(struct phd_scan *scan, int ret);
/* Make a function the current one; 1 if it does not exist. */
int phd_enter_function(struct phd_scan *scan, size_t index);
/*
 * The path of an attribute of the current function, below phd_here().  With its NUL, the name has
 * at most PHD_ATTR_MAX bytes.
 */
static inline const char *phd_attr(struct phd_scan *scan, const char *name)
{
	memcpy(scan->path + scan->prefix, name, strlen(name) + 1);
	return scan->path + (scan->function_fd >= 0 ? scan->prefix : 0);
}
int phd_here(const struct phd_scan *scan);
/* Read an attribute of the current function with one read; -ENOENT if it is absent. */
ssize_t phd_read_attr(struct phd_scan *scan, const char *name, char *out, size_t size);
/* Set the current function's ids; 1 if it has neither modalias nor vendor. */
int phd_read_ids(struct phd_scan *scan, struct phd_record *record);
/*
 * Store the last component of a link of the current function in name; target has PHD_LINK_MAX
 * bytes.  Returns its length, 0 if the link does not exist.
 */
ssize_t phd_read_link(struct phd_scan *scan, const char *path, char *target, const char **name);
/* The key of a link's target; PHD_NONE64 if the link does not exist. */
int phd_read_address_link(struct phd_scan *scan, const char *path, uint64_t *key);

/* pcilist.c */

/* The record of a function, NULL where the scan has none. */
struct phd_record *phd_find(struct phd_scan *scan, uint64_t key);

/* pcidrivers.c */

int phd_invert_drivers(struct phd_scan *scan, int bus_fd);
int phd_add_driver(struct phd_scan *scan, const char *name, size_t length, uint32_t *driver);
/* Add a text to the pool of names, where it is found again by its offset. */
int phd_add_name(struct phd_scan *scan, const char *name, size_t length, uint32_t *at);

/* pcigroups.c */

/* Set the group of the later functions that a group lists. */
void phd_list_group(struct phd_scan *scan, uint32_t group);

/* pcibus.c */

/* Open the directory shared by the functions on the bus of this one. */
int phd_enter_bus(struct phd_scan *scan, size_t index);
/* Open it again, because it may have been replaced. */
void phd_reopen_bus(struct phd_scan *scan, uint64_t key);
void phd_leave_bus(struct phd_scan *scan);

/* pcisriov.c */

/* Record the current function's VFs, if it has any. */
int phd_find_vfs(struct phd_scan *scan, size_t index);
/* Find the VFs of all pending PFs in the listing, while their bus is the current one. */
int phd_derive_vfs(struct phd_scan *scan);

#endif
