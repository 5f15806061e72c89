int64_t phd_read_at(const char *path, uint64_t offset, uint8_t *out, size_t size);
