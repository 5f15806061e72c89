#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Boot a host with a real kernel, an IOMMU and PCI devices, and run a command in it.

It is a QEMU guest without hardware virtualisation (q35, VT-d) whose root file system is this machine's,
read-only with a writable layer in memory on top: python, QEMU and the checkout are there as they are here.
The command runs as root in the caller's directory; its output and its exit status are ours.

The command sees LAB_NIC, LAB_NVME, LAB_IGB and LAB_VIRTIO (addresses of physical functions), LAB_KERNEL (the
unpacked kernel package), LAB_QEMU (the emulator) and LAB_OUT (a directory that --out brings back). Exit status
124: it did not end; 125: the host did not boot.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

import emulators
import initramfs
import topology

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".lab"
KERNEL = CACHE / "kernel"
EXIT_UNFINISHED = 124
EXIT_NOT_BOOTED = 125
CONSOLE_TAIL = 4000

EARLY_MODULES = ["virtio_pci", "9pnet_virtio", "9p", "overlay"]  # what mounting the root takes
MACHINE = "q35,accel=tcg,kernel-irqchip=off,usb=off,smbus=off,sata=off,vmport=off"
CMDLINE = "console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on nmi_watchdog=0 tsc=reliable no_timer_check "
DISK_SIZE = 64 << 20
VIRTIO_VFS = 4
FARM_MEMORY_MIB = 12 * 1024  # what QEMU itself may take for a farm's address spaces


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kernel", type=Path, default=KERNEL, help="an unpacked Debian kernel package")
    add("--nic", choices=sorted(topology.NICS), default="onegroup", help="how the card is attached")
    add("--nic-model", default="e1000e")
    add("--earlier", action="store_true", help="another card of this model before it, which takes its bus number")
    add("--sriov", type=int, default=4, metavar="N", help="possible VFs of the NVMe controller")
    add("--vfs", type=int, default=0, metavar="N", help="enable N of them (not probed)")
    add("--igb", type=int, metavar="N", help="an igb card, N of its 7 VFs enabled (not probed)")
    add("--virtio-sriov", type=int, metavar="N", help="a virtio card with 4 VFs, N enabled (QEMU 11.1)")
    add("--usb", action="store_true", help="a USB controller with a tablet")
    add("--qemu", type=Path, metavar="DIR", help="the QEMU of another root directory, also in the host")
    add("--device", action="append", default=[], metavar="WORDS", help="one more device of the host")
    add("--disk", action="store_true", help="an NVMe controller with a disk, in the place of one with VFs")
    add("--functions", type=int, default=0, metavar="N", help="a farm of N cheap functions")
    add("--farm-model", default="pvpanic-pci")
    add("--farm-shape", choices=["pcie", "conv", "mixed"], default="mixed")
    add("--mem", type=int, default=2048, metavar="MIB")
    add("--smp", type=int, default=1, metavar="CPUS", help="on a busy machine two wait for each other")
    add("--cpu", default="max,la57=off")
    add("--append", default="", help="more kernel command line")
    add("--no-autoload", action="store_true", help="do not load the devices' drivers")
    add("--modules", default="vfio-pci", help="modules to load, separated by spaces")
    add("--env", action="append", default=[], metavar="NAME[=VALUE]", help="pass a variable on")
    add("--out", type=Path, help="where the files in LAB_OUT go")
    add("--timeout", type=float, default=300, metavar="SECONDS")
    add("--verbose", "-v", action="store_true", help="kernel console on stderr")
    add("--show", action="store_true", help="print QEMU's command line on stderr")
    add("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    if options.command[:1] == ["--"]:
        del options.command[0]
    if not options.command:
        parser.error("no command")
    return options


def note(text: str) -> None:
    """Print a message beside the command's output."""
    sys.stderr.write(f"boot: {text}\n")


class Job:
    """The directory shared with the host: its scripts and environment, the command, the console."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self.console = directory / "console"
        self.out = directory / "out"
        self.out.mkdir()
        shutil.copy(HERE / "l1/stage2", directory)
        self.qemu = emulators.SYSTEM
        if options.qemu is not None:
            directory.chmod(0o711)  # QEMU's user runs it
            self.qemu = emulators.write_script(options.qemu.resolve(), directory / "qemu")
        words = shlex.join(options.command)
        self._write("cmd", f"cd {shlex.quote(str(Path.cwd()))}\nexec {words}\n")
        exports = (f"export {key}={shlex.quote(text)}\n" for key, text in _environment(options))
        self._write("env", "".join(exports))

    def _write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)


def _environment(options: argparse.Namespace) -> list[tuple[str, str]]:
    # the interpreter's own directory first: version managers put slow scripts in its place
    programs = f"{Path(sys.executable).resolve().parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    variables = {
        "PATH": programs,
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LAB_KERNEL": str(options.kernel.resolve()),
        "LAB_AUTOLOAD": "0" if options.no_autoload else "1",
        "LAB_MODULES": options.modules,
        "LAB_NUMVFS": str(options.vfs),
        "LAB_IGB_VFS": "" if options.igb is None else str(options.igb),
        "LAB_VIRTIO_VFS": "" if options.virtio_sriov is None else str(options.virtio_sriov),
        "LAB_QEMU": emulators.SYSTEM if options.qemu is None else "/lab-job/qemu",
        "LAB_QEMU_MODULES": "" if options.qemu is None else str(emulators.modules_of(options.qemu.resolve())),
        "LAB_OUT": "/lab-job/out",
    }
    for word in options.env:
        name, equals, text = word.partition("=")
        variables[name] = text if equals else os.environ.get(name, "")
    return list(variables.items())


def devices_of(options: argparse.Namespace) -> list[str]:
    """Return the host's ``-device`` values, in order."""
    return [
        *(topology.earlier(options.nic_model) if options.earlier else []),
        *topology.NICS[options.nic](options.nic_model),
        *topology.others(),
        *topology.farm(options.functions, options.farm_model, options.farm_shape),
        *(topology.disk() if options.disk else topology.nvme(options.sriov)),
        *(topology.igb() if options.igb is not None else ()),
        *(topology.virtio_sriov(VIRTIO_VFS) if options.virtio_sriov is not None else ()),
        *(topology.usb() if options.usb else ()),
        *options.device,
    ]


def disk_argv(options: argparse.Namespace, job: Job) -> list[str]:
    """Return what the namespace of ``--disk`` keeps its blocks in: a file without any at first."""
    if not options.disk:
        return []
    path = job.directory / topology.DISK
    with path.open("wb") as stream:
        stream.truncate(DISK_SIZE)
    return ["-blockdev", f"file,node-name={topology.DISK},filename={path}"]


def write_config(devices: list[str], path: Path) -> None:
    """Write devices as a file for ``-readconfig``: an argv would be too long for a farm."""
    lines = []
    for number, words in enumerate(devices):
        driver, *properties = words.split(",")
        pairs = dict(word.split("=", 1) for word in properties)
        lines += [f'[device "{pairs.pop("id", f"d{number}")}"]', f'  driver = "{driver}"']
        lines += [f'  {key} = "{text}"' for key, text in pairs.items()]
    path.write_text("\n".join([*lines, ""]))


def qemu_argv(options: argparse.Namespace, job: Job, kernel: Path, archive: Path) -> list[str]:
    """Return the command line of the host."""
    config = job.directory / "devices.cfg"
    write_config(devices_of(options), config)
    console = "/dev/stderr" if options.verbose else job.console
    # SeaBIOS does not scale to a farm's bridges; qboot leaves them to Linux, so addresses differ
    bios = "qboot.rom" if options.functions else "bios-256k.bin"
    share = "addr={},disable-legacy=on,bus=pcie.0"
    return [
        job.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", MACHINE, "-cpu", options.cpu, "-smp", str(options.smp), "-m", str(options.mem),
        "-bios", bios,
        # one ACPI entry per PCI slot would overflow what qboot can load
        "-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
        "-chardev", f"file,id=con,path={console}", "-serial", "chardev:con",
        "-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out",
        "-fsdev", "local,id=labroot,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", f"virtio-9p-pci,fsdev=labroot,mount_tag=labroot,{share.format(2)}",
        "-fsdev", f"local,id=labjob,path={job.directory},security_model=none",
        "-device", f"virtio-9p-pci,fsdev=labjob,mount_tag=labjob,{share.format(3)}",
        "-kernel", str(kernel), "-initrd", str(archive),
        "-append", f"{CMDLINE}intel_iommu=on {options.append}",
        "-device", "intel-iommu,intremap=on,caching-mode=on",  # before the devices it translates for
        *disk_argv(options, job),
        "-readconfig", str(config),
    ]  # fmt: skip


class Report:
    """The output of the host's second serial port: our marks, and the command's output."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.began = False
        self.status: int | None = None
        self.times: list[str] = []

    def mark(self, what: str) -> None:
        """Remember when something happened."""
        self.times.append(f"{what} {time.monotonic() - self.start:.1f} s")

    def read(self, line: bytes) -> None:
        """Take one line in; the command's own go to our stdout."""
        words = line.split()
        if line.startswith((b"LAB-BOOT", b"LAB-READY")):
            self.mark(words[0].decode().removeprefix("LAB-").lower())
        elif line.startswith(b"LAB-BEGIN"):
            self.began = True
        elif line.startswith(b"LAB-END "):
            self.status = int(words[1])
            self.mark("end")
        else:
            sys.stdout.buffer.write(line.replace(b"\r\n", b"\n"))
            sys.stdout.buffer.flush()

    def follow(self, stream: IO[bytes]) -> None:
        """Read until the host is off."""
        for line in stream:
            self.read(line)
        self.mark("off")

    @property
    def exit_status(self) -> int:
        """The command's exit status, or how far the host came."""
        if self.status is not None:
            return self.status
        return EXIT_UNFINISHED if self.began else EXIT_NOT_BOOTED


def run(argv: list[str], options: argparse.Namespace) -> Report:
    """Run the host until it is off or its time is up."""
    report = Report()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as qemu:
        memory = (options.mem + FARM_MEMORY_MIB) << 20
        resource.prlimit(qemu.pid, resource.RLIMIT_AS, (memory, memory))
        clock = threading.Timer(options.timeout, qemu.kill)
        clock.start()
        try:
            assert qemu.stdout is not None
            report.follow(qemu.stdout)
        finally:
            clock.cancel()
            qemu.kill()
    return report


def kernel_of(package: Path) -> Path:
    """
    Return the kernel image of an unpacked package.

    Raises:
        FileNotFoundError: there is none.
    """
    images = sorted((package / "boot").glob("vmlinuz-*"))
    if not images:
        raise FileNotFoundError(f"no kernel in {package}; run {HERE / 'fetch.py'}")
    return images[-1]


def main(argv: list[str]) -> int:
    """Boot, run, report."""
    options = parse(argv)
    kernel = kernel_of(options.kernel)
    modules = options.kernel / "lib/modules" / kernel.name.removeprefix("vmlinuz-")
    archive = initramfs.cached(CACHE, (HERE / "l1/init").read_text(), modules, EARLY_MODULES)
    with tempfile.TemporaryDirectory(prefix="lab-job-") as directory:
        job = Job(Path(directory), options)
        command = qemu_argv(options, job, kernel, archive)
        if options.show:
            note(shlex.join(command))
        report = run(command, options)
        note(", ".join(report.times))
        if options.out:
            shutil.copytree(job.out, options.out, dirs_exist_ok=True)
        if report.status is None:
            note("the host did not finish; its console ends with")
            sys.stderr.write(job.console.read_text(errors="replace")[-CONSOLE_TAIL:])
        return report.exit_status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (FileNotFoundError, topology.TooManyFunctionsError) as err:
        sys.exit(f"boot: {err}")
