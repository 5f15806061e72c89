# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One guest with all that a guest can have, and the seed's card: started, seen from inside, and everything given back;
also after SIGKILL of each of its processes.

It has a tap on a bridge, UEFI firmware with secure boot and its variables, a TPM, virtiofs, an input device and a USB
device of the host, an agent, and pinned processors.
"""

from __future__ import annotations

import grp
import os
import pwd
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onegroup
from crash import end
from crash import qemu_of as qemu_named
from domains import RUN, guest_devices
from guestmonitor import is_running
from keyboard import KEY_A, Keyboard, pressed
from keyboard import NAME as KEYBOARD
from labhost import NIC, PCI, check, children, link_name, run_all, say, wait_for
from onegroup import SPLIT, check_detached, check_home, ended, listed, qemu_of, serial, started, wait_for_qemu
from verbs import said, verb
from wholeguest import (
    AGENT,
    BRIDGE,
    HOST_IP,
    MAC,
    NAME,
    NVRAM,
    SHARE,
    TABLET,
    TPM_STATE,
    ask_agent,
    sayings,
    write_whole,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Iterator

BOOT_S = 1800
USER, UID = "libvirt-qemu", 64055  # as in Debian's package
STATE = Path("/run/pyhostdev")
LIBVIRT = Path("/var/lib/libvirt")
USB = Path("/sys/bus/usb/devices")
NET = Path("/sys/class/net")
WORD = "a word of the host"


def add_user() -> None:
    """Add the user that QEMU runs as where root starts it, unless this machine has it."""
    names = {user.pw_name for user in pwd.getpwall()}, {group.gr_name for group in grp.getgrall()}
    lines = f"{USER}:x:{UID}:{UID}::/var/lib/libvirt:/usr/sbin/nologin\n", f"{USER}:x:{UID}:\n"
    for path, known, line in zip(("/etc/passwd", "/etc/group"), names, lines, strict=True):
        if USER not in known:
            with open(path, "a") as file:
                file.write(line)


def prepare_host() -> None:
    """Make what an administrator makes: a bridge, a directory to share, and rights for QEMU's user."""
    add_user()
    user = pwd.getpwnam(USER)
    LIBVIRT.mkdir(exist_ok=True)
    for words in (
        ["mount", "-t", "tmpfs", "-o", "mode=711", "guests", str(LIBVIRT)],  # not what this machine keeps of its guests
        ["ip", "link", "add", BRIDGE, "type", "bridge"],
        ["ip", "addr", "add", f"{HOST_IP}/24", "dev", BRIDGE],
        ["ip", "link", "set", BRIDGE, "up"],
    ):
        subprocess.run(words, check=True)
    SHARE.mkdir(parents=True)
    (SHARE / "word").write_text(f"{WORD}\n")
    for path in (RUN, SHARE):  # the guest's serial port is a file there
        os.chown(path, user.pw_uid, user.pw_gid)


def processes() -> dict[str, int]:
    """Return how often each program runs, by its command line; threads of the kernel are not counted."""
    found: dict[str, int] = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words:
            found[words] = found.get(words, 0) + 1
    return found


