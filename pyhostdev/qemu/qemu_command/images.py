# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The images of a disk in QEMU's block layer: a chain of nodes, each for a place, a part of it, or a format.

Mirrors: src/qemu/qemu_block.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pyhostdev.conf.xml.xmlcodec import unit_factor
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigUnsupportedError
from pyhostdev.qemu.qemu_command.block import PR_MANAGER, storage_properties
from pyhostdev.qemu.qemu_command.builder import NULL, unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

_FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "dmg", "bochs", "cloop")
_BACKED_FORMATS = ("qcow", "qcow2", "qed", "vmdk")  # formats that can have a backing image

# cache mode: write back, bypass the host's cache, ignore flushes
_CACHE_MODES = {
    "none": (True, True, False),
    "writethrough": (False, False, False),
    "writeback": (True, False, False),
    "directsync": (False, True, False),
    "unsafe": (True, False, True),
}


class Image(NamedTuple):
    """One image of a disk's backing chain: its location, its format, and the number of its nodes."""

    type: str
    source: Any
    format: str
    readonly: bool
    number: int

    @property
    def node(self) -> str:
        """The part that the names of its nodes share."""
        return f"libvirt-{self.number}"

    @property
    def data_store(self) -> Image | None:
        """The image with the content of this one, whose number is the next."""
        store = self.source.data_store
        if store is None:
            return None
        return Image(store.type, store.source, store.image_format, self.readonly, self.number + 1)


def node_count(disk: Any) -> int:
    """Return how many node numbers a disk uses up; a drive without a medium uses up one."""
    if disk.type == "vhostuser":
        return 0
    return max(1, _image_count(disk)) + len(disk.throttle_filters)


def has_image(disk: Any) -> bool:
    """False for a drive without a medium."""
    source = disk.source
    return source is not None and any(
        (source.file, source.dev, source.dir, source.name, source.protocol, source.pool, source.path, source.address)
    )


def _image_count(disk: Any) -> int:
    return sum(1 if image.data_store is None else 2 for image in image_chain(disk, 0))


def image_chain(disk: Any, first: int = 0) -> list[Image]:
    """Return the images of a disk that are in the definition, from the top down."""
    if not has_image(disk) or disk.type == "vhostuser":
        return []
    images = [Image(disk.type, disk.source, disk.driver_type or "raw", is_readonly(disk), first)]
    below = disk.backing_store
    while below is not None and below.type is not None:
        number = images[-1].number + (1 if images[-1].data_store is None else 2)
        images.append(Image(below.type, below.source, below.image_format or "raw", True, number))
        below = below.backing_store
    return images


def ends_chain(disk: Any) -> bool:
    """True if the definition ends the backing chain explicitly, with an empty <backingStore>."""
    below = disk.backing_store
    while below is not None and below.type is not None:
        below = below.backing_store
    return below is not None


def build_images(build: CommandBuilder, disk: Any, first: int) -> str | None:
    """
    Add the images of a disk, the lowest first; return the node that the device uses, None without a medium.

    Raises:
        ConfigUnsupportedError: the kind of an image is not supported.
    """
    node: str | None = None
    for image in reversed(image_chain(disk, first)):
        backing: Properties = {"backing": node}
        if node is None and ends_chain(disk) and image.format in _BACKED_FORMATS:
            backing = {"backing": NULL}
        node = _build_image(build, disk, image, backing)
    if node is not None and disk.copy_on_read:
        below, node = node, f"libvirt-CoR-{disk.target}"
        build.add_json("-blockdev", {"driver": "copy-on-read", "node-name": node, "file": below, "discard": "unmap"})
    return _build_filters(build, disk, node, first + _image_count(disk))


def _build_filters(build: CommandBuilder, disk: Any, node: str | None, first: int) -> str | None:
    """
    Add the filters of a disk, each above the one before it; return the upper node.

    Mirrors: qemuBuildThrottleFiltersCommandLine (src/qemu/qemu_command.c)
    """
    if disk.throttle_filters and node is None:
        text = "A filter of a disk without an image is not supported"
        raise ConfigUnsupportedError(text, line=disk.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)
    discard = "unmap" if build.release.has("throttle-discard") else None
    for number, row in enumerate(disk.throttle_filters, first):
        below, node = node, f"libvirt-{number}-filter"
        group = f"throttle-{row.group}"
        found: Properties = {"driver": "throttle", "node-name": node, "throttle-group": group, "file": below}
        build.add_json("-blockdev", {**found, "discard": discard})
    return node


def _build_image(build: CommandBuilder, disk: Any, image: Image, backing: Properties) -> str:
    """
    Add the nodes for the location, the part and the format of an image; return the upper one.

    Raises:
        ConfigUnsupportedError: the kind of image is not supported.
    """
    if image.format not in _FORMATS and image.type != "dir":
        raise unsupported(f"A disk image of format '{image.format}'", disk)
    content = _content(build, disk, readonly=image.readonly, is_own=image.source is disk.source)
    one_node = build.release.has("raw-image-one-node")
    if image.format == "raw" and image.type != "dir" and one_node:
        return _build_raw(build, disk, image, content)
    data = _build_data_store(build, disk, image)
    below = _build_storage(build, disk, image, _plain(build, disk))
    part, top = image.source.slice, f"{image.node}-format"
    if part is not None and (image.format != "raw" or image.type == "dir"):
        below = _build_slice(build, image, below, {"auto-read-only": True, "discard": "unmap", "cache": _cache(disk)})
    driver = "raw" if image.type == "dir" else image.format
    place = {} if part is None or driver != "raw" or one_node else {"offset": part.offset, "size": part.size}
    own = _qcow2(disk, image) if image.format == "qcow2" else {}
    found: Properties = {"node-name": top, **content, "driver": driver, **place, **own, **data, "file": below}
    build.add_json("-blockdev", {**found, **backing})
    return top


