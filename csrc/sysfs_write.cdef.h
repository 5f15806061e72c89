#define PHD_STAGE_ISOLATE ...
#define PHD_STAGE_LOCK	  ...
#define PHD_STAGE_OPEN	  ...
#define PHD_STAGE_WRITE	  ...
#define PHD_STAGE_DONE	  ...

struct phd_write_result {
	int32_t stage;
	int32_t errnum;
	int64_t count;
	int32_t pid;
};

struct phd_write_request {
	int dir_fd;
	const char *name;
	int lock_dir_fd;
	const char *lock_name;
	const void *value;
	size_t size;
};

int phd_write_start(const struct phd_write_request *req, struct phd_write_result *result);
