/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The scanner's interface; read by the compiler and by cffi, so without preprocessor lines.
 *
 * A function is identified by its key: domain << 16 | bus << 8 | slot << 3 | function.  Every call
 * returns 0 or -errno; the failing path is in the caller's phd_error, relative to the directory of
 * the PCI bus.
 */

enum phd_have {
	PHD_HAVE_VENDOR = 1,
	PHD_HAVE_DEVICE = 2,
	PHD_HAVE_SUBSYSTEM_VENDOR = 4,
	PHD_HAVE_SUBSYSTEM_DEVICE = 8,
	PHD_HAVE_CLASS = 16,
	PHD_HAVE_DRIVER = 32,
	PHD_HAVE_IOMMU_GROUP = 64,
	PHD_HAVE_PHYSFN = 128,
};

struct phd_record {
	uint64_t key;
	uint64_t physfn; /* key of the PF */
	uint32_t class_code;
	uint32_t iommu_group;
	uint32_t driver; /* offset of its name in the pool of names */
	uint16_t vendor;
	uint16_t device;
	uint16_t subsystem_vendor;
	uint16_t subsystem_device;
	uint16_t have;	/* which fields are valid; zero is a value like any other */
	uint16_t flags; /* private to the scanner */
};

enum phd_more_flags {
	PHD_MORE_VFIO = 1,  /* a VFIO driver is bound to the function */
	PHD_MORE_RESET = 2, /* it can be reset */
};

/* What a plan asks of a function beyond its record. */
struct phd_more {
	uint64_t inode;	  /* of its directory */
	uint32_t methods; /* offset of the text of reset_method in the pool of names, 0 if absent */
	uint32_t flags;
};

struct phd_error {
	int32_t errnum;
	char path[508];
};

/* The sizes from which on work is shared; Python holds the defaults. */
struct phd_tuning {
	uint32_t crowd;	   /* functions: VFs and drivers are found in reverse */
	uint32_t share;	   /* VFs of one PF: all get the identity of the first */
	uint32_t linked;   /* not 0: drivers list all their functions, as in sysfs itself */
	uint32_t inverted; /* not 0: drivers are found in reverse on a host of any size */
};

/*
 * Memory of the caller for the time of a call, and the root directory that no link leads out of.
 */
struct phd_buffers {
	char *scratch; /* for directory listings, at least 8 KiB */
	size_t scratch_size;
	char *names; /* receives the drivers' names, each terminated by NUL */
	size_t names_size;
	int root_fd;	       /* -1 if every link was made by the kernel */
	const char *bus;       /* the directory of the PCI bus below the root */
	struct phd_more *more; /* one for each key, or NULL: not asked */
};

/* An entry of a directory: a function's key or a group's number, and its unique inode number. */
struct phd_entry {
	uint64_t key;
	uint64_t inode;
};

struct phd_summary {
	size_t count;	   /* remaining records */
	size_t vanished;   /* listed functions that were gone when they were read */
	size_t names_used; /* bytes of the pool of names */
	size_t grouped;	   /* records with an IOMMU group */
};

/*
 * List the host's functions in address order.
 *
 * keys has room for twice the capacity; the second half is scratch space.  If the host has more
 * functions, *count holds their number and the call fails with -ENOBUFS.
 */
int phd_list(int bus_fd, uint64_t *keys, size_t capacity, const struct phd_buffers *buffers,
	     size_t *count, struct phd_error *err);

/*
 * List the entries of an open directory whose names are addresses of functions, or with are_numbers
 * decimal numbers, sorted by key.
 *
 * entries has room for twice the capacity; the second half is scratch space.  If there are more
 * than the capacity, *count holds their number and the call fails with -ENOBUFS.
 */
int phd_list_entries(int fd, int are_numbers, struct phd_entry *entries, size_t capacity,
		     const struct phd_buffers *buffers, size_t *count);

/*
 * Set known to 1 for each group of which all members are among the records, sorted by key, with
 * that group; else to 0.  groups_fd is the directory of the groups.
 */
int phd_known_groups(int groups_fd, struct phd_record *records, size_t count,
		     const uint32_t *groups, size_t group_count, const struct phd_buffers *buffers,
		     uint8_t *known);

/*
 * Store in keys the keys of the entries that another listing does not have.  Both are sorted by
 * key.  Returns their number.
 */
size_t phd_only_in(const struct phd_entry *entries, size_t count, const struct phd_entry *other,
		   size_t other_count, uint64_t *keys);

/* 1 if an open file belongs to sysfs, 0 if not, or -errno. */
int phd_is_sysfs(int fd);

/*
 * Fill one record for each key; functions that have vanished are left out.
 *
 * Either the keys are all that phd_list returned, or tuning->crowd is above count: sharing needs
 * the complete list.
 */
int phd_fill(int bus_fd, const struct phd_tuning *tuning, const uint64_t *keys, size_t count,
	     struct phd_record *records, const struct phd_buffers *buffers,
	     struct phd_summary *summary, struct phd_error *err);

/*
 * Write the addresses as text, each terminated by a newline, at most 17 bytes each.  Returns the
 * number of bytes.
 */
size_t phd_format(const struct phd_record *records, size_t count, char *text);

/*
 * Read size bytes of a regular file at offset with one pread.  Returns the number of bytes, which
 * may be smaller, or -errno.
 */
int64_t phd_read_at(const char *root, const char *path, uint64_t offset, uint8_t *out, size_t size);

/*
 * Open a path below a root, which no link leads out of; "" as root is the live host.  With O_PATH
 * any entry, including a final link with O_NOFOLLOW; else a directory.  Returns a descriptor or
 * -errno.
 */
int phd_open_below(const char *root, const char *path, int flags);

/*
 * The same from a descriptor of the root, without openat2: for sandboxes and old kernels.
 */
int phd_walk_inside(int root_fd, const char *path, int flags);

/*
 * Open a regular file for reading, and nothing else: -EISDIR for a directory, -EMEDIUMTYPE for
 * devices, FIFOs and sockets, which are not opened at all.
 */
int phd_open_file(const char *root, const char *path);

/* What to ask about a path: its status, the contents of a regular file, the target of a link, or
 * the names in a directory. */
enum phd_ask {
	PHD_ASK_STATUS = 115,
	PHD_ASK_FILE = 102,
	PHD_ASK_LINK = 108,
	PHD_ASK_NAMES = 100,
};

/* More in one answer is -EFBIG. */
struct phd_bounds {
	uint32_t bytes; /* of a file */
	uint32_t names; /* in a directory */
};

struct phd_answer {
	uint64_t inode;
	uint64_t device; /* the number of a device node */
	uint32_t mode;
	uint32_t size;	/* bytes of a file or a link; of names, each terminated by NUL */
	int32_t result; /* 0 or -errno */
};

/*
 * Answer questions about paths below a root, which no link leads out of; "" as root is the live
 * host.  kind is one of phd_ask, paths are terminated by NUL, and the texts of the answers follow
 * one another in out.  Returns the number of answers: less than count if out has no room for the
 * next one.
 */
size_t phd_ask(const char *root, char kind, const char *paths, size_t count,
	       const struct phd_bounds *bounds, struct phd_answer *answers, char *out, size_t size);
