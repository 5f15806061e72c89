# SPDX-License-Identifier: LGPL-2.1-or-later
"""A simulated kernel on a tree that an attacker made: nothing outside of the tree is read, changed, made or removed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev.errors import ConfigError, HostdevError, SysfsError
from pyhostdev.testing.fakehost import FakeHost, snapshot_tree
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.testing.tree import Tree
from pyhostdev.tools import main
from pyhostdev.tools.demo import GUEST
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress

CARD = "0001:09:00.0"
DEVICE = f"sys/bus/pci/devices/{CARD}"
ADDRESS = PCIDeviceAddress.parse(CARD)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the tree, with a file that matters."""
    directory = tmp_path / "outside"
    (directory / "deep").mkdir(parents=True)
    (directory / "victim").write_text("important\n")
    (directory / "deep/victim").write_text("important\n")
    return directory


@pytest.fixture
def tree(bcm5719: FakeHost) -> Path:
    """The seed's host, for an attacker to change."""
    return Path(bcm5719.root.path)


def run(verb: str, tree: Path) -> int:
    return main.main([verb, GUEST, "--root", str(tree), "--simulate"])


def there_and_back(tree: Path) -> list[int]:
    return [run(verb, tree) for verb in ("prepare", "release")]


@pytest.mark.parametrize("link", ["etc", "etc/libvirt", "etc/libvirt/hooks", "etc/libvirt/hooks/qemu.d"])
@pytest.mark.parametrize("action", ["--install", "--uninstall"])
def test_hook_is_not_written_or_removed_outside(tree: Path, outside: Path, action: str, link: str) -> None:
    """The live host's libvirt would run it as root; a link in the place of any directory of its path is refused."""
    theirs = outside.joinpath(*Path("etc/libvirt/hooks/qemu.d").parts[link.count("/") + 1 :])
    theirs.mkdir(parents=True, exist_ok=True)
    if action == "--uninstall":
        assert 0 == main.main(["hook", "--install", "--root", str(tree), "--simulate"])
        shutil.move(tree / "etc/libvirt/hooks/qemu.d/50-pyhostdev", theirs)
        shutil.rmtree(tree / "etc/libvirt")
    before = snapshot_tree(str(outside))
    place = tree / link
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        shutil.rmtree(place)
    place.symlink_to(outside)
    main.main(["hook", action, "--root", str(tree), "--simulate"])
    assert before == snapshot_tree(str(outside))


@pytest.mark.parametrize("name", ["fakehost.state.", "fakehost."])
def test_temporary_names_cannot_be_guessed(tree: Path, outside: Path, name: str) -> None:
    """A link for every process id that a temporary name could be made of leads to a file that stays as it is."""
    before = snapshot_tree(str(outside))
    for pid in range(os.getpid() - 5, os.getpid() + 5):
        (tree / f"{name}{pid}").symlink_to(outside / "victim")
    assert [0, 0] == there_and_back(tree)
    assert before == snapshot_tree(str(outside))


@pytest.mark.parametrize(
    "number", ["{victim}", "../../../../../../..{victim}", "1:2/../../x", "..", "", "1:2\n3", "\0", "8:0 ", "-1:0"]
)
@pytest.mark.parametrize("kind", ["net", "block"])
def test_device_number_that_is_a_path(tree: Path, outside: Path, kind: str, number: str) -> None:
    """The ``dev`` of an interface or a disk only names a link if it has the form digits:digits."""
    before, links = snapshot_tree(str(outside)), os.listdir(tree / "sys/dev/block")
    entry = tree / DEVICE / kind / "enp9s0f0"
    entry.mkdir(parents=True, exist_ok=True)
    (entry / "dev").write_text(number.format(victim=outside / "victim"))
    there_and_back(tree)
    assert before == snapshot_tree(str(outside))
    assert (["block"], links) == (os.listdir(tree / "sys/dev"), os.listdir(tree / "sys/dev/block"))


