# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The host files that QEMU opens for a domain, and a check that QEMU's user can open them.

Their owner is never changed: that is the administrator's decision. The check finds all problems at once, before
anything is changed.

Mirrors: qemuProcessStartValidateDisks, qemuDomainStorageFileInit (in what they are for)
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import SysfsError
from pyhostdev.qemu.qemu_command.paths import DomainPaths
from pyhostdev.qemu.qemu_command.tpm import DEFAULT_DEVICE
from pyhostdev.qemu.qemu_process.disk_files import DIRECTORY, READ, SOCKET, WRITE, NeededFile, disk_files
from pyhostdev.qemu.qemu_process.file_kinds import kind_obstacles, needed_kinds
from pyhostdev.qemu.qemu_process.image_formats import format_obstacles
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.rendernode import first_render_node
from pyhostdev.util.spawn import access_errors
from pyhostdev.util.virfile import read_link_name, read_status
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.hostroot import HostRoot
    from pyhostdev.util.ownership import Ownership

RUN = os.X_OK
MAKE = os.W_OK | os.X_OK  # for a directory: create files in it

_OSS_NODE = "/dev/dsp"  # QEMU's default
_FIRST_RENDER_NODE = "/dev/dri/renderD128"
_GROUP = r"[0-9]{1,9}"
_VERBS = {READ: "read", WRITE: "read and write", RUN: "execute", os.W_OK: "write", os.X_OK: "pass through"}
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def needed_files(dom: DomainDef, root: HostRoot) -> Iterator[NeededFile]:
    """Yield every file that QEMU opens for a domain."""
    if dom.emulator:
        yield NeededFile("the emulator", dom.emulator, RUN, dom.line)
    if dom.type == "kvm":
        yield NeededFile("the node of KVM", root.dev_kvm, WRITE, dom.line)
    yield from _boot_files(dom)
    for disk in dom.disks:
        yield from disk_files(disk)
    yield from _shared_directories(dom)
    yield from _device_files(dom, root)
    yield from _memory_files(dom)
    yield from _content_files(dom)
    yield from _tpm_files(dom)
    yield from _virtiofs_files(dom)
    yield from _passt_files(dom)
    if dom.vsock is not None:
        path = root.dev_vhost_vsock
        yield NeededFile("the node of <vsock>", path, WRITE, dom.vsock.line, is_handed_over=True)
    yield from _connected_files(dom, root)


def _connected_files(dom: DomainDef, root: HostRoot) -> Iterator[NeededFile]:
    """Yield the files of character devices, interfaces and host devices."""
    for device, source in character_devices(dom):
        yield from _chardev_files(device, source)
    for net in dom.interfaces:
        yield from _interface_files(net)
    for hostdev in (*dom.nvme_hostdevs(), *dom.all_hostdevs()):
        yield from _hostdev_files(hostdev, root, by_descriptor=dom.uses_iommufd(hostdev))


def _boot_files(dom: DomainDef) -> Iterator[NeededFile]:
    loader_mode = READ if dom.os.loader_type != "pflash" or dom.os.loader_readonly else WRITE
    for what, path, mode in (
        ("the kernel", dom.os.kernel, READ),
        ("the initial ramdisk", dom.os.initrd, READ),
        ("the device tree", dom.os.dtb, READ),
        ("the firmware", dom.os.loader, loader_mode),
        *_variables(dom.os),
        *(("the ACPI table", table.path, READ) for table in dom.os.acpi_tables),
    ):
        if path:
            yield NeededFile(what, path, mode, dom.os.line)


def _variables(os_: Any) -> Iterator[tuple[str, str | None, int]]:
    """Yield the store of the firmware's variables, or its template if the store must be created."""
    must_be_created = os_.nvram and os_.nvram_template and os.path.isabs(os_.nvram) and not os.path.lexists(os_.nvram)
    if not must_be_created:
        yield "the firmware's variables", os_.nvram, WRITE
    if os_.nvram and os_.nvram_template and (must_be_created or not os.path.isabs(os_.nvram_template)):
        yield "the template of the firmware's variables", os_.nvram_template, READ


