/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Convert the text of a PCI address, in the kernel's form, to a key and back. */
#ifndef PHD_PCIADDRESS_H
#define PHD_PCIADDRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PHD_ADDRESS_MAX 17 /* eight digits of domain, and a NUL */

/* The value of a hexadecimal digit, or -1. */
static inline int phd_hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* As phd_hex_digit, but without capitals: the kernel does not use them in addresses. */
static inline int phd_lower_digit(char c)
{
	static const signed char plus_one[256] = {
		['0'] = 1,  ['1'] = 2,	['2'] = 3,  ['3'] = 4,	['4'] = 5,  ['5'] = 6,
		['6'] = 7,  ['7'] = 8,	['8'] = 9,  ['9'] = 10, ['a'] = 11, ['b'] = 12,
		['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
	};

	return plus_one[(unsigned char)c] - 1;
}

/* Four to eight digits; the kernel only pads to four.  Returns the text that follows, or NULL. */
static inline const char *phd_parse_domain(const char *text, uint64_t *domain)
{
	uint64_t value = 0;
	int length = 0, digit;

	while (length <= 8 && (digit = phd_lower_digit(text[length])) >= 0) {
		value = value << 4 | (unsigned int)digit;
		length++;
	}
	if (length < 4 || length > 8 || (length > 4 && text[0] == '0'))
		return NULL;
	*domain = value;
	return text + length;
}

/* False for any text that the kernel would not write: such a name is not a function's. */
static inline bool phd_parse_address(const char *text, uint64_t *key)
{
	uint64_t domain;
	const char *p = phd_parse_domain(text, &domain);
	int b1, b0, s1, s0;

	if (!p || p[0] != ':')
		return false;
	if ((b1 = phd_lower_digit(p[1])) < 0 || (b0 = phd_lower_digit(p[2])) < 0 || p[3] != ':')
		return false;
	if ((s1 = phd_lower_digit(p[4])) < 0 || s1 > 1 || (s0 = phd_lower_digit(p[5])) < 0)
		return false;
	if (p[6] != '.' || p[7] < '0' || p[7] > '7' || p[8] != '\0')
		return false;
	*key = domain << 16 | (uint64_t)(b1 << 12 | b0 << 8 | s1 << 7 | s0 << 3 | (p[7] - '0'));
	return true;
}

#define PHD_SLOT_LENGTH 4 /* "1f.7" */

static const char phd_digits[] = "0123456789abcdef";

/* The end of an address: what differs between the functions of a bus.  Writes no NUL. */
static inline void phd_format_slot(uint64_t key, char *out)
{
	out[0] = phd_digits[key >> 7 & 1];
	out[1] = phd_digits[key >> 3 & 15];
	out[2] = '.';
	out[3] = phd_digits[key & 7];
}

/* Writes no NUL; returns the number of bytes. */
static inline size_t phd_format_address(uint64_t key, char *text)
{
	char *out = text;
	int width = 4;

	while (width < 8 && key >> (16 + 4 * width))
		width++;
	while (width > 0)
		*out++ = phd_digits[key >> (16 + 4 * --width) & 15];
	*out++ = ':';
	*out++ = phd_digits[key >> 12 & 15];
	*out++ = phd_digits[key >> 8 & 15];
	*out++ = ':';
	phd_format_slot(key, out);
	return (size_t)(out + PHD_SLOT_LENGTH - text);
}

#endif
