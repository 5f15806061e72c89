# SPDX-License-Identifier: LGPL-2.1-or-later
"""UUIDs as libvirt reads and prints them."""

from __future__ import annotations

_DIGITS = frozenset("0123456789abcdef")


def normal_uuid(text: str) -> str:
    """
    Return a UUID in lower case with its four dashes; dashes and blanks around it may be missing.

    Raises:
        ValueError: it has not 32 hexadecimal digits.

    Mirrors: virUUIDParse, virUUIDFormat (src/util/viruuid.c)
    """
    digits = text.strip().replace("-", "").lower()
    if len(digits) != 32 or not _DIGITS.issuperset(digits):
        raise ValueError(text)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
