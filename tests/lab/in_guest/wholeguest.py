# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest that has everything: its initramfs, its definition, and what it says about itself.

It says what it sees on its serial port, reads and writes a shared directory, and powers off when the host asks there.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

import initramfs
from domains import QEMU, RUN, SERIAL
from labhost import KERNEL

NAME = "whole"
UUID = "6cb9df67-db89-5919-bb3e-efaeef4a35b1"
BRIDGE = "lab0"
HOST_IP, GUEST_IP = "198.51.100.1", "198.51.100.2"
MAC = "52:54:00:12:34:56"
TABLET = ("0627", "0001")
SHARE = RUN / "share"
AGENT = "org.qemu.guest_agent.0"
CHANNELS = Path("/run/pyhostdev/lib/qemu/channel/target")
NVRAM = Path(f"/var/lib/libvirt/qemu/nvram/{NAME}_VARS.fd")
TPM_STATE = Path(f"/var/lib/libvirt/swtpm/{UUID}/tpm2")

MODULES = [
    "efivarfs", "virtio_pci", "virtiofs", "virtio_net", "virtio_console", "xhci_pci", "usbhid", "hid_generic", "evdev",
    "e1000e",
]  # fmt: skip

INIT = f"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mkdir -p /share /run /tmp
for module in $($b cat /modules/order); do
	$b insmod /modules/$module || echo "insmod $module failed"
done
$b mount -t efivarfs efivarfs /sys/firmware/efi/efivars
$b mount -t virtiofs share /share
for link in /sys/class/net/*; do
	[ "$($b cat $link/address)" = {MAC} ] || continue
	$b ip addr add {GUEST_IP}/24 dev ${{link##*/}}
	$b ip link set ${{link##*/}} up
done
efi=/sys/firmware/efi/efivars
global=8be4df61-93ca-11d2-aa0d-00e098032b8c
say() {{ echo "GUEST-SAYS $*"; }}
echo "GUEST-BEGIN"
/bin/lspci -n
say firmware $($b dmesg | $b sed -n 's/.*efi: EFI v\\([^ ]*\\) by \\(.*\\)/\\1 \\2/p')
for name in SecureBoot SetupMode; do
	say $name $($b hexdump -v -e '1/1 "%02x"' $efi/$name-$global)
done
for name in PK-$global KEK-$global db-d719b2cb-3d3a-4596-a3bc-dad00e67656f; do
	say enrolled ${{name%%-*}} $($b wc -c <$efi/$name)
done
say kernel $($b dmesg | $b grep -c -e 'secureboot: Secure boot enabled' -e 'locked down from EFI Secure Boot')
say tpm $($b cat /sys/class/tpm/tpm0/tpm_version_major)
say pcr7 $($b cat /sys/class/tpm/tpm0/pcr-sha256/7)
say processors $($b nproc)
for link in /sys/class/net/*; do say link $($b cat $link/address) ${{link##*/}}; done
for device in /sys/bus/usb/devices/*; do
	[ -e $device/idVendor ] && say usb $($b cat $device/idVendor) $($b cat $device/idProduct) $($b cat $device/product)
done
for input in /sys/class/input/event*; do
	say input $($b cat $input/device/name)
	$b cat /dev/input/${{input##*/}} >/share/keys.${{input##*/}} &
done
say word $($b cat /share/word)
echo "from the guest" >/share/answer
$b ping -c 3 -w 60 {HOST_IP} >/tmp/ping && say ping $($b grep -c 'bytes from' /tmp/ping)
for port in /sys/class/virtio-ports/*; do
	[ "$($b cat $port/name)" = {AGENT} ] && /bin/qemu-ga -m virtio-serial -p /dev/${{port##*/}} -t /run &
