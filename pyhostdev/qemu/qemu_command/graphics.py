# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Input, graphics, video and sound on the command line.

Mirrors: qemuBuildInputCommandLine, qemuBuildGraphicsCommandLine, qemuBuildVideoCommandLine,
qemuBuildSoundCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError
from pyhostdev.hypervisor.virnetwork import read_network
from pyhostdev.qemu.qemu_command.audio import audio_id
from pyhostdev.qemu.qemu_command.builder import on_off, option_value, unsupported, virtio_driver, virtio_options
from pyhostdev.qemu.qemu_domain import ARM, PPC64
from pyhostdev.util.rendernode import first_render_node
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

_ADDRESS_CHARACTERS = frozenset(string.ascii_letters + string.digits + ".:%_-[]")
VNC_PORT = 5900
SPICE_PORT = 5900
WEBSOCKET_PORT = 5700
_USB_INPUTS = {"mouse": "usb-mouse", "tablet": "usb-tablet", "keyboard": "usb-kbd"}

_PRIMARY_VIDEO = {
    "vga": "VGA",
    "cirrus": "cirrus-vga",
    "vmvga": "vmware-svga",
    "qxl": "qxl-vga",
    "virtio": "virtio-vga",
    "bochs": "bochs-display",
    "ramfb": "ramfb",
}
_SECONDARY_VIDEO = {"qxl": "qxl", "virtio": "virtio-gpu-pci", "bochs": "bochs-display"}

_SOUND_DRIVERS = {
    "ich6": "intel-hda",
    "ich9": "ich9-intel-hda",
    "ac97": "AC97",
    "es1370": "ES1370",
    "sb16": "sb16",
    "usb": "usb-audio",
    "virtio": "virtio-sound-pci",
}
_CODEC_DRIVERS = {"duplex": "hda-duplex", "micro": "hda-micro", "output": "hda-output"}


def build_inputs(build: CommandBuilder) -> None:
    """Add the input devices; PS/2 ones are part of the machine."""
    for device in build.dom.inputs:
        with build.collecting():
            if device.bus == "usb":
                driver = {"driver": _USB_INPUTS[device.type], "id": device.info.alias}
                build.add_device({**driver, **build.address(device)})
            elif device.bus == "virtio":
                _build_virtio_input(build, device)
            elif device.type == "evdev":
                _build_evdev(build, device)
            elif device.bus not in ("ps2", None, "none"):
                raise unsupported(f"An <input> of type {device.type} on the bus '{device.bus}'", device)


def _build_virtio_input(build: CommandBuilder, device: Any) -> None:
    kind = "input-host" if device.type == "passthrough" else device.type
    properties = {
        "driver": virtio_driver(kind, device.model),
        **virtio_options(device),
        "id": device.info.alias,
        "evdev": device.source_evdev,
    }
    build.add_device({**properties, **build.address(device)})


def _build_evdev(build: CommandBuilder, device: Any) -> None:
    """
    Add an event device of the host; the guest gets its events through its own keyboard and mouse.

    Raises:
        ConfigError: <source> has no dev.

    Mirrors: qemuBuildInputEvdevProps
    """
    if device.source_dev is None:
        text = "An <input type='evdev'> without <source dev=> names no node"
        raise ConfigError(text, line=device.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)
    words = {
        "evdev": device.source_dev,
        "repeat": device.source_repeat,
        "grab_all": True if device.source_grab == "all" else None,
        "grab-toggle": device.source_grab_toggle,
    }
    build.add_object("input-linux", str(device.info.alias), **words)


def build_graphics(build: CommandBuilder) -> None:
    """
    Add the displays and display servers.

    Raises:
        ConfigUnsupportedError: we cannot build this kind of graphics.
    """
    for graphics in build.dom.graphics:
        with build.collecting():
            rule = _GRAPHICS.get(graphics.type)
            if rule is None:
                raise unsupported(f"<graphics type='{graphics.type}'>", graphics)
            if any(other.type == graphics.type for other in build.dom.graphics if other is not graphics):
                raise unsupported(f"More than one <graphics> of type {graphics.type}", graphics)
            if len(graphics.listens) > 1:
                raise unsupported("More than one <listen> of <graphics>", graphics)
            rule(build, graphics)