PLACES = [
    "fakehost.parked",
    "fakehost.removed",
    "dev",
    "dev/vfio",
    "sys/class/net",
    "sys/dev/block",
    "sys/bus/pci/drivers/vfio-pci",
    "sys/bus/pci/drivers/tg3",
    f"{DEVICE}/net",
    f"{DEVICE}/net/enp9s0f0",
    f"{DEVICE}/vfio-dev",
    "sys/kernel/iommu_groups/14",
    "sys/kernel/iommu_groups/14/devices",
    "sys/module",
    "proc",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", ["{outside}", "../../../../../../../../../../..{outside}/deep"])
def test_link_in_the_place_of_a_directory(tree: Path, outside: Path, place: str, target: str) -> None:
    """After any result, a directory outside has the same entries before and after, and no file is read there."""
    before = snapshot_tree(str(outside))
    path = tree / place
    if os.path.lexists(path):
        path.rename(tree / "moved-away")
    path.symlink_to(target.format(outside=outside))
    there_and_back(tree)
    assert before == snapshot_tree(str(outside))


@pytest.mark.parametrize(
    "name", ["driver_override", "enable", "power_state", "uevent", "vendor", "config", "sriov_numvfs"]
)
@pytest.mark.parametrize("how", ["symlink", "hardlink"])
def test_link_in_the_place_of_an_attribute(tree: Path, outside: Path, name: str, how: str) -> None:
    """A file outside that is an attribute by another name is not written to."""
    before = snapshot_tree(str(outside))
    path = tree / DEVICE / name
    path.unlink(missing_ok=True)
    if how == "symlink":
        path.symlink_to(outside / "victim")
    else:
        path.hardlink_to(outside / "victim")
    there_and_back(tree)
    assert before == snapshot_tree(str(outside))


@pytest.mark.parametrize("path", ["dev/vfio/vfio", "sys/bus/pci/drivers/vfio-pci/bind"])
def test_file_with_another_name_outside_is_not_written(tree: Path, outside: Path, path: str) -> None:
    """Registering a driver writes its files; one that is a second name of a file outside refuses."""
    (tree / path).unlink(missing_ok=True)
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).hardlink_to(outside / "victim")
    with Tree(HostRoot(tree)) as files, pytest.raises(OSError, match="Invalid argument"):
        files.put_file(str(tree / path), b"")
    assert "important\n" == (outside / "victim").read_text()


@pytest.mark.parametrize("name", ["driver_override", "vendor", "uevent", "net/enp9s0f0/dev"])
def test_pipe_in_the_place_of_an_attribute_does_not_hang(tree: Path, name: str) -> None:
    """A pipe is an error of the kernel's, not a wait for its writer."""
    path = tree / DEVICE / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    kernel = SimulatedKernel(HostRoot(tree))
    with pytest.raises(SysfsError) as caught:
        kernel.write(f"{tree}/{DEVICE}/driver_override", b"vfio-pci", device=ADDRESS)
        kernel.write(f"{tree}/sys/bus/pci/drivers/tg3/unbind", CARD.encode(), device=ADDRESS)
        kernel.write(f"{tree}/sys/bus/pci/drivers/vfio-pci/bind", CARD.encode(), device=ADDRESS)
    assert errno.EINVAL == caught.value.errno


def test_group_node_that_is_a_pipe_does_not_hang(tree: Path) -> None:
    """Looking for the holder of a group only opens its node if it is a regular file."""
    assert 0 == run("prepare", tree)
    (tree / "dev/vfio/14").unlink()
    os.mkfifo(tree / "dev/vfio/14")
    assert 0 != run("release", tree)


