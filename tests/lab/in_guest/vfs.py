# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Virtual functions: the variant driver that the kernel knows for one, and their MAC address, VLAN and trust.

The igb card keeps the settings of its VFs in its PF, where ``ip -j link`` shows them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import errnos
from domains import hostdev, write_domain
from labhost import (
    NIC,
    PCI,
    VFIO,
    all_drivers,
    check,
    children,
    driver,
    link_name,
    override,
    run_all,
    say,
    traces,
    wait_for,
)
from onegroup import ended, started
from verbs import said, verb

IGB = os.environ.get("LAB_IGB", "")
VIRTIO = os.environ.get("LAB_VIRTIO", "")
VARIANT = "virtio_vfio_pci"
NETWORKS = Path("/run/libvirt/network")
AS_LIBVIRT = ("--libvirt", "12.8")  # one that chooses variants, whatever this machine has installed
MAC, VLAN = "52:54:00:aa:bb:01", 42


def vf_of(pf: str, number: int) -> str:
    """Return the address of a VF."""
    return (PCI / "devices" / pf / f"virtfn{number}").readlink().name


def interface(address: str) -> str:
    """Return a network interface that is a VF, with an identity of its own."""
    domain, bus, rest = address.split(":")
    slot, function = rest.split(".")
    place = f"domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'"
    return f"""
    <interface type='hostdev' managed='yes' trustGuestRxFilters='yes'>
      <mac address='{MAC}'/><source><address type='pci' {place}/></source><vlan><tag id='{VLAN}'/></vlan>
    </interface>"""


def pf_interface() -> str:
    """Return the network interface of the igb card."""
    return next((PCI / "devices" / IGB / "net").iterdir()).name


def settings(number: int) -> dict[str, Any]:
    """Return what the kernel says about a VF."""
    printed = subprocess.run(["ip", "-j", "-d", "link", "show", pf_interface()], capture_output=True, check=True).stdout
    (link,) = json.loads(printed)
    found: dict[str, Any] = next(vf for vf in link["vfinfo_list"] if vf["vf"] == number)
    return found


def identity(number: int) -> tuple[str, int, bool]:
    """Return MAC, VLAN and trust of a VF."""
    vf = settings(number)
    vlans = vf.get("vlan_list", [{}])
    return vf["address"], vlans[0].get("vlan", 0), bool(vf["trust"])


def has_guest(start: subprocess.Popen[str]) -> bool:
    """Tell whether the settings of the guest are on the PF."""
    return identity(0) == (MAC, VLAN, True) or ended(start)


def check_restored(before: dict[str, Any], home: str | None) -> None:
    """The kernel says about the VF what it said before, and its driver is the same."""
    check(before, settings(0), "ip -j link says about the VF what it said before")
    check(home, driver(vf_of(IGB, 0)), "the VF's driver is as before")
    status = said("status")
    check(([], []), (status["active"], status["inactive"]), "status is empty")


def guest_with_vf(name: str) -> Path:
    """Write a guest that stays, with the VF as its network card."""
    return write_domain(name, interface(vf_of(IGB, 0)), kind="stay")


def network_identity() -> None:
    """MAC, VLAN and trust are set through the PF for the time of the guest, and nothing else of the VF."""
    before, home = settings(0), driver(vf_of(IGB, 0))
    with started(guest_with_vf("vfnetwork")) as start:
        wait_for(lambda: has_guest(start), "the PF has the settings", 120)
        say(f"    ip -j link: {settings(0)}")
        check((MAC, VLAN, True), identity(0), "MAC, VLAN and trust are the guest's")
        wait_for(lambda: ended(start) or qemu_of(start), "the guest runs")
        check(VFIO, driver(vf_of(IGB, 0)), "the VF is the guest's")
        start.send_signal(signal.SIGTERM)
        wait_for(lambda: ended(start), "start ends", 60)
    check(0, start.returncode, "exit code of 'start'")
    check_restored(before, home)


