# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Character devices on the command line, and the guest devices connected to them.

Mirrors: qemuBuildChardevStr, qemuBuildSerialCommandLine and neighbours (src/qemu/qemu_command.c)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.bus_address_conf import CCIDAddress, VirtioSerialAddress
from pyhostdev.qemu.qemu_command.builder import on_off, option_value, unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

_NSS_DATABASE = "/etc/pki/nssdb"  # QEMU docs/ccid.txt
_SOCKET_NAME_MAX = 80  # bytes; the whole path of a socket can have 107


def add_chardev(build: CommandBuilder, device: Any, source: Any) -> str:
    """
    Add the host side of a device and return its id.

    Raises:
        ConfigUnsupportedError: we cannot build this kind of character device, or a part of it.
    """
    chardev = f"char{device.info.alias}"
    rule = _RULES.get(source.type)
    if rule is None:
        raise unsupported(f"A character device of type {source.type}", device)
    backend, *options = rule(build, device, source)
    options = _inherited(build, device, source, options)
    logs = [] if source.log_file is None else _log(build, device, source)
    build.add("-chardev", ",".join([backend, f"id={chardev}", *options, *logs]))
    return chardev


def _inherited(build: CommandBuilder, device: Any, source: Any, options: list[str]) -> list[str]:
    """Return the options with a descriptor in the place of a path, where QEMU inherits the open file or socket."""
    if source.type == "file":
        return _passed_source(build, device, source) or options
    if build.socket_fd is not None and source.type == "unix" and "server=on" in options:
        return [f"fd={build.socket_fd(source.path)}", *options[1:]]
    return options


def _passed_source(build: CommandBuilder, device: Any, source: Any) -> list[str]:
    """Return the options for an inherited file, to which QEMU appends; empty if QEMU opens the file itself."""
    path = build.passed_file(source.path, f"{device.info.alias}-source")
    return [] if path == source.path else [f"path={path}", "append=on"]


def _log(build: CommandBuilder, device: Any, source: Any) -> list[str]:
    """Return the options for the log of a device; QEMU appends to an inherited file, its opener truncates it."""
    path = build.passed_file(source.log_file, f"{device.info.alias}-log")
    append = path != source.log_file or source.log_append is not False
    return [f"logfile={option_value(path)}", f"logappend={on_off(append)}"]


def _plain(_build: CommandBuilder, _device: Any, source: Any) -> list[str]:
    return [source.type]


def _path(device: Any, source: Any) -> str:
    if source.path is None:
        raise unsupported(f"A character device of type {source.type} without a path", device)
    return f"path={option_value(source.path)}"


def _file(_build: CommandBuilder, device: Any, source: Any) -> list[str]:
    append = source.sources[0].append if source.sources else None
    return ["file", _path(device, source), *([] if append is None else [f"append={on_off(append)}"])]


def _dev(_build: CommandBuilder, device: Any, source: Any) -> list[str]:
    return ["parallel" if device.tag == "parallel" else "serial", _path(device, source)]


def _pipe(_build: CommandBuilder, device: Any, source: Any) -> list[str]:
    return ["pipe", _path(device, source)]


def _unix(build: CommandBuilder, device: Any, source: Any) -> list[str]:
    part = source.sources[0] if source.sources else None
    return ["socket", _path(device, source), *_listen(build, part, default="bind")]


def _listen(build: CommandBuilder, part: Any, default: str) -> list[str]:
    mode = (part.mode if part is not None else None) or default
    if mode == "bind":
        return ["server=on", "wait=off"]
    return reconnect_option(build, part)


def reconnect_option(build: CommandBuilder, part: Any) -> list[str]:
    """Return the option that lets QEMU connect again to a socket; empty if the definition does not mention it."""
    if part is None or part.reconnect_enabled is None:
        return []
    seconds = part.reconnect_timeout or 0 if part.reconnect_enabled else 0
    in_ms = build.release.has("reconnect-in-ms")
    return [f"reconnect-ms={seconds * 1000}" if in_ms else f"reconnect={seconds}"]


def _tcp(build: CommandBuilder, device: Any, source: Any) -> list[str]:
    part = source.source("bind") or source.source("connect")
    if part is None or part.tls:
        raise unsupported("A TCP character device without <source>, or with TLS,", device)
    telnet = ["telnet=on"] if source.protocol in ("telnet", "telnets") else []
    where = [f"host={option_value(part.host or '')}", f"port={option_value(part.service or '')}"]
    return ["socket", *where, *telnet, *_listen(build, part, default="connect")]


