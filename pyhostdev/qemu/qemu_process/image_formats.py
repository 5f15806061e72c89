# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Check the formats and the locks of the images that a domain names, and of those below them that only the images name.

A format that QEMU would not find in the file is an error. ``raw`` fits every file.

Mirrors: virStorageSourceGetMetadata (src/storage_file/storage_source.c, in what it is for)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyhostdev.qemu.qemu_command.images import ends_chain, image_chain, is_readonly
from pyhostdev.qemu.qemu_process.disk_files import READ, NeededFile
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.imageheader import backing_of, format_error, is_locked, read_header
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pyhostdev.conf.domain_conf import DomainDef

_CHAIN_MAX = 200  # VIR_STORAGE_MAX_CHAIN (src/conf/storage_source_conf.c)


class _Image(NamedTuple):
    """A file with its purpose and its format; None if QEMU detects the format."""

    what: str
    path: str
    format: str | None
    line: int | None
    below: str | None = None  # the purpose of backing files that only the image names; None if it can name none
    is_protected: bool = False  # QEMU locks it
    writes: bool = False
    shares: bool = False  # with others who write it


def format_obstacles(
    dom: DomainDef, closed: Collection[str], judge: Callable[[list[NeededFile]], list[Finding]]
) -> Iterator[Finding]:
    """
    Yield an error for each file that is not an image of its format, and for each image below one that QEMU cannot open.

    Args:
        closed: files that QEMU's user cannot open; we do not open them, either.
        judge: returns the errors of files that are missing or that QEMU's user cannot open.
    """
    yield from _template_obstacles(dom.os)
    for image in (*_firmware_images(dom), *(image for disk in dom.disks for image in _disk_images(disk))):
        if os.path.isabs(image.path) and image.path not in closed:
            yield from _image_obstacles(image, judge)


def _disk_images(disk: Any) -> Iterator[_Image]:
    """Yield the files of a disk in the definition, from the top down."""
    what, below = f"disk '{disk.target}'", f"the backing store of disk '{disk.target}'"
    images = image_chain(disk)
    for number, image in enumerate(images):
        if image.type == "file" and image.source.file and image.source.slice is None:
            use = (True, not number and not is_readonly(disk), bool(disk.shareable))
            lower = below if number == len(images) - 1 and not ends_chain(disk) else None
            yield _Image(below if number else what, image.source.file, image.format, disk.line, lower, *use)


def _template_obstacles(os_: Any) -> Iterator[Finding]:
    """Yield an error if the store of the firmware's variables must be made from a template of another format."""
    own = os_.nvram_format or "raw"
    template = os_.nvram_template_format or own
    if os_.nvram and os_.nvram_template and own != template and not os.path.lexists(os_.nvram):
        message = f"'{os_.nvram}' of format {own} cannot be made from '{os_.nvram_template}' of format {template}"
        yield Finding("image-unusable", ERROR, None, message, os_.line)


def _firmware_images(dom: DomainDef) -> Iterator[_Image]:
    if dom.os.loader_type == "pflash" and dom.os.loader:
        yield _Image("the firmware", dom.os.loader, dom.os.loader_format or "raw", dom.os.line)
        if dom.os.nvram:
            yield _Image("the firmware's variables", dom.os.nvram, dom.os.nvram_format or "raw", dom.os.line)


def _image_obstacles(image: _Image, judge: Callable[[list[NeededFile]], list[Finding]]) -> Iterator[Finding]:
    """Yield the errors of an image, and those of the images below it until one has an error."""
    seen: set[str] = set()
    below: _Image | None = image
    while below is not None and below.path not in seen and len(seen) < _CHAIN_MAX:
        seen.add(below.path)
        errors = [] if below is image else judge([NeededFile(below.what, below.path, READ, below.line)])
        header = None if errors or below.format == "raw" else read_header(below.path)
        if not errors:
            errors = [Finding("image-unusable", ERROR, None, text, below.line) for text in _own_errors(below, header)]
        yield from errors
        below = None if errors or header is None else _image_below(below, header)


def _own_errors(image: _Image, header: bytes | None) -> Iterator[str]:
    """Yield a sentence for each fact about a file that makes it unusable."""
    name = f"'{image.path}' of {image.what}"
    if image.is_protected and is_locked(image.path, writes=image.writes, shares=image.shares):
        yield f"{name} is in use: another program has locked it"
    error = None if header is None or image.format is None else format_error(header, image.format)
    if error is not None:
        yield f"{name} {error}"


def _image_below(image: _Image, header: bytes) -> _Image | None:
    """Return the file below an image that only the image names; None if it is not a local file, or not there."""
    backing = backing_of(header) if image.below is not None and image.format in ("qcow2", None) else None
    if backing is None or ":" in backing.name.partition("/")[0]:  # QEMU: path_has_protocol (block.c)
        return None
    path = os.path.join(os.path.dirname(image.path), backing.name)
    return image._replace(what=str(image.below), path=path, format=backing.format, writes=False)