def _network_address(host: HostFacts | None, graphics: Any, listen: Any) -> str:
    """
    Return the address that the host has in a network of libvirt.

    Raises:
        ConfigUnsupportedError: no host is at hand, or the network is not active there or has no address.

    Mirrors: qemuProcessGraphicsSetupNetworkAddress (src/qemu/qemu_process.c)
    """
    network = None if host is None else read_network(host.root, str(listen.network))
    if network is None or not network.is_active or network.definition.address is None:
        what = f"<listen type='network'> of the network '{shown(str(listen.network))}', which has no address here,"
        raise unsupported(what, graphics, "use <listen type='address'>")
    return network.definition.address


def listen_address(graphics: Any, host: HostFacts | None) -> str:
    """
    Return the address at which a server listens; None as host means that none is at hand.

    Raises:
        ConfigUnsupportedError: the network has no address on this host, or the address is malformed.
    """
    listen = graphics.listens[0] if graphics.listens else None
    if listen is not None and listen.type == "network":
        address = _network_address(host, graphics, listen)
    else:
        address = (listen.address if listen is not None else graphics.listen) or "127.0.0.1"
    if not _ADDRESS_CHARACTERS.issuperset(address):
        raise unsupported(f"The address '{shown(address)}' of <graphics>", graphics)
    return address


def _listen_address(build: CommandBuilder, graphics: Any) -> str:
    """Return the address at which a server listens, one of IPv6 in brackets."""
    address = listen_address(graphics, build.host)
    return f"[{address}]" if ":" in address else address


def _socket_path(build: CommandBuilder, graphics: Any) -> str | None:
    """Return the path of the UNIX socket at which a server listens, by default one of this run; None without one."""
    listen = graphics.listens[0] if graphics.listens else None
    if listen is not None and listen.type == "socket":
        return str(listen.socket or build.paths.graphics_socket(graphics.type))
    return None if graphics.socket is None else str(graphics.socket)


def _vnc(build: CommandBuilder, graphics: Any) -> None:
    """
    Add a VNC server; without a fixed port it gets the first display.

    The password is set over the monitor, because every user can read the arguments.

    Mirrors: qemuBuildGraphicsVNCCommandLine
    """
    socket = _socket_path(build, graphics)
    options = [_vnc_display(build, graphics, socket), *_vnc_options(graphics, has_port=socket is None)]
    audio = audio_id(build, graphics)
    build.add("-vnc", ",".join([*options, *([f"audiodev={audio}"] if audio else [])]))
    if graphics.keymap is not None:
        build.add("-k", graphics.keymap)


def _vnc_options(graphics: Any, *, has_port: bool) -> list[str]:
    options = []
    if graphics.websocket is not None and has_port:
        options.append(f"websocket={graphics.websocket if graphics.websocket != -1 else WEBSOCKET_PORT}")
    if graphics.share_policy is not None:
        options.append(f"share={graphics.share_policy}")
    if graphics.passwd is not None:
        options.append("password=on")
    if graphics.power_control is not None:
        options.append(f"power-control={on_off(graphics.power_control)}")
    return options


def _vnc_display(build: CommandBuilder, graphics: Any, socket: str | None) -> str:
    """
    Return where VNC listens: a socket, nowhere, or an address and the number of a display.

    Raises:
        ConfigUnsupportedError: the port is below VNC's first port.
    """
    if socket is not None:
        return f"vnc=unix:{option_value(socket)}"
    if graphics.listens and graphics.listens[0].type == "none":
        return "none"
    port = graphics.port if graphics.port not in (None, -1) else VNC_PORT
    if port < VNC_PORT:
        raise unsupported(f"The port {port} of VNC, which is below {VNC_PORT},", graphics)
    return f"{option_value(_listen_address(build, graphics))}:{port - VNC_PORT}"


