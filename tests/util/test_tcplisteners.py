# SPDX-License-Identifier: LGPL-2.1-or-later
"""Numeric addresses, and the rows of the kernel's tables of TCP sockets."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.tcplisteners import Endpoint, is_local, is_taken, parse_address, read_listeners

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "  12: {} 00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 5 1 0000000000000000 100\n"


@pytest.mark.parametrize("text", ["127.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "::ffff:1.2.3.4"])
def test_a_numeric_address_is_what_the_c_library_reads(text: str) -> None:
    """It has 4 or 16 bytes."""
    assert socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text) == parse_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "1.2.3",
        "1.2.3.4.5",
        "1.2.3.256",
        "01.2.3.4",
        "1.2.3.-4",
        "1.2.3.\u0664",
        "fe80::1%lo",
        ":",
        "1::2::3",
    ],
)
def test_anything_else_is_a_name(text: str) -> None:
    """The C library would read some as numbers with another base, and ask a name server for others."""
    assert parse_address(text) is None


def test_listeners_stand_before_connections(tmp_path: Path) -> None:
    """The kernel prints words of 32 bits in its own byte order; rows after the first connection are not read."""
    net = tmp_path / "proc/net"
    net.mkdir(parents=True)
    words = [socket.inet_pton(socket.AF_INET, text) for text in ("127.0.0.1", "192.0.2.1")]
    shown = [f"{int.from_bytes(word, sys.byteorder):08X}" for word in words]
    rows = [(f"{shown[0]}:170C", "0A"), (f"{shown[1]}:0050", "0A"), (f"{shown[1]}:170D", "01"), ("00000000:1111", "0A")]
    (net / "tcp").write_text(HEAD + "".join(ROW.format(*row) for row in rows))
    assert [Endpoint(words[0], 5900), Endpoint(words[1], 80)] == read_listeners(HostRoot(tmp_path))
    (net / "tcp6").write_text(HEAD + ROW.format("0" * 32 + ":0051", "0A"))
    assert Endpoint(bytes(16), 81) == read_listeners(HostRoot(tmp_path))[-1]
    assert [] == read_listeners(HostRoot(tmp_path / "nothing"))


def test_this_machine() -> None:
    """A socket that listens is in the tables; an address of documentation is not the machine's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = Endpoint(b"\x7f\0\0\x01", server.getsockname()[1])
        assert is_taken(place, read_listeners(HostRoot("/")))
    assert not is_taken(place, read_listeners(HostRoot("/")))
    assert [True, True, False] == [is_local(a) for a in (b"\x7f\0\0\x02", bytes(16), b"\xc0\0\2\x4d")]