def _build_data_store(build: CommandBuilder, disk: Any, image: Image) -> Properties:
    """
    Add the node of the content of a qcow2 image that has only the tables; return the property that names it.

    libvirt opens the content of a disk's own image for writing, even if the disk is read-only.
    """
    store = image.data_store
    if store is None:
        return {}
    is_own = image.source is disk.source
    return {"data-file": _build_raw(build, disk, store, _content(build, disk, readonly=not is_own, is_own=is_own))}


def _build_raw(build: CommandBuilder, disk: Any, image: Image, content: Properties) -> str:
    """Add the node of a raw image: its location is the node, or a slice of the location."""
    if image.source.slice is None:
        return _build_storage(build, disk, image, content)
    below = _build_storage(build, disk, image, _plain(build, disk))
    return _build_slice(build, image, below, content)


def _build_storage(build: CommandBuilder, disk: Any, image: Image, options: Properties) -> str:
    """Add the node of an image's location, after the objects that it needs."""
    node = f"{image.node}-storage"
    owner = disk if image.source is disk.source else None
    found = storage_properties(build, image.type, image.source, node, disk=owner, aio=disk.io)
    build.add_json("-blockdev", {**found, "node-name": node, **options})
    return node


def _build_slice(build: CommandBuilder, image: Image, below: str, options: Properties) -> str:
    """Add the node of the part of the storage that has the image."""
    part, node = image.source.slice, f"{image.node}-slice-sto"
    place: Properties = {"offset": part.offset, "size": part.size}
    if build.release.has("raw-image-one-node"):
        found: Properties = {"driver": "raw", "file": below, **place, "node-name": node}
    else:
        found = {"driver": "raw", "node-name": node, **place, "file": below}
    build.add_json("-blockdev", {**found, **options})
    return node


def _plain(build: CommandBuilder, disk: Any) -> Properties:
    """Return the options of a node below the format node."""
    plain: Properties = {"auto-read-only": True, "discard": "unmap"}
    cache = _cache(disk)
    return {**plain, "cache": cache} if build.release.has("storage-cache-last") else {"cache": cache, **plain}


def _content(build: CommandBuilder, disk: Any, *, readonly: bool, is_own: bool) -> Properties:
    """Return the options of the node that has the content of an image: the disk's own, or one below it."""
    finds_zeroes = is_own or build.release.has("backing-detect-zeroes")
    return {
        "read-only": readonly,
        "discard": disk.discard,
        "detect-zeroes": _detect_zeroes(disk) if finds_zeroes else None,
        "cache": _cache(disk),
    }


def _qcow2(disk: Any, image: Image) -> Properties:
    """Return the properties that only a qcow2 image has."""
    if image.source is not disk.source:
        return {}
    size = disk.metadata_cache
    return {
        "cache-size": size * unit_factor(disk.metadata_cache_unit or "bytes") if size else None,
        "discard-no-unref": disk.discard_no_unref,
    }


def _detect_zeroes(disk: Any) -> str | None:
    """Return the treatment of written zeroes; QEMU unmaps them only if it also may discard."""
    if disk.detect_zeroes == "unmap" and disk.discard != "unmap":
        return "on"
    return None if disk.detect_zeroes is None else str(disk.detect_zeroes)


def is_readonly(disk: Any) -> bool:
    """True if the guest cannot write to the medium."""
    return bool(disk.readonly or disk.device == "cdrom")


def cache_mode(disk: Any) -> tuple[bool, bool, bool] | None:
    """
    Return the mode of a disk's cache: write back, bypass the host's cache, ignore flushes; None for QEMU's default.

    Guests that share a disk do without a cache.
    """
    name = "none" if disk.cache in (None, "default") and disk.shareable else disk.cache
    return _CACHE_MODES.get(name)


def _cache(disk: Any) -> Properties | None:
    mode = cache_mode(disk)
    if mode is None:
        return None
    _, direct, no_flush = mode
    return {"direct": direct, "no-flush": no_flush}


def build_reservations(build: CommandBuilder) -> None:
    """
    Add the connection to the program that makes reservations for QEMU, once for all luns.

    Mirrors: qemuBuildManagedPRCommandLine (src/qemu/qemu_command.c)
    """
    sources = (disk.source for disk in build.dom.disks if disk.source is not None)
    if any(source.reservations is not None and source.reservations.managed for source in sources):
        build.add_object("pr-manager-helper", PR_MANAGER, path=build.paths.pr_helper_socket)


def build_throttle_groups(build: CommandBuilder) -> None:
    """
    Add the groups of limits that the filters of disks name; a group without a limit gets no object.

    Mirrors: qemuBuildThrottleGroupCommandLine (src/qemu/qemu_command.c)
    """
    for group in build.dom.throttle_groups:
        limits = dict(_limits(group))
        if any(limits.values()):
            build.add_object("throttle-group", f"throttle-{group.group_name}", limits=limits)


def _limits(group: Any) -> Iterator[tuple[str, int]]:
    """Yield the limits of a group under QEMU's names; lengths only if they are set."""
    for words in ("", "_max"):
        for unit, short in (("bytes", "bps"), ("iops", "iops")):
            for side in ("total", "read", "write"):
                yield f"{short}-{side}{words.replace('_', '-')}", getattr(group, f"{side}_{unit}_sec{words}") or 0
    yield "iops-size", group.size_iops_sec or 0
    for unit, short in (("bytes", "bps"), ("iops", "iops")):
        for side in ("total", "read", "write"):
            length = getattr(group, f"{side}_{unit}_sec_max_length")
            if length:
                yield f"{short}-{side}-max-length", length