def sockets() -> list[str]:
    """Return the paths of the sockets that are bound below the state directory."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sorted(line.split(maxsplit=7)[7] for line in lines if str(STATE) in line)


def state_files() -> list[str]:
    """Return the entries of the state directory, except directories and locks with a fixed name."""
    return sorted(str(path) for path in STATE.rglob("*") if not path.is_dir() and not is_lock(path))


def is_lock(path: Path) -> bool:
    """Tell whether a file is the lock of an owner, a device or an interface, of which there are only so many."""
    if path.parent.name == "in-flight":
        return True
    return path.suffix == ".lock" and path.parent.name not in ("programs", "guests")


def usb_drivers() -> dict[str, str | None]:
    """Return the driver of each interface of each USB device."""
    return {path.name: link_name(path / "driver") for path in sorted(USB.glob("*:*"))}


def surroundings(keyboard: Keyboard) -> dict[str, Any]:
    """Return all that a guest changes on its host, as it is now."""
    return {
        "interfaces without hardware": sorted(path.name for path in NET.iterdir() if not (path / "device").exists()),
        "ports of the bridge": sorted(path.name for path in (NET / BRIDGE / "brif").iterdir()),
        "USB drivers": usb_drivers(),
        "keyboard grabbed": keyboard.is_grabbed(),
        "programs": processes(),
        "sockets": sockets(),
        "state": state_files(),
        "domain directories": sorted(map(str, STATE.glob("lib/qemu/**/domain-*"))),
    }


def check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """
    Check that the host is as it was, apart from the PCI functions.

    Raises:
        AssertionError: with all that differs.
    """
    differs = {name: (value, now[name]) for name, value in before.items() if value != now[name]}
    check({}, differs, f"as before: {', '.join(before)}")


@contextmanager
def whole_guest() -> Iterator[tuple[subprocess.Popen[str], Keyboard]]:
    """Start the guest; at the end of the block check that everything was given back."""
    for path in SHARE.iterdir():
        if path.name != "word":
            path.unlink()
    with Keyboard() as keyboard:
        user = pwd.getpwnam(USER)
        os.chown(keyboard.node, user.pw_uid, user.pw_gid)
        domain = write_whole(SPLIT, keyboard.node)
        before = surroundings(keyboard)
        begin = time.monotonic()
        with started(domain) as start:
            wait_for_qemu(start)
            wait_for(lambda: ended(start) or is_running(NAME), "the guest runs", 120)
            assert not ended(start), "start ended before the guest ran"
            say(f"  the guest runs after {time.monotonic() - begin:.0f} s")
            yield start, keyboard
        check_home()
        check_same(before, surroundings(keyboard))


def program(start: subprocess.Popen[str], name: str) -> int:
    """Return the process id of a child of ``start`` by its name; a loader may come before it."""
    words = {pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:4] for pid in children(start.pid)}
    (pid,) = [pid for pid, first in words.items() if name in map(os.path.basename, first)]
    return pid


def affinities(pid: int) -> dict[str, str]:
    """Return the processors of QEMU's own thread and of the guest's processors, by name."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        name = (task / "comm").read_text().strip()
        if task.name == str(pid) or name.startswith("CPU "):
            found["QEMU" if task.name == str(pid) else name] = status["Cpus_allowed_list"]
    return found


def look_from_the_host(start: subprocess.Popen[str], keyboard: Keyboard) -> None:
    """What the host shows of the running guest."""
    check_detached(NAME)
    pid = qemu_of(start)
    assert pid is not None
    check({"QEMU": "0", "CPU 0/TCG": "1", "CPU 1/TCG": "0"}, affinities(pid), "pinned: QEMU and the guest's processors")
    check(True, keyboard.is_grabbed(), "QEMU has the keyboard for itself")
    (port,) = (NET / BRIDGE / "brif").iterdir()
    check(f"fe{MAC[2:]}", (NET / port.name / "address").read_text().strip(), f"'{port.name}' is a port of the bridge")
    for name in ("swtpm", "virtiofsd"):
        status = Path(f"/proc/{program(start, name)}/status").read_text()
        uid = next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:"))
        check(str(pwd.getpwnam(USER).pw_uid), uid, f"{name} runs as QEMU's user")


def tablet() -> str:
    """Return the name of the USB device that the guest gets, as sysfs has it."""
    return next(
        path.parent.name
        for path in USB.glob("*/idVendor")
        if (path.read_text().strip(), (path.parent / "idProduct").read_text().strip()) == TABLET
    )


def look_from_inside() -> None:
    """What the guest says about itself, word by word."""
    inside = sayings(serial())
    for name, words in inside.items():
        say(f"    {name}: {' | '.join(words)}")
    nics = {address: ids for address, (class_, ids) in guest_devices(serial()).items() if class_ == "0200"}
    card = PCI / "devices" / NIC[0]
    ids = ":".join((card / name).read_text().strip().removeprefix("0x") for name in ("vendor", "device"))
    check({"00:04.0": ids, "00:04.3": ids}, {address: nic for address, nic in nics.items() if nic == ids}, "the card")
    check(["2"], inside["kernel"], "the kernel says that secure boot is on and that it is locked down")
    check([True], [words.endswith("EDK II") for words in inside["firmware"]], "the firmware is UEFI")
    check((["0600000001"], ["0600000000"]), (inside["SecureBoot"], inside["SetupMode"]), "secure boot is on, with keys")
    sizes = {words.split()[0]: int(words.split()[1]) > 100 for words in inside["enrolled"]}
    check({"PK": True, "KEK": True, "db": True}, sizes, "the keys are those of the template")
    check(["2"], inside["tpm"], "version of the TPM")
    check([True], [len(set(words)) > 1 for words in inside["pcr7"]], "the firmware has measured secure boot into it")
    check(["2"], inside["processors"], "processors")
    macs = {words.split()[0] for words in inside["link"]}
    check(True, {MAC, "52:54:00:00:00:00", "52:54:00:00:00:03"} <= macs, "the tap and functions 0 and 3 are links")
    check(["3"], inside["ping"], "the bridge's address answers")
    check([WORD], inside["word"], "the guest reads a shared file")
    check("from the guest", (SHARE / "answer").read_text().strip(), "and writes one")
    check(True, any(words.startswith(" ".join(TABLET)) for words in inside["usb"]), "the USB device")