def _shared_directories(dom: DomainDef) -> Iterator[NeededFile]:
    for filesystem in dom.filesystems:
        if filesystem.source_dir:
            mode = READ if filesystem.readonly else WRITE
            what = f"the directory of '{filesystem.target}'"
            yield NeededFile(what, filesystem.source_dir, mode, filesystem.line, kind=DIRECTORY)


def _tpm_files(dom: DomainDef) -> Iterator[NeededFile]:
    """Yield the emulator of a TPM and its state, the TPM of the host, or the socket of another emulator."""
    for tpm in dom.tpms:
        path = None if tpm.backend_source is None else tpm.backend_source.path
        if tpm.backend_type == "emulator":
            from pyhostdev.qemu.qemu_process.daemons import swtpm_program  # few domains have programs of their own

            yield NeededFile("the emulator of <tpm>", swtpm_program(), RUN, tpm.line)
            if path and not os.path.isabs(path):  # it is refused; swtpm creates every other one
                yield NeededFile("the state of <tpm>", path, WRITE, tpm.line, kind=None)
        elif tpm.backend_type == "passthrough":
            yield NeededFile("the node of <tpm>", tpm.device_path or DEFAULT_DEVICE, WRITE, tpm.line)
        elif path:
            yield NeededFile("the socket of <tpm>", path, os.W_OK, tpm.line, kind=SOCKET)


def _virtiofs_files(dom: DomainDef) -> Iterator[NeededFile]:
    """Yield the sockets and the programs of virtiofs."""
    for filesystem in (filesystem for filesystem in dom.filesystems if filesystem.is_virtiofs):
        if filesystem.source_socket:
            what = f"the socket of '{filesystem.target}'"
            yield NeededFile(what, filesystem.source_socket, os.W_OK, filesystem.line, kind=SOCKET)
        else:
            from pyhostdev.qemu.qemu_process.daemons import virtiofsd_program

            yield NeededFile("the program virtiofsd", virtiofsd_program(filesystem), RUN, filesystem.line)


def _passt_files(dom: DomainDef) -> Iterator[NeededFile]:
    for net in dom.interfaces:
        if net.backend_type == "passt":
            from pyhostdev.qemu.qemu_process.passt import passt_program

            yield NeededFile("the program passt", passt_program(), RUN, net.line)
            if net.backend_log:
                yield NeededFile("the log of passt", net.backend_log, os.W_OK, net.line, making="absent")


def _device_files(dom: DomainDef, root: HostRoot) -> Iterator[NeededFile]:
    for device, info in dom.device_infos():
        if info.rom_file:
            yield NeededFile(f"the option ROM of a <{device.tag}>", info.rom_file, READ, device.line)
    for device in dom.inputs:
        node = device.source_dev if device.type == "evdev" else device.source_evdev
        if node:
            yield NeededFile("the node of an <input>", node, WRITE, device.line)
    for rng in dom.rngs:
        if rng.backend is not None and rng.backend.model == "random" and rng.backend.path:
            yield NeededFile("the source of an <rng>", rng.backend.path, READ, rng.line, kind=None)
    yield from _graphics_files(dom, root)


def _graphics_files(dom: DomainDef, root: HostRoot) -> Iterator[NeededFile]:
    for graphics in dom.graphics:
        render_node = graphics.gl_rendernode
        if graphics.needs_render_node:
            render_node = first_render_node(root) or (_FIRST_RENDER_NODE if root.is_live else None)
        if render_node:
            yield NeededFile("the render node of <graphics>", render_node, WRITE, graphics.line)
        socket = graphics_socket(graphics)
        if socket is not None:
            what = f"the socket of <graphics type='{graphics.type}'>"
            yield NeededFile(what, socket, os.W_OK, graphics.line, making="always")


