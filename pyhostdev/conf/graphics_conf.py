# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Graphics, video cards, sound cards and audio backends.

Mirrors: virDomainGraphicsDef, virDomainVideoDef, virDomainSoundDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyhostdev.conf.device_conf import WORD_NUMBERS, DeviceInfo
from pyhostdev.conf.virtio_conf import VirtioOptions
from pyhostdev.conf.xml.xmlcodec import enum, number, on_off, positive, signed, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, element_or_default, elements, ignored, inline
from pyhostdev.errors import (
    VIR_ERR_CONFIG_UNSUPPORTED,
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_XML_ERROR,
    Renumbering,
    XMLError,
)
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Collection

    from pyhostdev.util.virxml import Element

_PORT_NUMBER = Renumbering("port-number", VIR_ERR_XML_ERROR)
_END = r"\d{1,4}-\d{1,2}-\d{1,2}T\d{1,2}:\d{1,2}:\d{1,2}"
# element of SPICE -> the attribute that it must have
_SPICE_SETTINGS = {
    "image": "compression",
    "jpeg": "compression",
    "zlib": "compression",
    "playback": "compression",
    "streaming": "mode",
    "clipboard": "copypaste",
    "filetransfer": "enable",
    "gl": "enable",
    "mouse": "mode",
}
GRAPHICS_TYPES = ("sdl", "vnc", "rdp", "desktop", "spice", "egl-headless", "dbus")


_SERVER = ("@port", "@autoport", "@listen", "@keymap", "@passwd", "@passwdValidTo", "@connected", "listen")
_VNC = ("@websocket", "@websocketGenerated", "@powerControl", "@socket", "@wait", "@sharePolicy")
_SPICE = ("@tlsPort", "@defaultMode", "channel", "mouse", "clipboard", "filetransfer")
_COMPRESSED = ("image", "jpeg", "zlib", "playback", "streaming")
# type -> its parts: attributes and elements
_PARTS = {
    "vnc": (*_SERVER, *_VNC, "audio"),
    "spice": (*_SERVER, *_SPICE, *_COMPRESSED, "gl"),
    "sdl": ("@display", "@xauth", "@fullscreen", "gl"),
    "egl-headless": ("gl",),
    "dbus": ("@address", "@p2p", "gl", "audio"),
    "rdp": ("@port", "@autoport", "@listen", "@replaceUser", "@multiUser", "listen"),
    "desktop": ("@display", "@fullscreen"),
}
_HALVES = {"sdl": "gl/@rendernode", "egl-headless": "gl/@enable"}  # type -> what its <gl> cannot have


class GraphicsListen(ElementDef):
    """An address at which a graphics server listens."""

    tag = "listen"

    type = attribute("type", enum("address", "network", "socket", "none"), required=True)
    address = attribute("address")
    network = attribute("network")
    socket = attribute("socket")

    def parsed(self, element: Element) -> None:
        """
        Refuse an attribute of another type, and drop the address of a type without one.

        Mirrors: virDomainGraphicsListenDefParseXML (src/conf/domain_conf.c)
        """
        self.address, self.network, self.socket = self.address or None, self.network or None, self.socket or None
        for name in ("network", "socket"):
            if getattr(self, name) is not None and self.type != name:
                raise XMLError(f"A <listen> of type {self.type} cannot have '{name}'", line=self.line)
        if self.type == "network" and self.network is None:
            raise XMLError("A <listen> of type network needs the name of the network", line=self.line)
        if self.type in ("none", "socket"):
            self.address = None


class SpiceChannel(ElementDef):
    """Whether one channel of SPICE is encrypted."""

    tag = "channel"

    name = attribute(
        "name",
        enum(
            "main",
            "display",
            "inputs",
            "cursor",
            "playback",
            "record",
            "smartcard",
            "usbredir",
        ),
        required=True,
    )
    mode = attribute("mode", enum("any", "secure", "insecure"), required=True)


