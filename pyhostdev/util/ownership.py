# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The user that a program runs as: a user, a group, and the user's supplementary groups.

Names are looked up in this machine's databases. A number in libvirt's spelling ``+64055`` is never looked up as a
name.
"""

from __future__ import annotations

import grp
import os
import pwd

from pyhostdev.errors import ConfigError
from pyhostdev.util.typed import NamedTuple

DEFAULT_USERS = ("libvirt-qemu", "qemu")  # from the packages of Debian and Fedora

_ID_MAX = 2**32 - 2  # 2**32 - 1 means "unchanged" in the system calls


class Ownership(NamedTuple):
    """A user and a group by number; ``name`` is the user's name, or the number if the user has no name."""

    uid: int
    gid: int
    name: str

    @property
    def is_root(self) -> bool:
        """True if the user is root."""
        return self.uid == 0

    def groups(self) -> list[int]:
        """
        Return all groups of the user, ``gid`` included, sorted.

        Mirrors: virGetGroupList (src/util/virutil.c)
        """
        user = _find_user(self.name)
        if user is None or user.pw_uid != self.uid:
            return [self.gid]
        return sorted({self.gid, *os.getgrouplist(self.name, user.pw_gid)})


def parse_ownership(text: str) -> Ownership:
    """
    Return the user and group of ``USER[:GROUP]``, names or numbers; without GROUP, the user's primary group.

    Raises:
        ConfigError: this machine does not have the user or the group.

    Mirrors: virParseOwnershipIds, virGetUserID, virGetGroupID (src/util/virutil.c)
    """
    user_text, colon, group_text = text.partition(":")
    user = _find_user(user_text)
    uid = _number(user_text) if user is None else user.pw_uid
    if uid is None:
        raise ConfigError(f"Unknown user {user_text!a}")
    user = user or _find_uid(uid)
    gid = _parse_group(group_text) if colon else None
    if gid is None:
        if user is None:
            raise ConfigError(f"The user {user_text!a} has no primary group; write {user_text!a}:GROUP")
        gid = user.pw_gid
    return Ownership(uid, gid, str(uid) if user is None else user.pw_name)


def default_ownership() -> Ownership | None:
    """
    Return the default user for a QEMU that root starts; None if this machine has none of the default users.

    The group is the one with the user's name, if it exists. The primary group is ``kvm`` on Debian, and any user of
    virtual machines may be a member of it.
    """
    user = next((user for name in DEFAULT_USERS if (user := _find_user(name)) is not None), None)
    if user is None:
        return None
    group = _find_group(user.pw_name)
    return Ownership(user.pw_uid, user.pw_gid if group is None else group, user.pw_name)


def chosen_ownership(user: str | None) -> Ownership | None:
    """
    Return the user for a QEMU that we start: ``user`` if given, else the default; None for the current user.

    Raises:
        ConfigError: this machine does not have the user, or only root could switch to it.
    """
    asked = None if user is None else parse_ownership(user)
    if asked is not None and os.geteuid() != 0 and (asked.uid, asked.gid) != (os.geteuid(), os.getegid()):
        raise ConfigError(f"Only root can run QEMU as another user, here '{asked.name}'")
    if asked is not None and asked.is_root and asked.gid != 0:
        raise ConfigError("QEMU run as root must use the group root")
    if os.geteuid() != 0 or (asked is not None and asked.is_root):
        return None
    return asked or default_ownership()


def _parse_group(text: str) -> int:
    group = _find_group(text)
    gid = _number(text) if group is None else group
    if gid is None:
        raise ConfigError(f"Unknown group {text!a}")
    return gid


def _find_user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except (KeyError, ValueError):  # a NUL byte is a ValueError
        return None


def _find_uid(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def _find_group(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return None


def _number(text: str) -> int | None:
    """Return the number of a user or a group, with or without libvirt's "+"; None if it is not a valid number."""
    digits = text.removeprefix("+")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(_ID_MAX))):
        return None
    return int(digits) if int(digits) <= _ID_MAX else None