def _memory_files(dom: DomainDef) -> Iterator[NeededFile]:
    """Yield the files that QEMU maps; it creates a missing one."""
    for module in dom.memories:
        if module.source_path:
            mode, making = (READ, None) if module.target_readonly else (WRITE, "absent")
            yield NeededFile(
                f"a <memory model='{module.model}'>", module.source_path, mode, module.line, making, kind=None
            )
    if dom.pstore is not None and dom.pstore.path:
        yield NeededFile("the <pstore>", dom.pstore.path, WRITE, dom.pstore.line, making="absent", kind=None)
    for shmem in dom.shmems:
        if shmem.server_path:
            yield NeededFile("the server of a <shmem>", shmem.server_path, os.W_OK, shmem.line, kind=SOCKET)


def _content_files(dom: DomainDef) -> Iterator[NeededFile]:
    """Yield the files that QEMU shows to the guest or its firmware, or plays to."""
    for card in dom.smartcards:
        if card.mode == "host-certificates" and card.database:
            yield NeededFile("the database of a <smartcard>", card.database, READ, card.line, kind=DIRECTORY)
    for info in dom.sysinfos:
        for entry in info.entries if info.type == "fwcfg" else []:
            if entry.file:
                yield NeededFile("an <entry> of <sysinfo>", entry.file, READ, dom.line)
    for audio in dom.audios:
        if audio.type == "file" and audio.path:
            yield NeededFile("the file of an <audio>", audio.path, WRITE, audio.line, making="absent")
        server = (audio.server_name or "").removeprefix("unix:") if audio.type == "pulseaudio" else ""
        if server.startswith("/") and " " not in server:  # PulseAudio takes several names, too
            yield NeededFile("the server of an <audio>", server, os.W_OK, audio.line, kind=SOCKET)
        for side in (audio.input, audio.output) if audio.type == "oss" else ():
            node = (None if side is None else side.dev) or _OSS_NODE
            yield NeededFile("the node of an <audio>", node, WRITE, audio.line)


def graphics_socket(graphics: Any) -> str | None:
    """Return the path of the socket that QEMU itself creates for a viewer; it cannot inherit one."""
    listen = graphics.listens[0] if graphics.listens else None
    if listen is not None and listen.type == "socket":
        return listen.socket or None
    return graphics.socket or None


def character_devices(dom: DomainDef) -> Iterator[tuple[Any, Any]]:
    """Yield each definition that becomes a character device, with its host side; the first console may be a serial."""
    stands_for_serial = dom.serials and dom.consoles and dom.consoles[0].target_type in (None, "serial")
    consoles = dom.consoles[1:] if stands_for_serial else dom.consoles
    cards = [card for card in dom.smartcards if card.mode == "passthrough"]
    devices: tuple[Any, ...] = (*dom.serials, *dom.parallels, *dom.channels, *consoles, *cards, *dom.redirdevs)
    for device in devices:
        yield device, device.source
    for rng in dom.rngs:
        if rng.backend is not None and rng.backend.model == "egd" and rng.backend.chardev is not None:
            yield rng, rng.backend.chardev


def _chardev_files(device: Any, source: Any) -> Iterator[NeededFile]:
    what = f"the host side of a <{device.tag}>"
    if source.log_file:
        yield NeededFile(f"the log of a <{device.tag}>", source.log_file, os.W_OK, device.line, making="absent")
    if not source.path:
        return
    if source.type == "unix":
        if source.sources[0].mode in (None, "bind"):  # pyhostdev creates it, and QEMU inherits it
            directory = os.path.dirname(source.path)
            yield NeededFile(f"the directory of {what}", directory, os.F_OK, device.line, kind=DIRECTORY)
        elif not (source.sources[0].reconnect_enabled and source.sources[0].reconnect_timeout):  # or QEMU tries again
            yield NeededFile(what, source.path, os.W_OK, device.line, kind=SOCKET)
    elif source.type == "file":
        yield NeededFile(what, source.path, os.W_OK, device.line, making="absent")
    elif source.type in ("dev", "pipe"):
        ends = (f"{source.path}.in", f"{source.path}.out") if source.type == "pipe" else ()
        has_ends = bool(ends) and all(map(os.path.lexists, ends))  # then QEMU opens both, otherwise the path itself
        for path in ends if has_ends else (source.path,):
            yield NeededFile(what, path, WRITE, device.line)