def _spice(build: CommandBuilder, graphics: Any) -> None:
    """
    Add a SPICE server; as with VNC, the monitor sets the password.

    Mirrors: qemuBuildGraphicsSPICECommandLine
    """
    if graphics.tls_port not in (None, -1):
        raise unsupported("A TLS port of <graphics type='spice'>", graphics)
    if any(channel.mode == "secure" for channel in graphics.channels) or graphics.default_mode == "secure":
        raise unsupported("A secure channel of <graphics type='spice'>, which needs TLS,", graphics)
    options = _spice_place(build, graphics)
    options += [] if graphics.passwd is not None else ["disable-ticketing=on"]
    if graphics.mouse_mode is not None:
        options.append(f"agent-mouse={on_off(graphics.mouse_mode == 'client')}")
    options += ["plaintext-channel=default"] if graphics.default_mode == "insecure" else []
    options += [f"plaintext-channel={channel.name}" for channel in graphics.channels if channel.mode == "insecure"]
    options += [*_spice_options(graphics, _render_node(build, graphics)), "seamless-migration=on"]
    build.add("-spice", ",".join(options))
    if graphics.keymap is not None:
        build.add("-k", graphics.keymap)


def _spice_place(build: CommandBuilder, graphics: Any) -> list[str]:
    """Return where SPICE listens: a socket, nowhere, or a port of an address."""
    socket = _socket_path(build, graphics)
    if socket is not None:
        unix = "unix=on" if build.release.has("spice-unix-on") else "unix"
        return [unix, f"addr={option_value(socket)}"]
    if graphics.listens and graphics.listens[0].type == "none":
        return ["port=0"]  # QEMU requires a port even without a server
    port = graphics.port if graphics.port not in (None, -1) else SPICE_PORT
    return [f"port={port}", f"addr={option_value(_listen_address(build, graphics).strip('[]'))}"]


_SPICE_VALUES = (
    ("image-compression", "image_compression"),
    ("jpeg-wan-compression", "jpeg_compression"),
    ("zlib-glz-wan-compression", "zlib_compression"),
    ("playback-compression", "playback_compression"),
    ("streaming-video", "streaming_mode"),
)


def _spice_value(value: bool | str) -> str:
    return on_off(value) if isinstance(value, bool) else option_value(value)


def _spice_options(graphics: Any, render_node: str | None) -> list[str]:
    values = ((option, getattr(graphics, name)) for option, name in _SPICE_VALUES)
    options = [f"{option}={_spice_value(value)}" for option, value in values if value is not None]
    if graphics.clipboard_copypaste is False:
        options.append("disable-copy-paste=on")
    if graphics.filetransfer_enable is False:
        options.append("disable-agent-file-xfer=on")
    if graphics.gl_enable:
        options.append("gl=on")
        if render_node is not None:
            options.append(f"rendernode={option_value(render_node)}")
    return options


def _render_node(build: CommandBuilder, graphics: Any) -> str | None:
    """
    Return the render node of <graphics>, or the host's first; None leaves the choice to QEMU.

    Mirrors: qemuProcessGraphicsSetupRenderNode (src/qemu/qemu_process.c)
    """
    if not graphics.needs_render_node or build.host is None:
        return graphics.gl_rendernode  # type: ignore[no-any-return]
    return first_render_node(build.host.root)


def _sdl(build: CommandBuilder, graphics: Any) -> None:
    gl = [] if graphics.gl_enable is None else [f"gl={on_off(graphics.gl_enable)}"]
    build.add("-display", ",".join(["sdl", *gl]))


def _egl_headless(build: CommandBuilder, graphics: Any) -> None:
    node = _render_node(build, graphics)
    build.add("-display", ",".join(["egl-headless", *([f"rendernode={option_value(node)}"] if node else [])]))


def _dbus(build: CommandBuilder, graphics: Any) -> None:
    """
    Show the screen on D-Bus: on an existing bus, on one of this run, or to a client that connects over the monitor.

    Mirrors: qemuBuildGraphicsDBusCommandLine
    """
    address = graphics.address or f"unix:path={build.paths.dbus_socket}"
    options = ["dbus", "p2p=on" if graphics.p2p else f"addr={option_value(address)}"]
    if graphics.gl_enable is not None:
        options.append(f"gl={on_off(graphics.gl_enable)}")
        if graphics.gl_enable and graphics.gl_rendernode is not None:
            options.append(f"rendernode={option_value(graphics.gl_rendernode)}")
    if graphics.audio_id is not None:
        options.append(f"audiodev=audio{graphics.audio_id}")
    build.add("-display", ",".join(options))


