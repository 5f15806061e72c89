# SPDX-License-Identifier: LGPL-2.1-or-later
"""Users and groups as a user writes them."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from pyhostdev.errors import ConfigError
from pyhostdev.util import ownership
from pyhostdev.util.ownership import Ownership, chosen_ownership, default_ownership, parse_ownership

UNUSED = 4_000_000_123  # a number that no user of a machine has
ROOT = pwd.getpwuid(0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("root", Ownership(0, 0, "root")),
        ("0", Ownership(0, 0, "root")),
        ("+0", Ownership(0, 0, "root")),
        ("root:+7", Ownership(0, 7, "root")),
        (f"{UNUSED}:9", Ownership(UNUSED, 9, str(UNUSED))),
    ],
)
def test_names_and_numbers(text: str, expected: Ownership) -> None:
    """A user or a group is a name or a number; without a group, the user's primary group is used."""
    assert expected == parse_ownership(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":0", "no-such-user", "root:", "root:no-such-group", "-1", "4294967295", "99999999999"),
        *("ro\0ot", "0x0", str(UNUSED), "٣", "root:0:0", "+", " 0"),
    ],
)
def test_unknown_is_refused(text: str) -> None:
    """A name without a user or group on this machine is refused; -1, which means "unchanged", is not a valid number."""
    with pytest.raises(ConfigError):
        parse_ownership(text)


def test_groups_are_those_of_the_user() -> None:
    """The supplementary groups are those of the user's login, plus the requested group."""
    assert sorted({7, *os.getgrouplist("root", ROOT.pw_gid)}) == parse_ownership("root:7").groups()
    assert [9] == parse_ownership(f"{UNUSED}:9").groups()


def test_default_is_the_first_user_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is the first existing default user, with the group of that name if it exists; else None."""
    name = ROOT.pw_name
    monkeypatch.setattr(ownership, "DEFAULT_USERS", ("no-such-user", name))
    assert Ownership(0, grp.getgrnam(name).gr_gid, name) == default_ownership()
    monkeypatch.setattr(ownership, "DEFAULT_USERS", ("no-such-user",))
    assert default_ownership() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may choose")
def test_root_chooses_and_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """--user takes precedence, root means root itself, and without --user the default applies."""
    monkeypatch.setattr(ownership, "DEFAULT_USERS", ("no-such-user",))
    assert chosen_ownership(None) is None
    assert chosen_ownership("root") is None
    assert Ownership(UNUSED, 9, str(UNUSED)) == chosen_ownership(f"{UNUSED}:9")
    with pytest.raises(ConfigError, match="must use the group root"):
        chosen_ownership("root:+9")


def test_others_can_name_themselves_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root, QEMU runs as the caller: naming another user is an error, not ignored."""
    monkeypatch.setattr(os, "geteuid", lambda: UNUSED)
    monkeypatch.setattr(os, "getegid", lambda: 9)
    assert chosen_ownership(None) is None
    assert chosen_ownership(f"{UNUSED}:9") is None
    with pytest.raises(ConfigError, match="Only root"):
        chosen_ownership("root")