def pool_interface() -> str:
    """Return an interface of an active network that is the pool of the igb card's VFs."""
    NETWORKS.mkdir(parents=True, exist_ok=True)
    forward = f"<forward mode='hostdev' managed='yes'><pf dev='{pf_interface()}'/></forward>"
    network = f"<network><name>pool</name>{forward}<vlan><tag id='{VLAN}'/></vlan></network>"
    (NETWORKS / "pool.xml").write_text(f"<networkstatus>{network}</networkstatus>")
    return f"""
    <interface type='network' trustGuestRxFilters='yes'>
      <mac address='{MAC}'/><source network='pool'/><model type='virtio'/>
    </interface>"""


def pool_gives(domain: Path) -> list[str]:
    """Return the functions that the pool would give to a domain."""
    findings = said("plan", domain, "--for-start")["findings"]
    return [item["address"] for item in findings if item["reason"] == "from-pool"]


def network_pool() -> None:
    """Guests get the VFs of a pool in their order; the MAC is the interface's, the VLAN the network's."""
    before, home = settings(0), driver(vf_of(IGB, 0))
    first, second = (write_domain(name, pool_interface(), kind="stay") for name in ("pool1", "pool2"))
    check([vf_of(IGB, 0)], pool_gives(second), "the first VF is free")
    with started(first) as start:
        wait_for(lambda: has_guest(start), "the PF has the settings", 120)
        check((MAC, VLAN, True), identity(0), "MAC, VLAN and trust are the guest's")
        wait_for(lambda: ended(start) or qemu_of(start), "the guest runs")
        check(VFIO, driver(vf_of(IGB, 0)), "the first VF is the guest's")
        check([vf_of(IGB, 1)], pool_gives(second), "another guest would get the second")
        start.send_signal(signal.SIGTERM)
        wait_for(lambda: ended(start), "start ends", 60)
    check(0, start.returncode, "exit code of 'start'")
    check([vf_of(IGB, 0)], pool_gives(second), "the first VF is free again")
    shutil.rmtree(NETWORKS)
    check_restored(before, home)


def qemu_of(start: subprocess.Popen[str]) -> int | None:
    """Return the process id of QEMU, which ``start`` has as its child."""
    try:
        for pid in children(start.pid):
            if "-no-shutdown" in _read(f"/proc/{pid}/cmdline").split("\0"):
                return pid
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended meanwhile
    return None


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def identity_after_kill() -> None:
    """SIGKILL to start and to QEMU: recover restores the settings of the PF, then the driver."""
    before, home = settings(0), driver(vf_of(IGB, 0))
    with started(guest_with_vf("vfkilled")) as start:
        wait_for(lambda: ended(start) or (has_guest(start) and qemu_of(start)), "the guest runs", 120)
        qemu = qemu_of(start)
        assert qemu is not None, "start ended before the guest ran"
        start.kill()
        wait_for(lambda: ended(start), "start is dead")
        verb("recover", expect=0)
        check((MAC, VLAN, True), identity(0), "a guest that runs keeps its settings")
        os.kill(qemu, signal.SIGKILL)
        wait_for(lambda: not os.path.exists(f"/proc/{qemu}/exe"), "QEMU is dead")
    verb("recover", "--all")
    check_restored(before, home)


def pf_with_vfs() -> None:
    """A PF whose driver would remove its VFs is refused by every verb before its driver is touched."""
    before = traces()
    domain = write_domain("pf", hostdev(IGB, assigned=None))
    findings = said("plan", domain, expect=1)["findings"]
    check(True, "pf-with-vfs" in [item["reason"] for item in findings], "the plan says pf-with-vfs")
    verb("prepare", domain, expect=1)
    verb("nodedev-detach", IGB, expect=1)
    check(before, traces(), "no function of the host was touched")


