/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the scanner know of each other. */
#ifndef PHD_PCISCAN_INTERNAL_H
#define PHD_PCISCAN_INTERNAL_H

#include <errno.h>
#include <stdbool.h>
#include <sys/types.h>

#include "pciaddress.h"
#include "pciroot.h"
#include "pciscan.h"

#define PHD_MAX_ENTRIES (1u << 22) /* of all listings of a scan: nothing that ends has more */
#define PHD_MAX_PENDING 256	   /* PFs of one bus */
#define PHD_ATTR_MAX	32	   /* a name like "subsystem_vendor" */
#define PHD_PREFIX_MAX	(PHD_ADDRESS_MAX + 1)
#define PHD_LINK_MAX	1024
#define PHD_SYSFS_MAGIC 0x62656572 /* linux/magic.h */

enum phd_flags {
	PHD_FLAG_GONE = 1,
	PHD_FLAG_SHARED =
		2, /* class_code is, for now, the index of the VF to copy the identity from */
	PHD_FLAG_REAL = 4, /* a directory in the current bus' directory, and no link */
};

/* A PF whose VFs have not been told from the listing yet. */
struct phd_pending {
	size_t index;
	uint64_t first;	 /* key of VF 0 */
	uint64_t stride; /* 0: there is one VF */
};

/* A directory of functions, as a link of devices/ names it; length 0: not known. */
struct phd_directory {
	size_t length;
	char path[PHD_LINK_MAX];
};

struct phd_scan {
	int devices_fd;
	int parent_fd;	  /* the directory of the current bus' functions, -1: go by the links of
			     devices/ */
	int function_fd;  /* the current function's directory, -1: a name in phd_here() */
	bool is_confined; /* somebody else may have made the tree's links */
	uint32_t steps;	  /* names of listings so far */
	uint64_t bus;	  /* key >> 8 */
	uint64_t current;
	struct phd_directory directories[2]; /* the current function's, and the next one */
	int here;			     /* which of them is which */
	size_t directory_end;		     /* where the current directory's functions end */
	bool is_closed;			     /* and none that comes later can be a VF of theirs */
	bool is_crowd;
	bool is_linked; /* between devices and drivers both ways, as the kernel's own tree is */
	bool are_drivers_known; /* found by listing the drivers */
	bool has_groups;
	uint64_t doubtful_domain; /* in which the VFs cannot be derived, each has to be asked */
	const struct phd_tuning *tuning;
	const struct phd_lent *lent;
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

/* A path that leads nowhere: what it named does not exist, or went away. */
static inline bool phd_is_absent(int errnum)
{
	return errnum == ENOENT || errnum == ENOTDIR || errnum == ELOOP || errnum == ENODEV;
}

/* pcidents.c */

/* Open DIR/NAME of the bus, or what DIR/NAME is in the root that it may not lead out of. */
int phd_open_bus(int bus_fd, const struct phd_lent *lent, const char *dir, const char *name,
		 int flags);

struct phd_dents {
	int fd;
	char *buffer;
	size_t size;
	long filled;
	long next;
	unsigned char type; /* of the last name */
	uint32_t *steps;    /* names so far, of all listings together */
};

/* The next name that does not start with a dot, NULL at the end; *ret is 0 or -errno. */
const char *phd_next_name(struct phd_dents *dents, int *ret);

/* pciattr.c */

int phd_fail(struct phd_error *err, int ret, const char *top, const char *name);
int phd_fail_here(struct phd_scan *scan, int ret);
void phd_set_current(struct phd_scan *scan, uint64_t key);
/* Make a function the current one; 1 when it is not there. */
int phd_enter_function(struct phd_scan *scan, size_t index);
/* The path of an attribute of the current function, below phd_here(). */
const char *phd_attr(struct phd_scan *scan, const char *name);
int phd_here(const struct phd_scan *scan);
/* Set the current function's ids; 1 when there is neither modalias nor vendor. */
int phd_read_ids(struct phd_scan *scan, struct phd_record *record);
/*
 * The last component of a link of the current function into name, which has room for PHD_LINK_MAX.
 * Its length, 0 when there is no such link.
 */
ssize_t phd_read_link(struct phd_scan *scan, const char *attr, char *target, const char **name);
/* The key a link points to; PHD_NONE64 when there is no such link. */
int phd_read_address_link(struct phd_scan *scan, const char *attr, uint64_t *key);

/* pcidrivers.c */

int phd_invert_drivers(struct phd_scan *scan, int bus_fd);
int phd_add_driver(struct phd_scan *scan, const char *name, size_t length, uint32_t *driver);

/* pcibus.c */

/* Open the directory of the functions that share the bus of this one. */
int phd_enter_bus(struct phd_scan *scan, size_t index);
/* Once more, when it may have been replaced by another. */
void phd_reopen_bus(struct phd_scan *scan, uint64_t key);
void phd_leave_bus(struct phd_scan *scan);

/* pcisriov.c */

/* Remember the current function's VFs, if it has any. */
int phd_find_vfs(struct phd_scan *scan, size_t index);
/* Tell the VFs of all pending PFs from the listing, while their bus is the current one. */
int phd_derive_vfs(struct phd_scan *scan);

/* pcifill.c */

struct phd_record *phd_find(struct phd_scan *scan, uint64_t key);

#endif