class DomainGraphicsDef(ElementDef):
    """A window or a server that shows the guest's screen."""

    tag = "graphics"

    type = attribute("type", enum(*GRAPHICS_TYPES), required=True)
    port = attribute("port", signed(), code=VIR_ERR_INTERNAL_ERROR, renumbered=_PORT_NUMBER)
    tls_port = attribute("tlsPort", signed())
    autoport = attribute("autoport", yes_no, lenient=True)
    websocket = attribute("websocket", signed())
    websocket_generated = attribute("websocketGenerated")
    power_control = attribute("powerControl", yes_no)
    socket = attribute("socket")
    listen = attribute("listen")
    keymap = attribute("keymap")
    wait = attribute("wait", yes_no, since="vnc-wait")
    share_policy = attribute("sharePolicy", enum("allow-exclusive", "force-shared", "ignore"))
    default_mode = attribute("defaultMode", enum("any", "secure", "insecure"))
    display = attribute("display")
    xauth = attribute("xauth")
    fullscreen = attribute("fullscreen", yes_no)
    multi_user = attribute("multiUser", yes_no)
    replace_user = attribute("replaceUser", yes_no)
    p2p = attribute("p2p", yes_no)
    address = attribute("address")
    passwd = attribute("passwd")
    passwd_valid_to = attribute("passwdValidTo")
    connected = attribute("connected", enum("fail", "disconnect", "keep"), lenient=True)
    listens = elements("listen", GraphicsListen)
    channels = elements("channel", SpiceChannel)
    image_compression = attribute("image/@compression", enum("auto_glz", "auto_lz", "quic", "glz", "lz", "off"))
    jpeg_compression = attribute("jpeg/@compression", enum("auto", "never", "always"))
    zlib_compression = attribute("zlib/@compression", enum("auto", "never", "always"))
    playback_compression = attribute("playback/@compression", on_off)
    streaming_mode = attribute("streaming/@mode", enum("filter", "all", "off"))
    mouse_mode = attribute("mouse/@mode", enum("server", "client"))
    clipboard_copypaste = attribute("clipboard/@copypaste", yes_no)
    filetransfer_enable = attribute("filetransfer/@enable", yes_no)
    gl_enable = attribute("gl/@enable", yes_no)
    gl_rendernode = attribute("gl/@rendernode")
    audio_id = attribute("audio/@id", number)

    @classmethod
    def unread(cls, element: Element) -> Collection[str]:
        """
        Return the parts of graphics of other types.

        Mirrors: virDomainGraphicsDefParseXML (src/conf/domain_conf.c)
        """
        kind = element.get("type", "")
        own = _PARTS.get(kind)
        if own is None:
            return ()
        others = {part for parts in _PARTS.values() for part in parts}.difference(own)
        return [*sorted(others), _HALVES[kind]] if kind in _HALVES else sorted(others)

    def parsed(self, element: Element) -> None:
        """
        Refuse a setting of SPICE without its value, and an invalid end of the password.

        Mirrors: virDomainGraphicsDefParseXMLSpice, virDomainGraphicsAuthDefParseXML (src/conf/domain_conf.c)
        """
        for tag, leaf in _SPICE_SETTINGS.items() if self.type == "spice" else ():
            if self.has_child(tag) and element.find(f"{tag}[@{leaf}]") is None:
                raise XMLError(f"<{tag}> of <graphics> lacks '{leaf}'", line=self.lines.get((tag,), self.line))
        end = self.passwd_valid_to
        if self.passwd is not None and end is not None and not re.fullmatch(_END, end, re.ASCII):
            text = f"The end '{shown(end)}' of a password is not written as YYYY-MM-DDTHH:MM:SS"
            raise XMLError(text, line=self.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)

    @property
    def needs_render_node(self) -> bool:
        """
        True if the guest draws with OpenGL, and a render node of the host must be chosen at start.

        Mirrors: virDomainGraphicsNeedsAutoRenderNode (src/conf/domain_conf.c)
        """
        draws = self.type == "egl-headless" or (self.type == "spice" and bool(self.gl_enable))
        return draws and not self.gl_rendernode