def variant_driver() -> None:
    """The VF of a virtio card is bound to the variant driver that modules.alias names, and given back."""
    vf = vf_of(VIRTIO, 0)
    before = all_drivers()
    chosen = {device["address"]: device["vfio_driver"] for device in said("list", *AS_LIBVIRT)}
    check(VARIANT, chosen[vf], "list names the variant")
    check(VFIO, chosen[NIC[0]], "and vfio-pci for a function that the variant does not know")
    domain = write_domain("variant", hostdev(vf, assigned=None))
    steps = {(step["address"], step["driver"]) for step in moves(domain)}
    check({(vf, VARIANT)}, steps, "the plan binds the VF to it")
    verb("prepare", domain, *AS_LIBVIRT)
    check((VARIANT, VARIANT), (driver(vf), override(vf)), "the VF is on the variant")
    node = next((PCI / "devices" / vf / "vfio-dev").iterdir()).name
    shown = said("show", vf, *AS_LIBVIRT)
    check(VARIANT, shown["driver"], "show says the driver")
    check(True, f"/dev/vfio/devices/{node}" in shown["vfio_nodes"], "show names the node")
    verb("release", domain)
    check(before, all_drivers(), "it is given back")


def moves(domain: Path) -> list[dict[str, str]]:
    """Return the functions that a plan moves, each with the driver that it gets."""
    steps = said("plan", domain, *AS_LIBVIRT)["steps"]
    return [
        {"address": step["address"], "driver": step["to"]} for step in steps if step["action"] == "detach"
    ]  # fmt: skip


def variant_guest() -> None:
    """A guest starts with a VF on its variant driver."""
    vf = vf_of(VIRTIO, 0)
    before = all_drivers()
    with started(write_domain("variantguest", hostdev(vf, assigned=None), kind="stay"), *AS_LIBVIRT) as start:
        wait_for(lambda: ended(start) or qemu_of(start), "QEMU runs", 120)
        check(VARIANT, driver(vf), "the VF is on the variant while the guest runs")
        start.send_signal(signal.SIGTERM)
        wait_for(lambda: ended(start), "start ends", 60)
    check(0, start.returncode, "exit code of 'start'")
    check(before, all_drivers(), "it is given back")


def variant_by_hand() -> None:
    """<driver model=> turns the choice off; a variant that does not know the function is refused, untouched."""
    vf = vf_of(VIRTIO, 0)
    plain = hostdev(vf, assigned=None).replace("<driver name='vfio'/>", "<driver name='vfio' model='vfio-pci'/>")
    domain = write_domain("plain", plain)
    verb("prepare", domain, *AS_LIBVIRT)
    check(VFIO, driver(vf), "the VF is on vfio-pci")
    verb("release", domain)
    before = traces()
    verb("nodedev-detach", IGB_VF, "--driver", VARIANT, *AS_LIBVIRT, expect=1)
    check(before, traces(), "a function that the variant does not know is not touched")


def real_state() -> None:
    """What list says about driver and VFIO driver of every function is what the kernel shows."""
    listed = {device["address"]: device["driver"] for device in said("list")}
    real = {address: link_name(PCI / "devices" / address / "driver") for address in listed}
    check(real, listed, f"the drivers of {len(listed)} functions")


IGB_VF = vf_of(IGB, 1) if IGB else ""
OF_IGB = [network_identity, network_pool, identity_after_kill, pf_with_vfs]
OF_VIRTIO = [variant_driver, variant_by_hand, variant_guest]
STEPS = [real_state, *(OF_IGB if IGB else ()), *(OF_VIRTIO if VIRTIO else ())]


def clean_up() -> None:
    """Restore the functions without the library, after a step that failed."""
    for address in (vf_of(pf, number) for pf in (IGB, VIRTIO) if pf for number in range(2)):
        kernel = errnos.RealKernel()
        now = driver(address)
        if now is not None:
            kernel.write(f"drivers/{now}/unbind", address.encode())
        kernel.write(f"devices/{address}/driver_override", b"\n")
    shutil.rmtree("/run/pyhostdev", ignore_errors=True)


if __name__ == "__main__":
    if IGB:
        subprocess.run(["ip", "link", "set", pf_interface(), "up"], check=True)  # its VFs read their MAC then
    sys.exit(run_all(STEPS, clean_up))