def _udp(_build: CommandBuilder, device: Any, source: Any) -> list[str]:
    there, here = source.source("connect"), source.source("bind")
    if there is None:
        raise unsupported("A UDP character device without <source mode='connect'>", device)
    options = [f"host={option_value(there.host or '')}", f"port={option_value(there.service or '')}"]
    if here is not None:
        options += [f"localaddr={option_value(here.host or '')}", f"localport={option_value(here.service or '0')}"]
    return ["udp", *options]


def _spicevmc(_build: CommandBuilder, device: Any, _source: Any) -> list[str]:
    names = {"redirdev": "usbredir", "smartcard": "smartcard"}
    return ["spicevmc", f"name={names.get(device.tag, 'vdagent')}"]


def _spiceport(_build: CommandBuilder, device: Any, source: Any) -> list[str]:
    channel = source.sources[0].channel if source.sources else None
    if channel is None:
        raise unsupported("A spiceport without a channel", device)
    return ["spiceport", f"name={option_value(channel)}"]


def _vdagent(_build: CommandBuilder, _device: Any, source: Any) -> list[str]:
    """Return QEMU's built-in agent for the clipboard and the mouse."""
    part = source.sources[0] if source.sources else None
    options = ["qemu-vdagent", "name=vdagent"]
    if part is not None and part.clipboard_copypaste is not None:
        options.append(f"clipboard={on_off(part.clipboard_copypaste)}")
    if part is not None and part.mouse_mode is not None:
        options.append(f"mouse={on_off(part.mouse_mode == 'client')}")
    return options


def _dbus(_build: CommandBuilder, device: Any, source: Any) -> list[str]:
    channel = source.sources[0].channel if source.sources else None
    if channel is None:
        raise unsupported("A character device of type dbus without a channel", device)
    return ["dbus", f"name={option_value(channel)}"]


_RULES: dict[str, Callable[[CommandBuilder, Any, Any], list[str]]] = {
    "null": _plain,
    "vc": _plain,
    "pty": _plain,
    "stdio": _plain,
    "file": _file,
    "dev": _dev,
    "pipe": _pipe,
    "unix": _unix,
    "tcp": _tcp,
    "udp": _udp,
    "spicevmc": _spicevmc,
    "spiceport": _spiceport,
    "qemu-vdagent": _vdagent,
    "dbus": _dbus,
}


def build_serials(build: CommandBuilder) -> None:
    """Add the serial ports."""
    for serial in build.dom.serials:
        with build.collecting():
            chardev = add_chardev(build, serial, serial.source)
            if serial.target_type == "system-serial":
                build.add("-serial", f"chardev:{chardev}")  # the port is part of the machine
                continue
            build.add_device(_serial(build, serial, chardev))


def _serial(build: CommandBuilder, serial: Any, chardev: str) -> Properties:
    """
    Return the properties of a serial port; its model is the name of QEMU's device.

    Raises:
        ConfigUnsupportedError: the port has no model.
    """
    if serial.target_model is None:
        raise unsupported(f"A <serial> of type {serial.target_type}", serial)
    index = serial.target_port if serial.target_type == "isa-serial" else None
    return {
        "driver": serial.target_model,
        "chardev": chardev,
        "id": serial.info.alias,
        "index": index,
        **build.address(serial),
    }


def build_parallels(build: CommandBuilder) -> None:
    """Add the parallel ports."""
    for parallel in build.dom.parallels:
        with build.collecting():
            chardev = add_chardev(build, parallel, parallel.source)
            build.add_device({"driver": "isa-parallel", "chardev": chardev, "id": parallel.info.alias})


def build_channels(build: CommandBuilder) -> None:
    """Add the named channels."""
    for channel in build.dom.channels:
        with build.collecting():
            if channel.target_type == "guestfwd":
                _build_forward(build, channel)
                continue
            if channel.target_type != "virtio":
                raise unsupported(f"A <channel> of type {channel.target_type}", channel)
            _default_path(build, channel)
            chardev = add_chardev(build, channel, channel.source)
            name = channel.target_name
            if channel.source.type == "spicevmc" and name is None:
                name = "com.redhat.spice.0"
            properties = {"driver": "virtserialport", **build.address(channel), "chardev": chardev}
            build.add_device({**properties, "id": channel.info.alias, "name": name})