def _interface_files(net: Any) -> Iterator[NeededFile]:
    """Yield the nodes of an interface's tap that the definition names, and the sockets and nodes of one without."""
    for node in (net.backend_tap, net.backend_vhost):
        if node:
            yield NeededFile("the tap of an <interface>", node, WRITE, net.line, is_handed_over=True)
    if net.source is None or net.backend_type == "passt":
        return
    if net.type == "vdpa":
        yield NeededFile("an <interface>", net.source.dev, WRITE, net.line, is_handed_over=True)
    elif net.type == "vhostuser" and net.source.mode == "client":
        yield NeededFile("an <interface>", net.source.path, os.W_OK, net.line, kind=SOCKET)
    elif net.type == "vhostuser":
        directory = os.path.dirname(net.source.path)
        yield NeededFile("the directory of an <interface>", directory, os.F_OK, net.line, kind=DIRECTORY)


def _hostdev_files(hostdev: Any, root: HostRoot, *, by_descriptor: bool) -> Iterator[NeededFile]:
    """Yield the nodes of host devices except PCI devices, whose nodes are given to QEMU's user."""
    source = hostdev.source_def
    if source is None:
        return
    if hostdev.type == "usb" and source.bus is not None and source.device is not None:
        path = root.usb_node(source.bus, source.device)
        yield NeededFile("the node of a USB <hostdev>", path, WRITE, hostdev.line, is_handed_over=True)
    if hostdev.type == "mdev" and source.uuid is not None:
        group = read_link_name(root, os.path.join(root.mdev_device(source.uuid), "iommu_group"))
        if group is not None and re.fullmatch(_GROUP, group):
            yield NeededFile("the node of a mediated device", root.vfio_group(int(group)), WRITE, hostdev.line)
    by_group = hostdev.is_pci and hostdev.is_assigned and not by_descriptor
    if by_group and _exists(root, root.vfio_container):  # otherwise loading VFIO creates it
        yield NeededFile("the node of VFIO", root.vfio_container, WRITE, hostdev.line)


def image_obstacles(dom: DomainDef, host: Host, ownership: Ownership | None) -> list[Finding]:
    """
    Return a finding for each file that is missing or of a wrong kind, or that QEMU's user cannot open.

    Only the first bytes of images that this user can open are read.

    A root other than ``/`` only has the host's devices. Other files may be missing, and their owners prove nothing.

    Args:
        ownership: the user that QEMU will run as; None means the current user.
    """
    files = list(needed_files(dom, host.root))
    if not host.root.is_live:
        needed = (file for file in files if file.is_device and not file.is_optional)
        return [_missing(file) for file in needed if not _is_there(host, file)]
    relative = [_relative(file) for file in files if not os.path.isabs(file.path)]
    files = [file for file in files if os.path.isabs(file.path)]
    files.append(_state_directory(dom, host))
    ours = [file for file in files if file.is_handed_over]
    others = [file for file in files if not file.is_handed_over]
    judged = [*_judge(others, ownership), *_judge(ours, None)]
    found = [*relative, *(finding for _, finding in judged)]
    found += [*needed_kinds(files), *kind_obstacles(dom, _created_sockets(dom))]
    closed = {file.path for file, _ in judged}
    found += format_obstacles(dom, closed, lambda below: [finding for _, finding in _judge(below, ownership)])
    return [*found, *_sandbox_obstacles(dom, ownership)]


