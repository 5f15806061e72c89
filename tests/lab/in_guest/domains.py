# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The lab's domains: XML with host devices, and a guest that lists its PCI devices and powers off.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from labhost import KERNEL

sys.path.insert(0, str(Path(__file__).parents[1]))
import initramfs

if TYPE_CHECKING:
    from collections.abc import Sequence

RUN = Path("/run/lab")
SERIAL = RUN / "serial"
QEMU = os.environ.get("LAB_QEMU") or "qemu-system-x86_64"
GUEST_SLOT = 4

# What the guest runs: lspci -n, and power off. The line between the marks is our interface.
INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
echo "GUEST-BEGIN"
/bin/lspci -n
for d in /sys/bus/pci/devices/*; do echo "GUEST-NODE ${d##*/} $($b cat $d/numa_node)"; done
[ -e /sys/firmware/acpi/tables ] && echo "GUEST-ACPI yes"
echo "GUEST-END"
while [ -e /watch ]; do
	echo "GUEST-NOW $(/bin/lspci -n | $b tr '\n' ';')"
	$b sleep 4
done
[ -e /stay ] && $b sleep 1000000
$b poweroff -f
"""


def make_run() -> None:
    """Make the directory of domains; QEMU's user, which the machine's libvirt may bring, writes serial ports there."""
    RUN.mkdir(exist_ok=True)
    RUN.chmod(0o1777)


def guest_kernel() -> Path:
    """Return the kernel that starts fastest: one that has not to unpack itself first."""
    boot = KERNEL / "boot"
    return next(iter(sorted(boot.glob("vmlinux-*")) or sorted(boot.glob("vmlinuz-*"))))


def guest_archive(kind: str) -> Path:
    """
    Return the guest's initramfs.

    Args:
        kind: "list" powers off, "stay" does not, "watch" prints its devices every few seconds.
    """
    archive = RUN / f"{kind}.cpio"
    if not archive.exists():
        make_run()
        with tempfile.TemporaryDirectory() as directory:
            content = initramfs.Initramfs(Path(directory), INIT)
            content.add_program(initramfs.tool("lspci"))
            (content.top / kind).touch()
            content.write(archive)
    return archive


def guest_devices(serial: str) -> dict[str, tuple[str, str]]:
    """Return class and ids by address, of what lspci printed in the guest."""
    listing = serial.partition("GUEST-BEGIN")[2].partition("GUEST-END")[0]
    found = re.findall(r"^(\S+) (\w{4}): (\w{4}:\w{4})", listing, re.MULTILINE)
    return {address: (class_, ids) for address, class_, ids in found}


def hostdev(address: str, *, assigned: str | None = "yes", function: int | None = None) -> str:
    """Return a managed host device, at a function of the guest's slot when one is given."""
    domain, bus, slot, number = re.split("[:.]", address)
    guest = ""
    if function is not None:
        more = " multifunction='on'" if function == 0 else ""
        guest = (
            f"<address type='pci' domain='0x0000' bus='0x00' slot='0x{GUEST_SLOT:02x}' function='0x{function}'{more}/>"
        )
    consent = f" assigned='{assigned}'" if assigned else ""
    return f"""
    <hostdev mode='subsystem' type='pci' managed='yes'{consent}>
      <driver name='vfio'/>
      <source><address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{number}'/></source>
      {guest}
    </hostdev>"""


def guest_nodes(serial: str) -> dict[str, int]:
    """Return the NUMA node of each PCI function by address, of what the guest printed; -1 for none."""
    return {address: int(node) for address, node in re.findall(r"^GUEST-NODE (\S+) (-?\d+)", serial, re.MULTILINE)}


def watched_devices(serial: str) -> set[str]:
    """Return the addresses of the guest's network devices in its latest listing."""
    latest = serial.rpartition("GUEST-NOW ")[2].partition("\n")[0]
    return set(re.findall(r"([0-9a-f:.]+) 0200:", latest))


def _boot(archive: Path) -> str:
    words = "console=ttyS0 panic=-1 quiet mitigations=off nokaslr tsc=reliable cryptomgr.notests random.trust_cpu=on"
    words += " no_timer_check init_on_alloc=0 nowatchdog audit=0 apparmor=0"
    return f"""<kernel>{guest_kernel()}</kernel>
    <initrd>{archive}</initrd>
    <cmdline>{words}</cmdline>"""


def write_domain(
    name: str,
    hostdevs: str,
    *,
    kind: str = "list",
    machine: str = "pc",
    arguments: Sequence[str] = (),
) -> Path:
    """
    Write a domain that boots the guest, and return its file.

    Args:
        kind: of the guest's initramfs; "firmware" boots nothing, so that no driver answers a request to unplug.
        arguments: words of QEMU's own.
    """
    make_run()
    boot = "" if kind == "firmware" else _boot(guest_archive(kind))
    ports = '<controller type="pci" index="1" model="pcie-root-port"/>' if machine == "q35" else ""
    words = "".join(f"<qemu:arg value='{word}'/>" for word in arguments)
    own = f"<qemu:commandline>{words}</qemu:commandline>" if words else ""
    path = RUN / f"{name}.xml"
    path.write_text(f"""<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    {boot}
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>{shutil.which(QEMU)}</emulator>
    <controller type='usb' model='none'/>{ports}
    <serial type='file'><source path='{SERIAL}'/></serial>
    <memballoon model='none'/>{hostdevs}
  </devices>
  {own}
</domain>
""")
    return path
