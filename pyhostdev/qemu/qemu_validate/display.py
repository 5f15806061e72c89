# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU's rules for video cards and graphics.

Mirrors: qemuValidateDomainDeviceDefVideo, qemuValidateDomainDeviceDefGraphics (src/qemu/qemu_validate.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.errors import VIR_ERR_OVERFLOW, ConfigError, ConfigUnsupportedError, XMLError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities

    Errors = Iterator[ConfigError]

_UINT_MAX_KIB = 0xFFFFFFFF // 1024
_MIB_KIB = 1024
_SECONDARY = ("qxl", "virtio")
_WITH_RESOLUTION = ("vga", "qxl", "virtio", "bochs")
_WITH_EDID = ("vga", "virtio", "bochs")
_VIDEO_DEVICES = {
    "vga": ("VGA",),
    "cirrus": ("cirrus-vga",),
    "vmvga": ("vmware-svga",),
    "qxl": ("qxl", "qxl-vga"),
    "virtio": ("virtio-gpu-pci", "virtio-gpu-device", "virtio-vga"),
    "bochs": ("bochs-display",),
    "ramfb": ("ramfb",),
}
_DISPLAYS = ("sdl", "vnc", "spice", "egl-headless", "dbus")
_VNC_PASSWORD_MAX = 8  # RFC 6143 7.2.2: the key of DES


def _unsupported(message: str, where: Any) -> ConfigError:
    return ConfigUnsupportedError(message, line=where.line)


def video_errors(dom: DomainDef, video: Any, capabilities: QEMUCapabilities, release: LibvirtRelease) -> Errors:
    """Yield the errors of one video card."""
    kind = video.model_type
    yield from _incomplete_errors(video)
    if kind == "none":
        return
    devices = _VIDEO_DEVICES.get(kind, ())
    if not any(capabilities.has_device(name) for name in devices):
        yield _unsupported(f"QEMU does not support a video of type {kind}", video)
    if kind not in _SECONDARY:
        yield from _only_video_errors(video)
    yield from _acceleration_errors(video, release)
    yield from _virtio_errors(video)
    yield from _size_errors(video)
    if (video.resolution_x is not None or video.resolution_y is not None) and kind not in _WITH_RESOLUTION:
        yield XMLError(f"A video of type {kind} cannot have a resolution", line=video.line)
    if kind == "virtio" and video.blob and dom.memory_backing.source_type != "memfd":
        yield _unsupported("blob='on' of a video needs memory of type memfd", video)
    if kind == "ramfb" and video.info.address is not None:
        yield _unsupported("A video of type ramfb cannot have an address", video)


def _acceleration_errors(video: Any, release: LibvirtRelease) -> Errors:
    kind, is_vhostuser = video.model_type, video.driver_name == "vhostuser"
    if video.accel2d:
        yield _unsupported("QEMU does not support 2D acceleration", video)
    if is_vhostuser and kind != "virtio":
        yield _unsupported("Only a virtio video can have the driver vhostuser", video)
    if video.rendernode is not None and not is_vhostuser:
        yield _unsupported("Only a video with the driver vhostuser can have a rendernode", video)
    if video.accel3d and kind != "virtio" and not is_vhostuser and not release.has("accel3d-anywhere"):
        yield _unsupported("Only a virtio video can have 3D acceleration", video)


def _incomplete_errors(video: Any) -> Errors:
    """Mirrors: virDomainVideoAccelDefParseXML, virDomainVideoResolutionDefParseXML"""
    if ("model", "acceleration") in video.lines and video.accel2d is video.accel3d is video.rendernode is None:
        yield _unsupported("<acceleration> of a video has no attribute", video)
    if ("model", "resolution") in video.lines and None in (video.resolution_x, video.resolution_y):
        yield XMLError("<resolution> of a video needs 'x' and 'y'", line=video.line)


def _virtio_errors(video: Any) -> Errors:
    """Yield the errors of options that only some models have. Mirrors: virDomainCheckVirtioOptionsAreAbsent"""
    kind = video.model_type
    for name in video.virtio.given() if kind != "virtio" else ():
        yield _unsupported(f"Only a virtio video can have {name}", video)
    if video.blob is not None and kind != "virtio":
        yield _unsupported("Only a virtio video can have blob", video)
    if video.edid is not None and kind not in _WITH_EDID:
        yield _unsupported(f"A video of type {kind} cannot have edid", video)


def _size_errors(video: Any) -> Errors:
    """Yield the errors of a video card's memory."""
    kind = video.model_type
    if kind != "qxl":
        for name in ("ram", "vram64", "vgamem"):
            if getattr(video, name):
                yield _unsupported(f"Only a qxl video can have {name}", video)
    else:
        for name in ("vram", "ram"):
            if (getattr(video, name) or 0) > _UINT_MAX_KIB:
                yield XMLError(f"{name} of a video is too high", line=video.line, libvirt_code=VIR_ERR_OVERFLOW)
        memory = video.vgamem or 0
        if memory and (memory < _MIB_KIB or memory & (memory - 1)):
            yield _unsupported("vgamem of a video must be a power of two and at least 1 MiB", video)
    if kind in ("vga", "vmvga") and video.vram and video.vram < _MIB_KIB:
        yield _unsupported("vram of a video must be at least 1 MiB", video)


def _headless_errors(graphics: Any) -> Errors:
    """Yield the errors of a <graphics> beside one of type egl-headless."""
    kind = graphics.type
    if kind not in ("egl-headless", "vnc", "spice"):
        yield _unsupported(f"Graphics of type {kind} and egl-headless exclude each other", graphics)
    if kind == "spice" and graphics.gl_enable:
        yield _unsupported("Only one <graphics> of a guest can use OpenGL", graphics)


def _only_video_errors(video: Any) -> Errors:
    """Yield the errors of a card of which a guest has only one."""
    if not video.primary:
        yield _unsupported(f"A video of type {video.model_type} must be the first video", video)
    if video.heads not in (None, 1):
        yield _unsupported(f"A video of type {video.model_type} can have only one head", video)


def graphics_errors(dom: DomainDef, graphics: Any) -> Errors:
    """Yield the errors of one <graphics>."""
    kind = graphics.type
    if kind not in _DISPLAYS:
        yield _unsupported(f"QEMU does not support graphics of type {kind}", graphics)
    if any(other.type == "egl-headless" for other in dom.graphics):
        yield from _headless_errors(graphics)
    if kind == "vnc" and len((graphics.passwd or "").encode()) > _VNC_PASSWORD_MAX:
        yield _unsupported(f"A VNC password can have at most {_VNC_PASSWORD_MAX} characters", graphics)
    listens_on = graphics.listens[0].type if graphics.listens else "address"
    if kind == "spice" and (graphics.tls_port or 0) > 0 and listens_on in ("address", "network"):
        yield _unsupported("SPICE with TLS needs certificates, and none are configured", graphics)
    if kind == "dbus" and graphics.audio_id is not None:
        backends = [audio.type for audio in dom.audios if audio.id == graphics.audio_id]
        if backends and backends[0] != "dbus":
            yield _unsupported("The audio of D-Bus graphics must have type dbus", graphics)
