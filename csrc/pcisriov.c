// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Find virtual functions without reading each of them.
 *
 * VF k of a PF is at first + k * stride (SR-IOV 1.1, 2.1.2).  So virtfn0 gives the positions of all
 * VFs if the stride is 1, as nearly always, and the listing gives their number.  The last link
 * confirms both; if it does not, virtfn1 gives the stride.  The absence of a further link confirms
 * the number.  sriov_numvfs would give it, too, but takes the device lock: one function stuck in
 * its driver would block the scan for ever.
 */
#include "pciscan_internal.h"

static int read_virtfn(struct phd_scan *scan, uint64_t number, uint64_t *key)
{
	char name[PHD_ATTR_MAX] = "virtfn", digits[20], *out = name + 6;
	int n = 0;

	do {
		digits[n++] = (char)('0' + number % 10);
		number /= 10;
	} while (number);
	while (n > 0)
		*out++ = digits[--n];
	return phd_read_address_link(scan, phd_attr(scan, name), key);
}

/* VFs follow their PF in address order, so only later functions have to be read individually. */
static int mark_doubtful(struct phd_scan *scan, uint64_t key)
{
	scan->doubtful_domain = key >> 16;
	return 0;
}

int phd_find_vfs(struct phd_scan *scan, size_t index)
{
	uint64_t first, pf = scan->records[index].key;
	int ret = read_virtfn(scan, 0, &first);

	if (ret < 0 || first == PHD_NONE64)
		return ret;
	if (scan->pending_count == PHD_MAX_PENDING || first <= pf)
		return mark_doubtful(scan, pf);
	scan->pending[scan->pending_count++] = (struct phd_pending){
		.index = index,
		.first = first,
		.stride = 1,
	};
	if (first < scan->pending_first)
		scan->pending_first = first;
	return 0;
}

static bool is_first_of_other(const struct phd_scan *scan, const struct phd_pending *pf,
			      uint64_t key)
{
	for (size_t i = 0; i < scan->pending_count; i++)
		if (scan->pending[i].first == key && &scan->pending[i] != pf)
			return true;
	return false;
}

/* Search from this record on for the one with the key; NULL if the scan does not have it. */
static struct phd_record *seek(const struct phd_scan *scan, struct phd_record *from, uint64_t key)
{
	const struct phd_record *end = scan->records + scan->count;

	while (from < end && from->key < key)
		from++;
	return from < end && from->key == key ? from : NULL;
}

/* The number of consecutive functions at the positions of the PF's VFs. */
static uint64_t count_listed(const struct phd_scan *scan, const struct phd_pending *pf)
{
	struct phd_record *vf = &scan->records[pf->index];
	uint64_t key = pf->first, n = 0;

	while ((vf = seek(scan, vf, key)) && !is_first_of_other(scan, pf, key)) {
		n++;
		key += pf->stride;
		if (!pf->stride)
			break;
	}
	return n;
}

static void mark(struct phd_scan *scan, const struct phd_pending *pf, uint64_t n)
{
	struct phd_record *first = seek(scan, &scan->records[pf->index], pf->first), *vf = first;

	for (uint64_t k = 0; k < n; k++) {
		vf = seek(scan, vf, pf->first + k * pf->stride);
		vf->physfn = scan->records[pf->index].key;
		vf->have |= PHD_HAVE_PHYSFN;
		if (n >= scan->tuning->share && vf != first) {
			vf->flags |= PHD_FLAG_SHARED;
			vf->class_code = (uint32_t)(first - scan->records);
		}
	}
}

/*
 * Whether every listed function after the PF's VFs belongs to another PF.  If not, a removed VF may
 * hide the VFs that follow it.
 */
static bool is_row_complete(struct phd_scan *scan, const struct phd_pending *pf, uint64_t n,
			    size_t *claimed)
{
	struct phd_record *vf = seek(scan, &scan->records[pf->index], pf->first);
	size_t first = (size_t)(vf - scan->records);

	if (pf->stride > 1 || first + n != *claimed)
		return false;
	*claimed = first;
	return true;
}

/* 1 if the PF has exactly n VFs at this stride, 0 if not, or -errno. */
static int confirm_vfs(struct phd_scan *scan, const struct phd_pending *pf, uint64_t n,
		       size_t *claimed)
{
	uint64_t last, next = PHD_NONE64;
	int ret = read_virtfn(scan, n - 1, &last);

	if (ret < 0)
		return ret;
	if (last != pf->first + (n - 1) * pf->stride)
		return 0;
	if (!is_row_complete(scan, pf, n, claimed))
		ret = read_virtfn(scan, n, &next);
	return ret < 0 ? ret : next == PHD_NONE64;
}

/* 1 if the second VF tells another stride, 0 if not, or -errno. */
static int correct_stride(struct phd_scan *scan, struct phd_pending *pf)
{
	uint64_t second;
	int ret = read_virtfn(scan, 1, &second);

	if (ret < 0)
		return ret;
	if (second != PHD_NONE64 && (second <= pf->first || second - pf->first == pf->stride))
		return 0;
	pf->stride = second == PHD_NONE64 ? 0 : second - pf->first;
	return 1;
}

/* All functions from *claimed to the end of the directory are VFs already found. */
static int derive(struct phd_scan *scan, struct phd_pending *pf, size_t *claimed)
{
	uint64_t n = count_listed(scan, pf);
	int ret = phd_enter_function(scan, pf->index);

	if (ret < 0)
		return ret;
	if (n == 0 || ret == 1)
		return mark_doubtful(scan, pf->first);
	ret = confirm_vfs(scan, pf, n, claimed);
	if (ret == 0 && (ret = correct_stride(scan, pf)) == 1) {
		n = count_listed(scan, pf);
		ret = confirm_vfs(scan, pf, n, claimed);
	}
	if (ret < 0)
		return ret;
	if (ret == 0) {
		*claimed = 0;
		return mark_doubtful(scan, pf->first);
	}
	mark(scan, pf, n);
	return 0;
}

int phd_derive_vfs(struct phd_scan *scan)
{
	size_t claimed = scan->is_closed ? scan->directory_end : 0;
	int ret = 0;

	/* from the last one: no unclaimed function follows its VFs */
	for (size_t i = scan->pending_count; i-- > 0 && ret == 0;)
		ret = derive(scan, &scan->pending[i], &claimed);
	scan->pending_count = 0;
	scan->pending_first = PHD_NONE64;
	return ret;
}
