# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Redundant values, which libvirt does not print again.

Mirrors: the parsers and formatters of src/conf/domain_conf.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.util.virxml import dump_element, is_blank, parse_elements

if TYPE_CHECKING:
    from pyhostdev.conf.cpu_conf import CPUDef
    from pyhostdev.conf.disk_conf import DomainDiskDef
    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.conf.graphics_conf import DomainAudioDef
    from pyhostdev.conf.net_conf import DomainNetDef

_UNLIMITED_KIB = (1 << 53) - 1  # VIR_DOMAIN_MEMORY_PARAM_UNLIMITED
_OWN_WORDS = ("dev", "buffer_count", "try_poll", "name", "stream_name", "latency")
_JACK_WORDS = ("server_name", "client_name", "connect_ports", "exact_name")
_STREAM = ("name", "stream_name", "latency")
# kind of audio backend -> the settings of its two sides, besides those of all backends
_AUDIO_WORDS: dict[str, tuple[str, ...]] = {
    "alsa": ("dev",),
    "coreaudio": ("buffer_count",),
    "jack": _JACK_WORDS,
    "oss": ("dev", "buffer_count", "try_poll"),
    "pulseaudio": _STREAM,
    "pipewire": _STREAM,
    "sdl": ("buffer_count",),
}


def drop_redundant_values(dom: DomainFields) -> None:
    """Drop limits without an effect, and settings that belong to another kind of the element."""
    for name in ("hard_limit", "soft_limit", "swap_hard_limit"):
        limit = getattr(dom, name)
        if limit is not None and limit.kib >= _UNLIMITED_KIB:
            setattr(dom, name, None)
    if dom.os.bootmenu_enable is not True:
        dom.os.bootmenu_timeout = None
    if dom.cpu is not None:
        _normalise_cpu(dom.cpu)
    if dom.features.tseg is not None:
        dom.features.tseg_unit = dom.features.tseg_unit or "MiB"
    dom.seclabel = _normal_labels(dom.seclabel)
    for name in ("blkiotune", "idmap", "keywrap", "perf"):
        _drop_blank(dom, name)
    if dom.default_iothread is not None and not dom.default_iothread.format_lines("", always=False):
        dom.default_iothread = None
    for video in dom.videos:
        if video.model_type in ("qxl", "virtio", "none"):
            video.heads = video.heads or None
    for rng in dom.rngs:
        if not rng.rate_bytes:
            rng.rate_bytes = rng.rate_period = None
    for info in dom.sysinfos:
        for entry in info.entries:
            entry.value = "" if entry.file is not None else entry.value
    for rule in dom.redirfilter:
        for name in ("class_", "vendor", "product", "version"):
            if getattr(rule, name) in (-1, "-1"):
                setattr(rule, name, None)
    for disk in dom.disks:
        _drop_disk_words(disk)
    for net in dom.interfaces:
        _drop_blank(net, "bandwidth")
        _drop_blank(net, "coalesce")
        _drop_blank(net, "filterref")
        net.mtu = net.mtu or None
        if net.type == "user" and net.source is not None and not net.source.format_lines("source", always=False):
            net.source = None
    for audio in dom.audios:
        _drop_audio_words(audio)


def _drop_blank(definition: DomainFields | DomainNetDef, name: str) -> None:
    if is_blank(getattr(definition, name)):
        setattr(definition, name, None)


def _normalise_cpu(cpu: CPUDef) -> None:
    """Drop the model of a CPU that does not follow it, and require the features that have no policy."""
    cpu.model = cpu.model or None
    if cpu.mode == "maximum":
        cpu.model = cpu.fallback = None
    if cpu.model is None and cpu.mode != "host-model":
        cpu.vendor_id = None
    for feature in cpu.features:
        feature.policy = feature.policy or "require"


def _drop_disk_words(disk: DomainDiskDef) -> None:
    if disk.is_empty and disk.device != "disk" and disk.type != "file":
        disk.type, disk.source = "file", None
    disk.cache = None if disk.cache == "default" else disk.cache
    disk.queues = disk.queues or None
    if not (disk.cyls and disk.heads and disk.secs):
        disk.cyls = disk.heads = disk.secs = disk.trans = None
    if disk.iotune is not None and not disk.iotune.limits() and disk.iotune.group_name is None:
        disk.iotune = None


def _normal_labels(text: str | None) -> str | None:
    """
    Return security labels as they are printed: whether they relabel, and without what libvirt generates.

    Mirrors: virSecurityLabelDefParseXML, virSecurityLabelDefFormat (src/conf/domain_conf.c)
    """
    if text is None:
        return None
    labels = parse_elements(text)
    for label in labels:
        kind = label.get("type", "dynamic")
        if label.get("model") == "none":
            kind = "none"
        label.set("type", kind)
        if kind == "none":
            label.attrib.pop("relabel", "")
        elif label.get("relabel") is None:
            label.set("relabel", "yes" if kind == "dynamic" else "no")
        for generated in label.findall("imagelabel"):
            label.remove(generated)
    return "\n".join(dump_element(label) for label in labels)


def _drop_audio_words(audio: DomainAudioDef) -> None:
    own = _AUDIO_WORDS.get(str(audio.type), ())
    for side in (audio.input, audio.output):
        for name in (*_OWN_WORDS, *_JACK_WORDS):
            if name not in own:
                setattr(side, name, None)
