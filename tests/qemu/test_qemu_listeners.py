# SPDX-License-Identifier: LGPL-2.1-or-later
"""The addresses and TCP ports at which QEMU would listen, and the findings about those that it cannot have."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.hypervisor.host import Host
from pyhostdev.qemu import qemu_driver
from pyhostdev.qemu.qemu_capabilities.reading import load
from pyhostdev.qemu.qemu_command import build_command_line
from pyhostdev.qemu.qemu_domain.define import define
from pyhostdev.qemu.qemu_process.listeners import choose_ports, listener_obstacles
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.ownership import Ownership
from pyhostdev.util.tcplisteners import can_bind_privileged, needs_privilege

STRANGER = Ownership(4_000_000_123, 4_000_000_124, "4000000123")
FOREIGN = "192.0.2.77"  # RFC 5737: no host has it
EVERY = "0.0.0.0"  # noqa: S104 - what a definition may name


def domain(devices: str) -> DomainDef:
    return DomainDef.parse(
        "<domain type='qemu'><name>vm</name><memory unit='MiB'>64</memory>"
        f"<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{devices}</devices></domain>"
    )


def serial(port: object, host: str = "127.0.0.1", tag: str = "serial", inside: str = "") -> str:
    return f"<{tag} type='tcp'><source mode='bind' host='{host}' service='{port}'/>{inside}</{tag}>"


def screen(kind: str, port: object, host: str = "127.0.0.1", more: str = "") -> str:
    return f"<graphics type='{kind}' port='{port}' {more}><listen type='address' address='{host}'/></graphics>"


def findings(devices: str, ownership: Ownership | None = None) -> list[tuple[str, str]]:
    found = list(listener_obstacles(domain(devices), Host("/"), ownership))
    assert {"error"} >= {finding.severity for finding in found}
    return [(finding.reason, finding.message) for finding in found]


@contextmanager
def listening(host: str = "127.0.0.1", family: int = socket.AF_INET, *, only_v6: bool = False) -> Iterator[int]:
    """Listen at a free port; yield the port."""
    with socket.socket(family) as server:
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        server.bind((host, 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("devices", "what"),
    [
        (screen("vnc", "{port}"), "<graphics type='vnc'>"),
        (screen("vnc", "5900", more="autoport='yes' websocket='{port}'"), "<graphics type='vnc'>"),
        (screen("spice", "{port}"), "<graphics type='spice'>"),
        (serial("{port}"), "<serial>"),
        (serial("{port}", tag="console"), "<console>"),
        (serial("{port}", tag="channel", inside="<target type='virtio' name='x'/>"), "<channel>"),
        (
            "<interface type='server'><source address='127.0.0.1' port='{port}'/></interface>",
            "<interface type='server'>",
        ),
    ],
)
def test_a_taken_port_is_a_finding(devices: str, what: str) -> None:
    """QEMU could not listen at it; when the other program has ended, it can."""
    with listening() as port:
        message = f"TCP port {port} of {what} is in use at '127.0.0.1'"
        assert [("port-unusable", message)] == findings(devices.format(port=port))
    assert [] == findings(devices.format(port=port))


def test_a_plan_and_a_start_tell_it_with_its_line(tmp_path: Path) -> None:
    """A plan has it as a note beside all others, and a domain with it cannot start."""
    with listening() as port:
        dom = domain(f"\n{serial(port)}\n{serial(port, FOREIGN)}")
        plan = qemu_driver.plan(Host("/", state_dir=str(tmp_path)), dom)
        found = [(finding.line, finding.reason) for finding in plan.start_obstacles if finding.line in (2, 3)]
    assert [(2, "port-unusable"), (3, "address-missing")] == sorted(found)
    assert not plan.can_start


@pytest.mark.parametrize(
    ("taken", "only_v6", "wanted", "refused"),
    [
        (EVERY, False, "127.0.0.1", True),
        ("127.0.0.1", False, EVERY, True),
        ("127.0.0.1", False, "127.0.0.2", False),
        ("127.0.0.1", False, "::1", False),
        ("127.0.0.1", False, "::", False),
        ("::", False, "127.0.0.1", True),
        ("::", True, "127.0.0.1", False),
        ("::", True, "::1", True),
        ("::1", True, "::", True),
        ("::ffff:127.0.0.1", False, "127.0.0.1", True),
    ],
)
def test_what_two_sockets_exclude(taken: str, only_v6: bool, wanted: str, refused: bool) -> None:
    """The rules of the kernel: all addresses overlap each one, and IPv6 takes IPv4 along unless it says otherwise."""
    family = socket.AF_INET6 if ":" in taken else socket.AF_INET
    if ":" in taken + wanted and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with listening(taken, family, only_v6=only_v6) as port:
        assert refused == bool(findings(serial(port, wanted)))


def has_ipv6() -> bool:
    try:
        with listening("::1", socket.AF_INET6):
            return True
    except OSError:
        return False


def test_a_connection_takes_no_port() -> None:
    """Behind the listeners the kernel lists connections; QEMU may listen beside one."""
    with listening() as port, socket.create_connection(("127.0.0.1", port)) as client:
        own = client.getsockname()[1]
        assert [] == findings(serial(own, "127.0.0.2"))


@pytest.mark.parametrize(
    "devices",
    [
        screen("vnc", "-1", FOREIGN),
        screen("spice", "-1", FOREIGN),
        serial(1, FOREIGN),
        "<interface type='server'><source address='192.0.2.77' port='9999'/></interface>",
        "<interface type='udp'><source address='127.0.0.1' port='9'><local address='192.0.2.77' port='9'/></source>"
        "</interface>",
        "<serial type='udp'><source mode='bind' host='192.0.2.77' service='9'/>"
        "<source mode='connect' host='127.0.0.1' service='9'/></serial>",
        serial(1, "2001:db8::77"),
    ],
)
def test_an_address_that_is_not_the_hosts_is_a_finding(devices: str) -> None:
    """QEMU could not listen at it."""
    assert "address-missing" in [reason for reason, _ in findings(devices)]


def test_what_is_not_known_is_no_finding() -> None:
    """A name would be a question to a name server; a peer's address, an automatic port and a socket are left alone."""
    with listening() as port:
        devices = [
            serial(port, "localhost"),
            serial("http"),
            serial(port).replace("bind", "connect"),
            screen("vnc", port, more="autoport='yes'"),
            f"<graphics type='spice' port='{port}'><listen type='none'/></graphics>",
            f"<graphics type='vnc' port='{port}' socket='/x'/>",
            "<graphics type='sdl'/>",
        ]
        assert [] == findings("".join(devices))