_GRAPHICS: dict[str, Callable[[CommandBuilder, Any], None]] = {
    "vnc": _vnc,
    "spice": _spice,
    "sdl": _sdl,
    "egl-headless": _egl_headless,
    "dbus": _dbus,
}


def build_videos(build: CommandBuilder) -> None:
    """
    Add the video cards; firmware uses the first one.

    Mirrors: qemuBuildVideoCommandLine
    """
    for number, video in enumerate(build.dom.videos):
        with build.collecting():
            if video.model_type == "none":
                continue
            if video.driver_name == "vhostuser":
                raise unsupported("A <video> of driver vhostuser", video)
            driver = _video_driver(build, video, is_first=number == 0)
            build.add_device({"driver": driver, **_video(video), **build.address(video)})


def _video_driver(build: CommandBuilder, video: Any, *, is_first: bool) -> str:
    """
    Return the device of a card: the first one on x86 has VGA; one with 3D acceleration has OpenGL.

    Mirrors: qemuBuildVideoDeviceProps
    """
    drivers = _PRIMARY_VIDEO if is_first else _SECONDARY_VIDEO
    driver = drivers.get(video.model_type)
    if driver is None:
        raise unsupported(f"A <video> of type {video.model_type} here", video)
    if driver == "virtio-vga" and build.dom.os.arch in (*ARM, *PPC64):
        driver = "virtio-gpu-pci"
    with_opengl = {"virtio-vga": "virtio-vga-gl", "virtio-gpu-pci": "virtio-gpu-gl-pci"}
    return with_opengl.get(driver, driver) if video.accel3d else driver


def _video(video: Any) -> Properties:
    common = {"id": video.info.alias}
    size = {"xres": video.resolution_x, "yres": video.resolution_y}
    screen: Properties = {**size, "edid": video.edid}
    if video.model_type == "qxl":
        return {**common, **_qxl_memory(video), **size}
    if video.model_type == "virtio":
        return {**virtio_options(video), **common, "max_outputs": video.heads, "blob": video.blob, **screen}
    if video.model_type in ("vga", "vmvga"):
        return {**common, "vgamem_mb": video.vram // 1024 if video.vram else None, **screen}
    if video.model_type == "bochs":
        return {**common, "vgamem": video.vram * 1024 if video.vram else None, **screen}
    return common


def _qxl_memory(video: Any) -> Properties:
    return {
        "max_outputs": video.heads,
        "ram_size": (video.ram or 0) * 1024,
        "vram_size": (video.vram or 0) * 1024,
        "vram64_size_mb": (video.vram64 or 0) // 1024,
        "vgamem_mb": (video.vgamem or 0) // 1024,
    }


def build_sounds(build: CommandBuilder) -> None:
    """Add sound cards; the machine has its own speaker."""
    for sound in (part for part in build.dom.sounds if part.model != "pcspk"):
        with build.collecting():
            driver = _SOUND_DRIVERS.get(sound.model)
            if driver is None:
                raise unsupported(f"<sound model='{sound.model}'>", sound)
            has_codecs = driver.endswith("intel-hda")
            audio = None if has_codecs else audio_id(build, sound)
            properties = {"driver": driver, **_sound_options(sound), "id": sound.info.alias, "audiodev": audio}
            own = {"multi": sound.multichannel, "streams": sound.streams}
            build.add_device({**properties, **own, **build.address(sound)})
            if has_codecs:
                _build_codecs(build, sound)


def _sound_options(sound: Any) -> Properties:
    return virtio_options(sound) if sound.model == "virtio" else {}


def _build_codecs(build: CommandBuilder, sound: Any) -> None:
    """Add the codecs on an HDA bus; by default one duplex codec."""
    kinds = [codec.type for codec in sound.codecs] or ["duplex"]
    alias = sound.info.alias
    for number, kind in enumerate(kinds):
        codec = {"driver": _CODEC_DRIVERS[kind], "id": f"{alias}-codec{number}", "bus": f"{alias}.0"}
        build.add_device({**codec, "cad": number, "audiodev": audio_id(build, sound)})
