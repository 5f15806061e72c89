# SPDX-License-Identifier: LGPL-2.1-or-later
"""The network identity of virtual functions: set through the PF, read back, restored, also after a crash."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyhostdev import DomainDef, Host, HostdevManager, PCIDeviceAddress
from pyhostdev.errors import OperationError
from pyhostdev.hypervisor import vf_network
from pyhostdev.hypervisor.vf_network import VFJournal, VFNetwork, place_of, vf_obstacles
from pyhostdev.qemu import qemu_driver
from pyhostdev.qemu.qemu_command.ignored import IGNORED
from pyhostdev.testing import FakeHost
from pyhostdev.testing.procfiles import SimulatedProcess
from pyhostdev.util.netlink import LINK_DISABLED, VFSettings, parse_vf

CASES = Path(__file__).parent.parent.parent / "testdata/cases"
VF = PCIDeviceAddress.parse("0000:ca:00.2")
DOMAIN = (
    "<domain type='qemu'><name>d</name><memory>65536</memory><os><type>hvm</type></os><devices>{}</devices></domain>"
)
SOURCES = {
    "hostdev": "<source><address type='pci' bus='0xca' slot='0' function='2'/></source>",
    "bridge": "<source bridge='br0'/>",
}
FRESH = VFSettings("00:00:00:00:00:00", 0, 0, 0)


class FakePF:
    """A PF's settings of its VFs, as the kernel's calls show them; ``keeps`` False accepts settings and loses them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, keeps: bool = True) -> None:
        self.functions = {0: FRESH}
        self.keeps = keeps
        self.calls: list[list[str]] = []
        monkeypatch.setattr(vf_network.netlink, "read_vf", lambda pf, number: self.functions.get(number))
        monkeypatch.setattr(vf_network.netlink, "set_vf", self.set)
        monkeypatch.setattr(vf_network.virnetdev, "interface_index", lambda name: 3)

    def set(self, pf: int, number: int, settings: VFSettings, names: Any) -> None:
        self.calls.append(sorted(names))
        if self.keeps:
            new = {name: getattr(settings, name) for name in names}
            self.functions[number] = self.functions[number]._replace(**new)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    fake = FakeHost.from_tree(CASES / "vf.tree", tmp_path)
    pf = Path(fake.root.pci_device("0000:ca:00.0"))
    if not (pf / "virtfn0").exists():
        (pf / "virtfn0").symlink_to(f"../{VF}")
    return Host(fake.root, writer=fake.kernel)


def domain(**changes: str) -> DomainDef:
    text = (CASES / "vf-vlan.xml").read_text()
    for before, after in changes.items():
        text = text.replace(before, after)
    return DomainDef.parse(text)


def test_a_function_has_a_number_and_an_interface_of_its_pf(host: Host) -> None:
    """Both follow from the links of sysfs; a function that is not a VF has neither."""
    assert ("ens5f0np0", 0) == place_of(host.root, VF)
    assert None is place_of(host.root, PCIDeviceAddress.parse("0000:ca:00.0"))