def test_endless_attribute_is_refused(tree: Path) -> None:
    """A file that is larger than any of sysfs is not read to its end."""
    (tree / DEVICE / "driver_override").unlink()
    with open(tree / DEVICE / "driver_override", "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(SysfsError) as caught:
        SimulatedKernel(HostRoot(tree)).write(f"{tree}/{DEVICE}/driver_override", b"x", device=ADDRESS)
    assert errno.EFBIG == caught.value.errno


def edited_state(tree: Path, **fields: object) -> None:
    path = tree / "fakehost.state"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"removed": {"../outside": ["sys/devices/x", None]}},
        {"removed": {CARD: ["../outside", None]}},
        {"removed": {CARD: ["sys/../../outside", None]}},
        {"removed": {CARD: ["{outside}", None]}},
        {"removed": {CARD: ["sys/devices/x", "../../outside"]}},
        {"drivers": [["../../outside", [], "host", None, "loaded", None, None]]},
        {"drivers": [["vfio-pci", [], "vfio", "../../outside", "available", None, None]]},
        {"drivers": 7},
        {"pending": [[CARD, "", "", "probe", "../outside", "running", True, True]]},
        {"pending": [["x"]]},
        {"moved": {"../outside": "tg3"}},
        {"reset_methods": {CARD: 7}},
        {"held": {"../outside": []}},
        {"dynamic": {"../outside": []}},
    ],
)
def test_state_of_the_kernel_that_names_paths(
    tree: Path, outside: Path, fields: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    """A value of a state file only becomes part of a path if it is a name; else one sentence, and nothing is done."""
    before = snapshot_tree(str(outside))
    edited_state(tree, **fields)
    with pytest.raises(ConfigError, match=r"fakehost\.state' is not the state of a simulated kernel"):
        SimulatedKernel(HostRoot(tree)).write(f"{tree}/sys/bus/pci/rescan", b"1", device=ADDRESS)
    assert 0 != run("prepare", tree)
    assert "Traceback" not in capsys.readouterr().err
    assert before == snapshot_tree(str(outside))


@pytest.mark.parametrize("content", ["", "[]", "[" * 100000, "\0", "{}", "null"])
def test_invalid_state_of_the_kernel(tree: Path, content: str) -> None:
    """Any other content of the file is reported in one sentence."""
    (tree / "fakehost.state").write_text(content)
    with pytest.raises(HostdevError, match=r"fakehost\.state"):
        SimulatedKernel(HostRoot(tree)).write(f"{tree}/sys/bus/pci/rescan", b"1", device=ADDRESS)


def test_removed_function_comes_back_without_what_it_held(tree: Path, outside: Path) -> None:
    """A removal and a rescan copy and remove directories: a link in them is copied as a link, and not followed."""
    before = snapshot_tree(str(outside))
    (tree / DEVICE / "physical_node").symlink_to(outside)
    kernel = SimulatedKernel(HostRoot(tree), raw=True)
    kernel.write(f"{tree}/{DEVICE}/remove", b"1", device=ADDRESS)
    kernel.write(f"{tree}/sys/bus/pci/rescan", b"1", device=ADDRESS)
    assert str(outside) == os.readlink(tree / DEVICE / "physical_node")
    assert before == snapshot_tree(str(outside))


def test_functions_that_are_behind_each_other(tree: Path) -> None:
    """VFs of each other, and a bridge to its own bus, are removed once."""
    other = f"sys/bus/pci/devices/{CARD[:-1]}1"
    for device, target in ((DEVICE, other), (other, DEVICE)):
        (tree / device / "virtfn0").symlink_to(f"../{Path(target).name}")
    with open(tree / DEVICE / "config", "r+b") as config:
        config.seek(0x0E)
        config.write(b"\x81")
        config.seek(0x18)
        config.write(bytes((9, 9, 9)))
    kernel = SimulatedKernel(HostRoot(tree), raw=True)
    kernel.write(f"{tree}/{DEVICE}/remove", b"1", device=ADDRESS)
    assert not (tree / DEVICE).exists()


def test_tree_deeper_than_any_host_is_not_removed(tmp_path: Path) -> None:
    """Removing a directory ends at a depth that no host has, with an error and not with the stack."""
    deep = tmp_path / "a"
    deep.mkdir()
    fd = os.open(deep, os.O_DIRECTORY)
    for _ in range(300):
        os.mkdir("a", dir_fd=fd)
        inner = os.open("a", os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with Tree(HostRoot(tmp_path)) as files, pytest.raises(OSError, match="symbolic links"):
        files.drop_tree(str(deep))


def test_the_live_host_by_another_name_is_not_simulated(tmp_path: Path) -> None:
    """A path that leads to / is the live host."""
    (tmp_path / "link").symlink_to("/")
    for path in ("/proc/self/root", str(tmp_path / "link")):
        with pytest.raises(ConfigError, match="cannot be simulated"):
            SimulatedKernel(HostRoot(path))


class TestTree:
    """What a path below a root means: as in a chroot, whatever is in it."""

    @pytest.fixture
    def files(self, tmp_path: Path, outside: Path) -> Callable[[], Tree]:
        root = tmp_path / "root"
        (root / "a/b").mkdir(parents=True)
        (root / "a/b/file").write_text("inside")
        (root / "outside").mkdir()
        (root / "outside/victim").write_text("of the tree\n")
        return lambda: Tree(HostRoot(root))

    @pytest.mark.parametrize(
        ("target", "path", "expected"),
        [
            ("/a/b", "link/file", b"inside"),
            ("a/b", "link/file", b"inside"),
            ("../../../../a/b", "link/file", b"inside"),
            ("a/../a/./b//", "link/file", b"inside"),
            ("/", "link/a/b/file", b"inside"),
            ("a/b/file", "link", b"inside"),
            ("{outside}/victim", "link", None),
            ("../outside/victim", "link", b"of the tree\n"),
            ("nowhere", "link", None),
            ("a/b/file", "link/x", None),
        ],
    )
    def test_links_stay_below(
        self, files: Callable[[], Tree], outside: Path, target: str, path: str, expected: bytes | None
    ) -> None:
        """Absolute targets start at the root, and ``..`` stops there."""
        with files() as tree:
            tree.put_text_link(tree.root.join("link"), target.format(outside=outside))
            assert expected == tree.read_file(tree.root.join(path))

    def test_loops_end(self, files: Callable[[], Tree]) -> None:
        """A link to itself, two to each other and a cascade are ELOOP at once."""
        with files() as tree:
            tree.put_text_link(tree.root.join("self"), "self/x")
            tree.put_text_link(tree.root.join("x"), "y")
            tree.put_text_link(tree.root.join("y"), "x/z")
            for n in range(60):
                tree.put_text_link(tree.root.join(f"c{n}"), f"c{n + 1}/../c{n + 1}")
            for path in ("self/a", "x/a", "c0/a"):
                with pytest.raises(OSError, match="symbolic links"):
                    tree.read_file(tree.root.join(path))

    def test_paths_of_another_root_are_refused(self, files: Callable[[], Tree], outside: Path) -> None:
        """A path that does not begin with the root, or climbs above it, reaches nothing outside."""
        with files() as tree:
            with pytest.raises(OSError, match="cross-device"):
                tree.read_file(str(outside / "victim"))
            assert b"of the tree\n" == tree.read_file(f"{tree.root.path}/../outside/victim")

    def test_changes_are_seen_at_once(self, files: Callable[[], Tree]) -> None:
        """A directory that was opened earlier is not used for a later one at the same path."""
        with files() as tree:
            join = tree.root.join
            tree.put_link(join("link"), join("a"))
            assert ["file"] == tree.list_dir(join("link/b"))
            tree.put_link(join("link"), join("outside"))
            assert [] == tree.list_dir(join("link/b"))
            assert ["file"] == tree.list_dir(join("a/b"))
            tree.move(join("a"), join("c"))
            assert [] == tree.list_dir(join("a/b"))
            tree.make_dirs(join("a/b"))
            assert [] == tree.list_dir(join("a/b"))
            tree.drop_tree(join("c"))
            assert not tree.exists(join("c/b"))

    def test_descriptors_are_given_back(self, files: Callable[[], Tree]) -> None:
        """An error that is kept keeps no descriptor, and so no lock."""
        before = len(os.listdir("/proc/self/fd"))
        with files() as tree, pytest.raises(OSError) as caught:
            tree.put_file(tree.root.join("a/b"), b"")
        assert (errno.EINVAL, before) == (caught.value.errno, len(os.listdir("/proc/self/fd")))