done
echo "GUEST-END"
while [ ! -e /share/end ]; do $b sleep 1; done
say events $($b wc -c /share/keys.* | $b tail -1)
$b poweroff -f
"""


def archive() -> Path:
    """Return the guest's initramfs, with the kernel's own modules: its secure boot takes no others."""
    path = RUN / "whole.cpio"
    if not path.exists():
        (modules,) = (KERNEL / "lib/modules").iterdir()
        with tempfile.TemporaryDirectory() as directory:
            content = initramfs.Initramfs(Path(directory), INIT)
            for name in ("lspci", "qemu-ga"):
                content.add_program(initramfs.tool(name))
            content.add_modules(modules, MODULES)
            content.write(path)
    return path


def write_whole(hostdevs: str, keyboard: str) -> Path:
    """Write the domain, and return its file; ``keyboard`` is the node of an input device of the host."""
    image = next(iter(sorted((KERNEL / "boot").glob("vmlinuz-*"))))
    binary = os.environ["LAB_VIRTIOFSD"]
    path = RUN / f"{NAME}.xml"
    path.write_text(f"""<domain type='qemu'>
  <name>{NAME}</name>
  <uuid>{UUID}</uuid>
  <memory unit='MiB'>512</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>2</vcpu>
  <cputune>
    <vcpupin vcpu='0' cpuset='1'/>
    <vcpupin vcpu='1' cpuset='0'/>
    <emulatorpin cpuset='0'/>
  </cputune>
  <os firmware='efi'>
    <type arch='x86_64' machine='q35'>hvm</type>
    <firmware>
      <feature enabled='yes' name='secure-boot'/>
      <feature enabled='yes' name='enrolled-keys'/>
    </firmware>
    <kernel>{image}</kernel>
    <initrd>{archive()}</initrd>
    <cmdline>console=ttyS0 panic=-1 quiet mitigations=off nokaslr tsc=reliable no_timer_check audit=0</cmdline>
  </os>
  <features><acpi/><smm state='on'/></features>
  <devices>
    <emulator>{shutil.which(QEMU)}</emulator>
    <controller type='usb' model='qemu-xhci'/>
    <serial type='file'><source path='{SERIAL}'/></serial>
    <memballoon model='none'/>
    <interface type='bridge'>
      <source bridge='{BRIDGE}'/><mac address='{MAC}'/><model type='virtio'/>
    </interface>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <filesystem type='mount'>
      <driver type='virtiofs'/><binary path='{binary}'/><source dir='{SHARE}'/><target dir='share'/>
    </filesystem>
    <input type='evdev'><source dev='{keyboard}' grab='all' repeat='on'/></input>
    <channel type='unix'><target type='virtio' name='{AGENT}'/></channel>
    <hostdev mode='subsystem' type='usb' managed='yes'>
      <source><vendor id='0x{TABLET[0]}'/><product id='0x{TABLET[1]}'/></source>
    </hostdev>{hostdevs}
  </devices>
</domain>
""")
    return path


def sayings(serial: str) -> dict[str, list[str]]:
    """Return what the guest says, by its first word, of what its serial port printed."""
    found: dict[str, list[str]] = {}
    for name, words in re.findall(r"^GUEST-SAYS (\S+) ?(.*?)\r?$", serial, re.MULTILINE):
        found.setdefault(name, []).append(words)
    return found


def ask_agent(command: str, timeout_s: float = 120) -> Any:
    """
    Run a command of the guest's agent, and return its answer.

    Raises:
        OSError: the agent does not answer in time, or its channel has no socket.
        ValueError: the answer is an error.
    """
    (path,) = CHANNELS.glob(f"domain-*-{NAME}/{AGENT}")
    number = secrets.randbelow(1 << 30)
    directory = os.open(path.parent, os.O_PATH)  # the path may be longer than an address
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            lines = connection.makefile("rwb")
            _ask(lines, "guest-sync", id=number)
            while json.loads(lines.readline()) != {"return": number}:
                pass  # an answer to an earlier question, which had no time to wait
            _ask(lines, command)
            answer = json.loads(lines.readline())
    finally:
        os.close(directory)
    if "error" in answer:
        raise ValueError(f"{command}: {answer['error']['desc']}")
    return answer["return"]


def _ask(lines: Any, command: str, **arguments: Any) -> None:
    lines.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    lines.flush()