def test_identity_is_set_and_restored(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """MAC address and VLAN are set while the guest runs, and restored afterwards."""
    pf = FakePF(monkeypatch)
    with ExitStack() as undo:
        VFNetwork(host, "vm", undo).set_all(domain())
        assert VFSettings("52:54:00:00:00:01", 42, 0, 0) == pf.functions[0]
        assert ["0000:ca:00.2.vf"] == [name for name in VFJournal(host).state.names() if name.endswith(".vf")]
    assert FRESH == pf.functions[0]
    assert [["mac", "vlan"], ["mac", "vlan"]] == pf.calls
    assert [] == list(VFJournal(host).recover())


def test_identity_is_restored_after_a_crash(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """While QEMU holds the lock the settings stay; then recover restores them once."""
    pf = FakePF(monkeypatch)
    undo = ExitStack()
    network = VFNetwork(host, "vm", undo)
    network.set_all(domain())
    undo.pop_all()  # a killed program undoes nothing
    assert ["kept"] == [item.outcome for item in VFJournal(host).recover()]
    os.close(network.lock_fds[0])
    assert [("0000:ca:00.2", "vm", "restored")] == [item[:3] for item in VFJournal(host).recover()]
    assert FRESH == pf.functions[0]
    assert [] == list(VFJournal(host).recover())


def test_lock_that_a_hostile_qemu_releases_restores_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU inherits the lock and can release it: the guest keeps its VLAN as long as it has the function."""
    pf = FakePF(monkeypatch)
    undo = ExitStack()
    network = VFNetwork(host, "vm", undo)
    HostdevManager(host).nodedev_detach(VF)
    network.set_all(domain())
    undo.pop_all()
    group = host.pci_device(VF).iommu_group
    assert group is not None
    qemu = SimulatedProcess(host.root, [host.root.vfio_group(group)])
    fcntl.flock(network.lock_fds[0], fcntl.LOCK_UN)
    (found,) = VFJournal(host).recover()
    assert ("failed", 42, True) == (found.outcome, pf.functions[0].vlan, "is held open by" in found.message)
    with pytest.raises(OperationError, match="cannot be restored"):
        VFJournal(host).undo_leftover(str(VF))
    qemu.vanish()
    assert ["restored"] == [item.outcome for item in VFJournal(host).recover()]
    assert FRESH == pf.functions[0]
    os.close(network.lock_fds[0])


def test_the_next_guest_does_not_take_a_dead_ones_identity_for_the_former(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start without a recover in between restores first; one that cannot be restored is refused."""
    pf = FakePF(monkeypatch)
    undo = ExitStack()
    network = VFNetwork(host, "vm", undo)
    network.set_all(domain())
    undo.pop_all()  # a killed program undoes nothing
    os.close(network.lock_fds[0])
    pf.keeps = False
    with pytest.raises(OperationError, match="of a dead guest cannot be restored"), ExitStack() as undo:
        VFNetwork(host, "other", undo).set_all(domain())
    pf.keeps = True
    with ExitStack() as undo:
        VFNetwork(host, "other", undo).set_all(domain())
    assert FRESH == pf.functions[0]


def test_setting_that_is_not_kept_is_an_error(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that the driver accepts but does not keep is an error: the guest would be on another network."""
    FakePF(monkeypatch, keeps=False)
    with pytest.raises(OperationError, match="does not keep mac, vlan"), ExitStack() as undo:
        VFNetwork(host, "vm", undo).set_all(domain())
    assert [] == list(VFJournal(host).recover())


def test_restoring_that_fails_keeps_the_record(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """If restoring fails, the record keeps the former settings for recover."""
    pf = FakePF(monkeypatch)
    with pytest.raises(OperationError, match="does not keep"), ExitStack() as undo:
        VFNetwork(host, "vm", undo).set_all(domain())
        pf.keeps = False
    pf.keeps = True
    assert ["restored"] == [item.outcome for item in VFJournal(host).recover()]
    assert FRESH == pf.functions[0]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("<vlan><tag id='42'/></vlan>", "<vlan trunk='yes'><tag id='42'/></vlan>", "no trunk"),
        ("<tag id='42'/>", "<tag id='42'/><tag id='43'/>", "one <vlan> tag"),
        ("id='42'", "id='4095'", "up to 4094"),
        ("<vlan><tag id='42'/></vlan>", "<virtualport type='802.1Qbg'/>", "type of <virtualport> is not"),
    ],
)
def test_what_a_virtual_function_does_not_have(host: Host, before: str, after: str, said: str) -> None:
    """Refused before anything is changed, with the line."""
    (finding,) = vf_obstacles(domain(**{before: after}), host)
    assert (True, "unsupported", "error") == (said in finding.message, finding.reason, finding.severity)


def test_pf_without_an_interface_here(host: Host) -> None:
    """A PF whose interface is in another network namespace is refused."""
    shutil.rmtree(Path(host.root.pci_device("0000:ca:00.0")) / "net")
    assert ["network-missing"] == [finding.reason for finding in vf_obstacles(domain(), host)]


def test_start_needs_no_consent_for_what_it_sets_itself(host: Host) -> None:
    """prepare asks for consent as it does not set the network identity; start sets it itself."""
    dom = domain()
    assert "vf-network" in [finding.reason for finding in host.plan(dom).obstacles]
    assert "vf-network" not in [finding.reason for finding in qemu_driver.plan(host, dom).obstacles]


def test_the_kernels_list_is_read() -> None:
    """The settings of one function among several, as the kernel encodes them; a missing setting is None."""
    module = pytest.importorskip("pyroute2.netlink.rtnl.ifinfmsg", reason="pyroute2 is not installed")
    functions = [
        ("IFLA_VF_INFO", {"attrs": [
            ("IFLA_VF_MAC", {"vf": number, "mac": f"02:00:00:00:00:0{number}"}),
            ("IFLA_VF_VLAN", {"vf": number, "vlan": 40 + number, "qos": number}),
            ("IFLA_VF_TRUST", {"vf": number, "trust": 1 if number else 0xFFFFFFFF}),
            ("IFLA_VF_SPOOFCHK", {"vf": number, "spoofchk": 1 if number else 0xFFFFFFFF}),
            ("IFLA_VF_LINK_STATE", {"vf": number, "link_state": 2 * number}),
        ]})
        for number in range(2)
    ]  # fmt: skip
    message = module.ifinfmsg()
    message["attrs"] = [("IFLA_VFINFO_LIST", {"attrs": functions})]
    message.encode()
    read = module.ifinfmsg(message.data)
    read.decode()
    listed = read.get_attr("IFLA_VFINFO_LIST")
    assert VFSettings("02:00:00:00:00:00", 40, 0, None, None, 0) == parse_vf(listed, 0)
    assert VFSettings("02:00:00:00:00:01", 41, 1, 1, 1, 2) == parse_vf(listed, 1)
    assert None is parse_vf(listed, 2)
    assert None is parse_vf(None, 0)


def test_trust_of_a_virtual_function_is_not_called_ignored() -> None:
    """Trust of a VF is set through its PF; on another interface it is ignored, and the plan has a note."""
    word = IGNORED["DomainNetDef"]["trust_guest_rx_filters"]
    said = {}
    for kind in ("hostdev", "bridge"):
        interface = f"<interface type='{kind}' trustGuestRxFilters='yes'>{SOURCES[kind]}</interface>"
        (net,) = DomainDef.parse(DOMAIN.format(interface)).interfaces
        said[kind] = word.applies_to(net, "trust_guest_rx_filters")
    assert {"hostdev": False, "bridge": True} == said


def test_the_library_is_imported_before_a_deadline_begins(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy host, the import may take longer than the deadline."""
    FakePF(monkeypatch)
    order: list[str] = []
    real = vf_network.within

    def within(*words: Any) -> Any:
        order.append("deadline")
        return real(*words)

    monkeypatch.setattr(vf_network.netlink, "load", lambda: order.append("import"))
    monkeypatch.setattr(vf_network, "within", within)
    with ExitStack() as undo:
        VFNetwork(host, "vm", undo).set_all(domain())
    assert ["import", "deadline"] == order[:2]


def test_spoof_check_is_left_and_restored(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt does not set it; a driver that switches it off for a trusted function does not keep it so."""
    pf = FakePF(monkeypatch)
    pf.functions[0] = before = FRESH._replace(spoofchk=1, link_state=0)
    real = pf.set

    def set_and_unspoof(pf_: int, number: int, settings: VFSettings, names: Any) -> None:
        real(pf_, number, settings._replace(spoofchk=0) if "trust" in names else settings, names)

    monkeypatch.setattr(vf_network.netlink, "set_vf", set_and_unspoof)
    dom = domain(**{"<interface type='hostdev'": "<interface type='hostdev' trustGuestRxFilters='yes'"})
    with ExitStack() as undo:
        VFNetwork(host, "vm", undo).set_all(dom)
        assert (1, 1) == (pf.functions[0].trust, pf.functions[0].spoofchk)
    assert before == pf.functions[0]


def test_link_that_is_down_is_switched_by_the_pf(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's monitor knows no link of a host device."""
    pf = FakePF(monkeypatch)
    pf.functions[0] = before = FRESH._replace(spoofchk=None, link_state=0)
    with ExitStack() as undo:
        VFNetwork(host, "vm", undo).set_all(domain(**{"</interface>": "<link state='down'/></interface>"}))
        assert LINK_DISABLED == pf.functions[0].link_state
    assert before == pf.functions[0]


def test_records_of_other_versions_are_understood(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older record does not have newer settings, which stay; older versions can read a newer record."""
    pf = FakePF(monkeypatch)
    old: dict[str, Any] = {"mac": "02:00:00:00:00:09", "vlan": 5, "qos": 0, "trust": 0}
    journal = VFJournal(host)
    os.close(journal.begin(str(VF), "vm", before=old))
    pf.functions[0] = FRESH._replace(spoofchk=1, link_state=2)
    assert ["restored"] == [item.outcome for item in journal.recover()]
    assert VFSettings(**old, spoofchk=1, link_state=2) == pf.functions[0]
    undo = ExitStack()
    network = VFNetwork(host, "vm", undo)
    network.set_all(domain())
    undo.pop_all()
    os.close(network.lock_fds[0])
    record = json.loads(journal.state.read(f"{VF}.vf") or b"")
    assert (old, 1, 2) == (record["before"], record["spoofchk"], record["link_state"])
