# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The smaller devices on the command line: hubs, watchdogs, balloon, random numbers, memory and others.

Mirrors: src/qemu/qemu_command.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.bus_address_conf import SpaprVIOAddress
from pyhostdev.conf.os_conf import unit_factor
from pyhostdev.qemu.qemu_command.builder import on_off, option_value, unsupported, virtio_driver, virtio_options
from pyhostdev.qemu.qemu_command.chr import add_chardev
from pyhostdev.qemu.qemu_domain import is_i440fx, is_pseries, is_q35

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

VSOCK_CID_MIN = 3  # linux/vm_sockets.h: lower numbers are reserved for the host and the hypervisor
_MIB = 1 << 20


def build_hubs(build: CommandBuilder) -> None:
    """Add USB hubs."""
    for hub in build.dom.hubs:
        with build.collecting():
            build.add_device({"driver": "usb-hub", "id": hub.info.alias, **build.address(hub)})


def build_watchdogs(build: CommandBuilder) -> None:
    """Add the watchdogs and their action; QEMU has one action for all watchdogs."""
    actions = []
    for watchdog in build.dom.watchdogs:
        with build.collecting():
            _build_watchdog(build, watchdog)
            # QEMU cannot dump: it stops the guest, and the owner makes the dump
            actions.append("pause" if watchdog.action == "dump" else str(watchdog.action))
    for action in actions[:1]:
        build.add("-watchdog-action", action)


def _build_watchdog(build: CommandBuilder, watchdog: Any) -> None:
    if watchdog.model == "itco":
        build.add("-global", "ICH9-LPC.noreboot=off")  # part of the chipset; lets it reboot the guest
        return
    if watchdog.model not in ("i6300esb", "ib700"):
        raise unsupported(f"<watchdog model='{watchdog.model}'>", watchdog)
    build.add_device({"driver": watchdog.model, "id": watchdog.info.alias, **build.address(watchdog)})


def build_memballoon(build: CommandBuilder) -> None:
    """Add the balloon."""
    balloon = build.dom.memballoon
    if balloon is None or balloon.model == "none":
        return
    build.add_device(
        {
            "driver": virtio_driver("balloon", balloon.model),
            **virtio_options(balloon),
            "id": balloon.info.alias,
            "deflate-on-oom": balloon.autodeflate,
            "free-page-reporting": balloon.free_page_reporting,
            **build.address(balloon),
        }
    )


def build_rngs(build: CommandBuilder) -> None:
    """Add sources of random numbers."""
    for rng in build.dom.rngs:
        with build.collecting():
            backend = f"obj{rng.info.alias}"
            _build_rng_backend(build, rng, backend)
            build.add_device(_rng(build, rng, backend))


def _rng(build: CommandBuilder, rng: Any, backend: str) -> Properties:
    return {
        "driver": virtio_driver("rng", rng.model),
        **virtio_options(rng),
        "rng": backend,
        "id": rng.info.alias,
        "max-bytes": rng.rate_bytes,
        "period": (rng.rate_period or 1000) if rng.rate_bytes else None,
        **build.address(rng),
    }


def _build_rng_backend(build: CommandBuilder, rng: Any, object_id: str) -> None:
    if rng.backend is None:
        raise unsupported("<rng> without <backend>", rng)
    kind = rng.backend.model
    if kind == "random":
        build.add_object("rng-random", object_id, filename=rng.backend.path or "/dev/random")
    elif kind == "builtin":
        build.add_object("rng-builtin", object_id)
    else:
        chardev = add_chardev(build, rng, rng.backend.chardev)
        build.add_object("rng-egd", object_id, chardev=chardev)


def build_nvram(build: CommandBuilder) -> None:
    """Set the address of the NVRAM of pseries."""
    nvram = build.dom.nvram
    if nvram is None:
        return
    if not isinstance(nvram.info.address, SpaprVIOAddress):
        raise unsupported("<nvram> without a spapr-vio address", nvram)
    build.add("-global", f"spapr-nvram.reg={nvram.info.address.reg:#x}")


def build_vmcoreinfo(build: CommandBuilder) -> None:
    """Add the device with which the guest reports the location of its vmcoreinfo note."""
    features = build.dom.features
    if features is not None and features.vmcoreinfo and features.vmcoreinfo_state is not False:
        build.add_device({"driver": "vmcoreinfo"})