def test_two_devices_with_one_port() -> None:
    """The second could not listen; a console that stands for the serial port is the same device."""
    with listening() as port:
        pass
    message = f"TCP port {port} of <serial> is also the port of <serial>"
    assert [("port-unusable", message)] == findings(serial(port) + serial(port, EVERY))
    assert [] == findings(serial(port) + serial(port, tag="console"))


def test_a_port_of_root(tmp_path: Path) -> None:
    """Below the first unprivileged port QEMU's user cannot listen, as it has no capabilities."""
    message = "TCP port 1 of <serial> needs a privilege that QEMU does not have"
    expected = [("port-unusable", message)] if needs_privilege(HostRoot("/"), 1) else []
    assert expected == findings(serial(1), STRANGER)
    assert [] == findings(serial(1), Ownership(0, 0, "root"))
    assert [] == findings(serial(65000), STRANGER)
    status = tmp_path / "proc/self/status"
    status.parent.mkdir(parents=True)
    for bits, allowed in (("00000000a80425fb", True), ("0000000000000000", False)):
        status.write_text(f"Name:\tx\nCapEff:\t{bits}\n")
        assert allowed == can_bind_privileged(HostRoot(tmp_path))
    limit = tmp_path / "proc/sys/net/ipv4/ip_unprivileged_port_start"
    limit.parent.mkdir(parents=True)
    limit.write_text("1024\n")
    assert [True, False, False] == [needs_privilege(HostRoot(tmp_path), port) for port in (1023, 1024, 0)]


def test_another_machines_ports_are_unknown(tmp_path: Path) -> None:
    """A directory in place of / is another machine, or a recorded one."""
    with listening() as port:
        assert [] == list(listener_obstacles(domain(serial(port) + serial(1, FOREIGN)), Host(tmp_path), STRANGER))


def test_automatic_ports_are_free(tmp_path: Path) -> None:
    """Each server gets the first free port, and the command line has it; a fixed port of the domain counts as used."""
    caps = load("x86_64", "11.1")
    text = screen("vnc", -1, more="websocket='-1'") + screen("spice", -1, more="autoport='yes'")

    def chosen(devices: str, host: Host) -> tuple[DomainDef, list[int | None]]:
        dom = define(domain(devices), caps)
        choose_ports(dom, host)
        return dom, [port for graphics in dom.graphics for port in (graphics.port, graphics.websocket) if port]

    dom, (vnc, websocket, spice) = chosen(text, Host("/"))
    assert vnc is not None
    assert len({vnc, websocket, spice}) == 3
    argv = build_command_line(dom, caps)
    assert f"127.0.0.1:{vnc - 5900},websocket={websocket}" in argv[argv.index("-vnc") + 1]
    assert f"port={spice},addr=127.0.0.1" in argv[argv.index("-spice") + 1]
    with socket.create_server(("127.0.0.1", vnc)):
        again = chosen(text, Host("/"))[1]
        assert vnc not in again
        assert again[2] not in chosen(text + serial(again[2]), Host("/"))[1]
    assert [-1, -1] == chosen(text, Host(tmp_path))[1]  # of another machine nothing is known