def _created_sockets(dom: DomainDef) -> Iterator[tuple[Any, str]]:
    """Yield each device with a socket that pyhostdev creates at a path of the definition."""
    for device, source in character_devices(dom):
        if source.type == "unix" and source.path and source.sources[0].mode in (None, "bind"):
            yield device, source.path


def _sandbox_obstacles(dom: DomainDef, ownership: Ownership | None) -> Iterator[Finding]:
    """Yield an error for each virtiofsd that needs root for its sandbox: it runs as QEMU's user."""
    if os.geteuid() == 0 if ownership is None else ownership.is_root:
        return
    for filesystem in dom.filesystems:
        if filesystem.is_virtiofs and filesystem.source_socket is None and filesystem.binary_sandbox == "chroot":
            user = "the current user" if ownership is None else f"user '{ownership.name}'"
            what = f"virtiofsd of '{shown(str(filesystem.target))}' runs as {user}"
            message = f"{what}, and <sandbox mode='chroot'> needs root"
            yield Finding("unsupported", ERROR, None, message, filesystem.line)


def _is_there(host: Host, file: NeededFile) -> bool:
    return _exists(host.root, host.root.join(file.path.lstrip("/")))


def _exists(root: HostRoot, path: str) -> bool:
    """Return True if the path exists and is reachable."""
    try:
        return read_status(root, path) is not None
    except SysfsError:
        return False


def _state_directory(dom: DomainDef, host: Host) -> NeededFile:
    """Return the state directory, or its nearest existing parent: QEMU's user must be able to enter it."""
    path = DomainPaths.of(os.path.abspath(host.state_dir), dom.name or "", os.getpid()).lib_dir
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return NeededFile("the state directory", path, os.X_OK, kind=DIRECTORY)


def _judge(files: list[NeededFile], ownership: Ownership | None) -> Iterator[tuple[NeededFile, Finding]]:
    """Check all files in one call, those that QEMU creates with their directories; yield those with an error."""
    questions = [(file.path, file.mode) for file in files] + [(file.directory, MAKE) for file in files]
    answers = access_errors(questions, ownership)
    for file, own, directory in zip(files, answers[: len(files)], answers[len(files) :], strict=True):
        made = file.making == "always" or (file.making == "absent" and own in _ABSENT)
        if made and directory:
            yield file, _unmakeable(file, directory, ownership)
        elif own in _ABSENT and not made:
            yield from () if file.is_optional else [(file, _missing(file))]
        elif own and not made:
            yield file, _unreadable(file, own, ownership)


def _relative(file: NeededFile) -> Finding:
    message = f"The path {file.path!a} of {file.what} is relative: an absolute path is required"
    return Finding("relative-path", ERROR, None, message, file.line)


def _missing(file: NeededFile) -> Finding:
    return Finding("image-missing", ERROR, None, f"'{file.path}' of {file.what} does not exist", file.line)


def _unreadable(file: NeededFile, error: int, ownership: Ownership | None) -> Finding:
    why = f"{_user_phrase(ownership)} cannot {_VERBS.get(file.mode, 'find')} {file.what}"
    message = f"{why} ('{file.path}'): {os.strerror(error)}{_remedy(ownership)}"
    return Finding("image-unreadable", ERROR, None, message, file.line)


def _unmakeable(file: NeededFile, error: int, ownership: Ownership | None) -> Finding:
    why = f"{_user_phrase(ownership)} cannot make {file.what} in '{file.directory}'"
    return Finding("image-unreadable", ERROR, None, f"{why}: {os.strerror(error)}{_remedy(ownership)}", file.line)


def _user_phrase(ownership: Ownership | None) -> str:
    return "QEMU" if ownership is None else f"QEMU's user '{ownership.name}'"


def _remedy(ownership: Ownership | None) -> str:
    return "" if ownership is None else "; give that user access, or start the guest with --user root"