def _build_forward(build: CommandBuilder, channel: Any) -> None:
    """Add an address in QEMU's own network that leads to the host's side of a channel."""
    chardev = add_chardev(build, channel, channel.source)
    where = f"tcp:{channel.target_address}:{channel.target_port}-chardev:{chardev}"
    build.add_json("-netdev", {"type": "user", "guestfwd": [{"str": where}], "id": channel.info.alias})


def _default_path(build: CommandBuilder, channel: Any) -> None:
    """Give a UNIX socket without a path one in the directory of this run, where guest agent clients expect it."""
    source = channel.source
    if source.type == "unix" and source.path is None:
        from pyhostdev.conf.chr_conf import ChrSourceElement

        path = f"{build.paths.channels}/{_socket_name(channel)}"
        source.sources = [ChrSourceElement(mode="bind", path=path)]


def _socket_name(channel: Any) -> str:
    """
    Return the file name of a channel's socket: the channel's name.

    Raises:
        ConfigUnsupportedError: the name is not a valid file name, or is too long.

    Mirrors: qemuDomainPrepareChannel
    """
    name = channel.target_name or _unnamed_socket(channel)
    if "/" in name or name in (".", "..") or len(os.fsencode(name)) > _SOCKET_NAME_MAX:
        raise unsupported(f"The name {name!a} of a <channel> without a path, which cannot name a socket,", channel)
    return str(name)


def _unnamed_socket(channel: Any) -> str:
    address = channel.info.address
    if not isinstance(address, VirtioSerialAddress):
        return "unknown.sock"
    return f"vioser-{address.controller:02d}-{address.bus:02d}-{address.port:02d}.sock"


def build_consoles(build: CommandBuilder) -> None:
    """Add the consoles, except one that repeats a serial port."""
    for console in build.dom.consoles:
        with build.collecting():
            if console.target_type == "serial":
                continue
            if console.target_type != "virtio":
                raise unsupported(f"A <console> of type {console.target_type}", console)
            chardev = add_chardev(build, console, console.source)
            properties = {"driver": "virtconsole", **build.address(console), "chardev": chardev}
            build.add_device({**properties, "id": console.info.alias})


def build_smartcards(build: CommandBuilder) -> None:
    """Add the smartcards, each in its reader."""
    for card in build.dom.smartcards:
        with build.collecting():
            address = card.info.address
            if not isinstance(address, CCIDAddress):
                raise unsupported("A smartcard without an address of type ccid", card)
            properties: Properties = {"driver": "ccid-card-emulated", "backend": "nss-emulated"}
            if card.mode == "host-certificates":
                names = {f"cert{number}": part.name for number, part in enumerate(card.certificates, 1)}
                database = card.database or _NSS_DATABASE
                properties = {"driver": "ccid-card-emulated", "backend": "certificates", **names, "db": database}
            if card.mode == "passthrough":
                properties = {"driver": "ccid-card-passthru", "chardev": add_chardev(build, card, card.source)}
            reader = build.controller("ccid", address.controller).info.alias
            build.add_device({**properties, "id": card.info.alias, "bus": f"{reader}.0"})


def build_redirdevs(build: CommandBuilder) -> None:
    """Add the redirected USB devices."""
    for redirdev in build.dom.redirdevs:
        with build.collecting():
            chardev = add_chardev(build, redirdev, redirdev.source)
            build.add_device(
                {
                    "driver": "usb-redir",
                    "chardev": chardev,
                    "id": redirdev.info.alias,
                    "filter": _redir_filter(build),
                    "bootindex": build.bootindex(redirdev),
                    **build.address(redirdev),
                }
            )


def _redir_filter(build: CommandBuilder) -> str | None:
    rules = []
    for rule in build.dom.redirfilter:
        version = "-1" if rule.version in (None, "-1") else f"0x{_bcd(rule.version):04X}"
        ids = (rule.class_, 2), (rule.vendor, 4), (rule.product, 4)
        words = ["-1" if value in (None, -1) else f"0x{value:0{width}X}" for value, width in ids]
        rules.append(":".join([*words, version, str(int(bool(rule.allow)))]))
    return "|".join(rules) or None


def _bcd(version: str) -> int:
    """Return a USB version as binary-coded decimal: 2.10 is 0x0210."""
    major, _, minor = version.partition(".")
    return int(major, 16) << 8 | int(minor.ljust(2, "0")[:2], 16)