def build_pstore(build: CommandBuilder) -> None:
    """
    Add the persistent store (pstore) for the guest's last messages, backed by a file.

    Mirrors: qemuBuildPstoreCommandLine (src/qemu/qemu_command.c)
    """
    pstore = build.dom.pstore
    if pstore is None:
        return
    with build.collecting():
        if not (is_i440fx(build.dom) or is_q35(build.dom)):
            raise unsupported("A <pstore> in this machine", pstore)
        backend = f"mem{pstore.info.alias}"
        place = {"mem-path": pstore.path, "size": pstore.size_kib * 1024, "share": True}
        build.add_json("-object", {"qom-type": "memory-backend-file", "id": backend, **place})
        build.add_device(
            {"driver": pstore.backend, "id": pstore.info.alias, "memdev": backend, **build.address(pstore)}
        )


def build_panics(build: CommandBuilder) -> None:
    """Add the panic notifiers."""
    for panic in build.dom.panics:
        with build.collecting():
            if panic.model == "hyperv" or (panic.model == "pseries" and is_pseries(build.dom)):
                continue  # hyperv is a CPU flag, and pseries has a built-in notifier
            if panic.model == "pvpanic":
                build.add_device({"driver": "pvpanic-pci", **build.address(panic)})
                continue
            if panic.model != "isa":
                raise unsupported(f"<panic model='{panic.model}'>", panic)
            build.add_device({"driver": "pvpanic", "ioport": build.address(panic).get("iobase")})


def build_shmems(build: CommandBuilder) -> None:
    """
    Add memory shared between guests.

    Mirrors: qemuBuildShmemCommandLine
    """
    for shmem in build.dom.shmems:
        with build.collecting():
            if shmem.model == "ivshmem-plain":
                _build_plain_shmem(build, shmem)
            elif shmem.model == "ivshmem-doorbell":
                _build_doorbell(build, shmem)
            else:
                raise unsupported(f"<shmem> of model {shmem.model}", shmem)


def _build_plain_shmem(build: CommandBuilder, shmem: Any) -> None:
    backend = f"shmmem-{shmem.info.alias}"
    size = _shmem_bytes(shmem)
    path = f"/dev/shm/{shmem.name}"  # noqa: S108  # the path at which all sharing guests open it
    build.add_object("memory-backend-file", backend, **{"mem-path": path, "size": size, "share": True})
    device = {"driver": "ivshmem-plain", "id": shmem.info.alias, "memdev": backend, "master": _master(shmem)}
    build.add_device({**device, **build.address(shmem)})


def _build_doorbell(build: CommandBuilder, shmem: Any) -> None:
    """Connect to an ivshmem server, through which the guests send each other interrupts."""
    if not shmem.server_path:
        raise unsupported("<server> of <shmem> without a path", shmem)
    chardev = f"char{shmem.info.alias}"
    device = {"driver": "ivshmem-doorbell", "id": shmem.info.alias, "chardev": chardev, "master": _master(shmem)}
    interrupts = {"vectors": shmem.msi_vectors or None, "ioeventfd": shmem.msi_ioeventfd}
    build.add_device({**device, **interrupts, **build.address(shmem)})
    build.add("-chardev", f"socket,id={chardev},path={option_value(shmem.server_path)}")


def _master(shmem: Any) -> str | None:
    return None if shmem.role is None else on_off(shmem.role == "master")


def _shmem_bytes(shmem: Any) -> int:
    """Return the size in bytes; libvirt's documented default is 4 MiB."""
    return int(shmem.size * unit_factor(shmem.size_unit or "bytes")) if shmem.size else 4 * _MIB


def build_vsock(build: CommandBuilder) -> None:
    """Add the vsock device; without a CID in the definition, the caller that starts the guest chooses one."""
    vsock = build.dom.vsock
    if vsock is None:
        return
    build.add_device(
        {
            "driver": "vhost-vsock-pci" + (vsock.model or "virtio").removeprefix("virtio"),
            **virtio_options(vsock),
            "id": vsock.info.alias,
            "guest-cid": vsock.cid_address or VSOCK_CID_MIN,
            "vhostfd": build.descriptor("vsock", vsock),
            **build.address(vsock),
        }
    )


def build_cryptos(build: CommandBuilder) -> None:
    """Add crypto devices."""
    for crypto in build.dom.cryptos:
        with build.collecting():
            if crypto.backend_model is None:
                raise unsupported("<crypto> without a backend", crypto)
            backend = f"obj{crypto.info.alias}"
            build.add_object(f"cryptodev-backend-{crypto.backend_model}", backend, queues=crypto.backend_queues)
            device = {"driver": "virtio-crypto-pci", **virtio_options(crypto), "cryptodev": backend}
            build.add_device({**device, "id": crypto.info.alias, **build.address(crypto)})