def ask_inside(keyboard: Keyboard) -> None:
    """The agent answers, and a key of the host's keyboard is a key of the guest's."""
    wait_for(_pings, "the agent answers", 300)
    found = ask_agent("guest-network-get-interfaces")
    macs = {interface.get("hardware-address") for interface in found}
    check(True, MAC in macs, f"the agent at '{AGENT}' lists the interfaces")
    keys = [(KEY_A, 1), (KEY_A, 0)]

    def typed() -> bool:
        keyboard.press()
        return any(keys == pressed(path.read_bytes())[:2] for path in SHARE.glob("keys.*"))

    wait_for(typed, f"a key of the '{KEYBOARD}' arrives", 120)
    say("  ok: a key that is pressed on the host is read in the guest")


def _pings() -> bool:
    try:
        return bool(ask_agent("guest-ping", 30) == {})
    except OSError:
        return False


def seen_from_inside() -> None:
    """A guest with everything: seen from the host, from inside, through its agent; all is given back at its end."""
    begin = time.monotonic()
    with whole_guest() as (start, keyboard):
        look_from_the_host(start, keyboard)
        wait_for(lambda: listed(start), "the guest says what it has", BOOT_S)
        say(f"  it says what it has after {time.monotonic() - begin:.0f} s")
        look_from_inside()
        check(
            {"usbfs"},
            {driver for name, driver in usb_drivers().items() if name.startswith(tablet())},
            "QEMU has the tablet",
        )
        ask_inside(keyboard)
        (SHARE / "end").touch()
        wait_for(lambda: ended(start), "the guest powers off and all is given back", 300)
    check(0, start.returncode, "exit code of 'start'")
    check([True, True], [NVRAM.stat().st_size > 0, any(TPM_STATE.iterdir())], "variables and TPM keep their state")


def killed_emulator() -> None:
    """SIGKILL to QEMU: 'start' gives everything back."""
    with whole_guest() as (start, _):
        os.kill(wait_for_qemu(start), signal.SIGKILL)
        wait_for(lambda: ended(start), "start notices the end of QEMU", 60)
    check(1, start.returncode, "exit code of 'start'")


def killed_programs() -> None:
    """SIGKILL to swtpm and to virtiofsd: the guest stays with QEMU, and its end gives everything back."""
    with whole_guest() as (start, _):
        for name in ("swtpm", "virtiofsd"):
            os.kill(program(start, name), signal.SIGKILL)
            time.sleep(5)
            check((False, True), (ended(start), is_running(NAME)), f"the guest outlives its {name}")
        start.send_signal(signal.SIGTERM)
        wait_for(lambda: ended(start), "start ends", 120)
    check(0, start.returncode, "exit code of 'start'")


def killed_starter() -> None:
    """SIGKILL to 'start': recover leaves the guest what it has; after the guest's end it gives everything back."""
    with whole_guest() as (start, keyboard):
        pid = wait_for_qemu(start)
        start.kill()
        start.wait()
        during = surroundings(keyboard)
        kept = said("recover", "--all")
        say(f"  recover: {[(item['what'], item['outcome']) for item in kept['records']]}")
        check(during, surroundings(keyboard), "recover leaves the guest what it has")
        check(True, is_running(NAME), "the guest runs")
        end(pid)
        verb("recover", "--all")
        check([], said("recover", "--all")["records"], "a second recover finds nothing")


def clean_up() -> None:
    """End a guest that a failed step has left, whose devices no unbind would get, and restore the host."""
    pid = qemu_named(NAME)
    if pid is not None:
        end(pid)
    onegroup.clean_up()


STEPS = [killed_emulator, killed_programs, killed_starter, seen_from_inside]

if __name__ == "__main__":
    prepare_host()
    sys.exit(run_all(STEPS, clean_up))
