# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Audio backends on the command line.

Mirrors: qemuBuildAudioCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

_DRIVERS = {"file": "wav", "pulseaudio": "pa"}  # the others have the same name in QEMU

# QEMU's property -> our field: of all backends, then of single ones
_COMMON = {
    "mixing-engine": "mixing_engine",
    "fixed-settings": "fixed_settings",
    "voices": "voices",
    "buffer-length": "buffer_length",
}
_SETTINGS = {"frequency": "frequency", "channels": "channels", "format": "format_"}
_STREAM = {"name": "name", "stream-name": "stream_name", "latency": "latency"}
_OWN: dict[str, dict[str, str]] = {
    "alsa": {"dev": "dev"},
    "coreaudio": {"buffer-count": "buffer_count"},
    "jack": {
        "server-name": "server_name",
        "client-name": "client_name",
        "connect-ports": "connect_ports",
        "exact-name": "exact_name",
    },
    "oss": {"dev": "dev", "buffer-count": "buffer_count", "try-poll": "try_poll"},
    "pulseaudio": _STREAM,
    "pipewire": _STREAM,
    "sdl": {"buffer-count": "buffer_count"},
}


def audio_id(build: CommandBuilder, device: Any) -> str | None:
    """Return the id of a device's audio backend: the one that it names, or the first; None without backends."""
    if device.audio_id is not None:
        return f"audio{device.audio_id}"
    return f"audio{build.dom.audios[0].id}" if build.dom.audios else None


def build_audios(build: CommandBuilder) -> None:
    """Add the audio backends."""
    for audio in build.dom.audios:
        with build.collecting():
            kind = _DRIVERS.get(audio.type, audio.type)
            properties = {"id": f"audio{audio.id}", "driver": kind, "timer-period": audio.timer_period or None}
            sides = {"in": _side(audio, audio.input), "out": _side(audio, audio.output)}
            build.add_json("-audiodev", {**properties, **_backend(audio), **sides})


def _backend(audio: Any) -> Properties:
    """Return the properties that only this kind of backend has."""
    if audio.type == "pulseaudio":
        return {"server": audio.server_name}
    if audio.type == "file":
        return {"path": audio.path}
    if audio.type == "oss":
        oss = {"try-mmap": audio.try_mmap, "exclusive": audio.exclusive}
        return {**oss, "dsp-policy": audio.dsp_policy or None}
    return {}


def _side(audio: Any, side: Any) -> Properties | None:
    """Return the settings for recording or playing; None without settings."""
    names = {**_COMMON, **(_SETTINGS if side.fixed_settings else {}), **_OWN.get(audio.type, {})}
    said = {name: getattr(side, field) for name, field in names.items()}
    return {name: value for name, value in said.items() if value is not None} or None