class DomainVideoDef(ElementDef):
    """A video device."""

    tag = "video"

    driver_name = attribute("driver/@name", enum("qemu", "vhostuser"))
    vgaconf = ignored("driver/@vgaconf")  # of bhyve
    virtio = inline(VirtioOptions)
    model_type = attribute(
        "model/@type",
        enum(
            "default",
            "vga",
            "cirrus",
            "vmvga",
            "xen",
            "vbox",
            "qxl",
            "parallels",
            "virtio",
            "gop",
            "none",
            "bochs",
            "ramfb",
        ),
        default="default",
        code=VIR_ERR_CONFIG_UNSUPPORTED,
        renumbered=WORD_NUMBERS,
    )
    ram = attribute("model/@ram", number)
    vram = attribute("model/@vram", number)
    vram64 = attribute("model/@vram64", number)
    vgamem = attribute("model/@vgamem", number)
    heads = attribute("model/@heads", number, code=VIR_ERR_INTERNAL_ERROR, renumbered=WORD_NUMBERS)
    primary = attribute("model/@primary", yes_no, lenient=True)
    blob = attribute("model/@blob", on_off, since="video-blob")
    edid = attribute("model/@edid", on_off, since="video-edid")
    device = attribute(
        "model/@device",
        enum("virtio-vga", "virtio-gpu", "virtio-vga-gl", "virtio-gpu-gl", "vhost-user-vga", "vhost-user-gpu"),
        since="video-device",
    )
    accel3d = attribute("model/acceleration/@accel3d", yes_no)
    accel2d = attribute("model/acceleration/@accel2d", yes_no)
    rendernode = attribute("model/acceleration/@rendernode")
    resolution_x = attribute("model/resolution/@x", positive, code=VIR_ERR_CONFIG_UNSUPPORTED)
    resolution_y = attribute("model/resolution/@y", positive, code=VIR_ERR_CONFIG_UNSUPPORTED)
    info = inline(DeviceInfo)

    def parsed(self, element: Element) -> None:
        """
        Refuse a resolution with only one of its two numbers.

        Mirrors: virDomainVideoResolutionDefParseXML (src/conf/domain_conf.c)
        """
        if (self.resolution_x is None) != (self.resolution_y is None):
            raise XMLError("<resolution> of a video needs both x and y", line=self.line)


class SoundCodec(ElementDef):
    """A codec of an HDA sound card."""

    tag = "codec"

    type = attribute("type", enum("duplex", "micro", "output"), code=VIR_ERR_CONFIG_UNSUPPORTED, required=True)


class DomainSoundDef(ElementDef):
    """A sound card."""

    tag = "sound"

    model = attribute(
        "model",
        enum("sb16", "es1370", "pcspk", "ac97", "ich6", "ich9", "usb", "ich7", since={"virtio": "virtio-sound"}),
        required=True,
    )
    multichannel = attribute("multichannel", yes_no, since="sound-words")
    streams = attribute("streams", number, since="virtio-sound")
    codecs = elements("codec", SoundCodec)
    audio_id = attribute("audio/@id", positive)
    info = inline(DeviceInfo)
    virtio = inline(VirtioOptions)


class AudioSide(ElementDef):
    """The settings for recording or playing, of all kinds of audio backend."""

    mixing_engine = attribute("mixingEngine", yes_no)
    fixed_settings = attribute("fixedSettings", yes_no)
    voices = attribute("voices", positive)
    buffer_length = attribute("bufferLength", positive)
    dev = attribute("dev")
    buffer_count = attribute("bufferCount", positive)
    try_poll = attribute("tryPoll", yes_no)
    name = attribute("name")
    stream_name = attribute("streamName")
    latency = attribute("latency", positive)
    server_name = attribute("serverName")
    client_name = attribute("clientName")
    connect_ports = attribute("connectPorts")
    exact_name = attribute("exactName", yes_no)
    frequency = attribute("settings/@frequency", positive)
    channels = attribute("settings/@channels", positive)
    format_ = attribute("settings/@format", enum("s8", "u8", "s16", "u16", "s32", "u32", "f32"))

    @property
    def has_settings(self) -> bool:
        """True if a sample format is given."""
        return (self.frequency, self.channels, self.format_) != (None, None, None)


class AudioInput(AudioSide):
    """The settings for recording."""

    tag = "input"


class AudioOutput(AudioSide):
    """The settings for playing."""

    tag = "output"


AUDIO_TYPES = ("none", "alsa", "coreaudio", "jack", "oss", "pulseaudio", "sdl", "spice", "file", "dbus")


class DomainAudioDef(ElementDef):
    """
    An audio backend of the host.

    Mirrors: virDomainAudioDef (src/conf/domain_conf.h)
    """

    tag = "audio"

    id = attribute("id", positive, required=True)
    type = attribute("type", enum(*AUDIO_TYPES, since={"pipewire": "audio-pipewire"}), required=True)
    timer_period = attribute("timerPeriod", number)
    driver = attribute("driver")
    path = attribute("path")
    server_name = attribute("serverName")
    runtime_dir = attribute("runtimeDir", since="audio-pipewire")
    try_mmap = attribute("tryMMap", yes_no)
    exclusive = attribute("exclusive", yes_no)
    dsp_policy = attribute("dspPolicy", number)
    input = element_or_default("input", AudioInput)
    output = element_or_default("output", AudioOutput)
