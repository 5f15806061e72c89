# SPDX-License-Identifier: LGPL-2.1-or-later
"""A hostile --root: every reading verb ends in time, and no link leads out; the long form is in tests/fuzz."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest
from hostile import DEVICE, NAMES, SECRET, Tree, ask, check, check_at_random, faults_of, place_in_copy

from pyhostdev.errors import InternalError, SysfsError
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools.output import printable_xml, shell_word
from pyhostdev.tools.streams import printable
from pyhostdev.util import confined, pciscan, pciscan_ref, virfile, virpci
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.pciscan import Tuning

CARD = PCIDeviceAddress.parse("0001:09:00.0")
LEADING_OUT = ("secret_file", "secret_directory", "climb", "climb_to_directory")
NOT_FILES = ("fifo", "socket", "device", "zero", "directory", "loop", "giant")
ALONE = ["unshare", "--mount", "--propagation", "private"]
TUNINGS = (Tuning(), Tuning(crowd=0, share=1))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A good tree, which tests copy."""
    return hostile.make_tree(tmp_path_factory.mktemp("good") / "host")


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory outside of every tree."""
    return hostile.make_secret(tmp_path_factory.mktemp("outside") / "secret")


# Whole verbs


@pytest.mark.parametrize("seed", range(6))
def test_changed_at_random(tree: Tree, secret: Path, tmp_path: Path, seed: int) -> None:
    """With any kind of file in any place, a verb ends in time with 0 or 1, and shows nothing from outside the root."""
    check_at_random(tree, tmp_path / "changed", secret, seed)


@pytest.mark.parametrize("where", ["config", "driver_override", "vendor", "numa_node", "class", "modalias"])
@pytest.mark.parametrize("kind", NOT_FILES)
def test_attribute_that_is_not_a_file(tree: Tree, secret: Path, where: str, kind: str) -> None:
    """An attribute that is not a file is an error or absent, and is not opened."""
    with place_in_copy(tree, f"{DEVICE}/{where}", kind, secret) as top:
        check(top, "list", (where, kind))
        check(top, "show", (where, kind))


TABLES = ["proc/mounts", "proc/iomem", "proc/net/route", "run/libvirt/qemu/web.xml", "sys/devices/system/cpu/online"]


@pytest.mark.parametrize("where", TABLES)
@pytest.mark.parametrize("kind", [*NOT_FILES, "many_lines", "noise"])
def test_table_that_is_not_a_file(tree: Tree, secret: Path, where: str, kind: str) -> None:
    """The same holds for the tables of a plan; a table of any size needs the memory of one line."""
    with place_in_copy(tree, where, kind, secret) as top:
        check(top, "plan", (where, kind))


@pytest.mark.parametrize("kind", LEADING_OUT)
@pytest.mark.parametrize(
    ("where", "verb"),
    [
        (f"{DEVICE}/driver_override", "show-json"),
        (f"{DEVICE}/subsystem_device", "show"),
        (f"{DEVICE}/ari_enabled", "list"),
        (DEVICE, "show-json"),
        (DEVICE, "list-json"),
        ("sys/devices/pci0001:08/0001:08:00.0", "list-json"),
        ("sys/kernel/iommu_groups/14/devices", "show-json"),
        ("etc/driverctl.d/pci-0001:09:00.0", "show-json"),
        ("run/libvirt", "plan"),
        ("sys", "list"),
        ("proc", "plan"),
    ],
)
def test_no_link_leads_out(tree: Tree, secret: Path, where: str, verb: str, kind: str) -> None:
    """Absolute links start at the root, and ".." ends there."""
    with place_in_copy(tree, where, kind, secret) as top:
        check(top, verb, (where, kind))


def test_links_that_stay_inside_work(tree: Tree, secret: Path) -> None:
    """An attribute, sys and proc may be links, absolute ones too, as long as what they mean is in the tree."""
    with place_in_copy(tree, "nothing", "nothing", secret) as top:
        before = {verb: ask(top, verb).text for verb in ("list-json", "show-json", "status")}
        for name in ("sys", "proc"):
            (top / name).rename(top / f"real-{name}")
            (top / name).symlink_to(f"/real-{name}")
        override = (top / "real-sys/bus/pci/devices/0001:09:00.0/modalias").parent.resolve() / "modalias"
        override.rename(override.with_name("other"))
        override.symlink_to("other")
        assert "driver" in before["show-json"]
        assert before["list-json"] == ask(top, "list-json").text
        assert before["show-json"] == ask(top, "show-json").text
        (top / "run").rename(top / "real-run")
        (top / "run").symlink_to("/real-run")
        assert "state-directory" in ask(top, "status").text  # records are kept in directories only


@pytest.mark.parametrize("name", NAMES)
def test_driver_by_any_name(bcm5719: FakeHost, name: str) -> None:
    """A driver's name is shown so that a terminal does not act upon it, and in JSON as it is."""
    link = Path(bcm5719.root.pci_device(CARD)).resolve() / "driver"
    link.unlink()
    os.symlink(os.fsencode(f"../{name}"), link)
    top = Path(bcm5719.root.path)
    for verb in ("list", "show", "plan", "list-json", "show-json", "show-xml"):
        check(top, verb, name)
    assert printable(name) in ask(top, "list").text


def test_rule_is_not_blind() -> None:
    """A violation of each part of the rule is detected."""
    good = hostile.Answer(1, "all is well\n", 0.1)
    assert [] == faults_of(good)
    broken = [
        good._replace(code=99),
        good._replace(code=-9),
        good._replace(seconds=5.1),
        good._replace(text="Traceback (most recent call last)"),
        good._replace(text=SECRET),
        good._replace(text="\x1b[31m"),
        good._replace(text="\u202e"),
    ]
    assert [1] * len(broken) == [len(faults_of(answer)) for answer in broken]


def test_secret_is_printed_without_the_sandbox(tree: Tree, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases would show files outside the root if links were followed literally."""
    monkeypatch.setattr(confined, "root_and_path", lambda root, path: (b"", os.fsencode(path)))
    monkeypatch.setattr(pciscan, "_open_root", lambda root: -1)
    with place_in_copy(tree, f"{DEVICE}/driver_override", "secret_file", secret) as top:
        assert ["tells what is outside"] == faults_of(ask(top, "show-json"))
    with place_in_copy(tree, f"{DEVICE}/iommu_group", "nothing", secret) as top:
        function = (top / DEVICE).resolve()
        hostile.remove(function)
        function.symlink_to(secret)
        (secret / "iommu_group").unlink()
        assert SECRET in ask(top, "show-json").text
        (secret / "iommu_group").symlink_to(f"somewhere/{SECRET}")


# The scanner, with and without shared work


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("where", ["devices", "real", "bus"])
def test_scanner_reads_nothing_outside(tmp_path: Path, tuning: Tuning, where: str) -> None:
    """A function whose link, directory or bus directory leads to another host is absent."""
    fake, other = FakeHost.named("bcm5719", tmp_path / "host"), FakeHost.named("bcm5719", tmp_path / "other")
    link = Path(fake.root.pci_devices, str(CARD))
    real = link.resolve()
    replaced = {"devices": link, "real": real, "bus": real.parent}[where]
    target = Path(other.root.pci_devices, str(CARD)).resolve()
    hostile.remove(replaced)
    replaced.symlink_to({"devices": target, "real": target, "bus": target.parent}[where])
    assert str(CARD) in pciscan.scan_with(fake.root, tuning._replace(confined=False)).addresses
    found = pciscan.scan_with(fake.root, tuning)
    assert str(CARD) not in found.addresses
    assert pciscan_ref.scan(fake.root) == list(found)
    assert virpci.read_pci_device(fake.root, CARD) is None


MOUNTED = """
import os, subprocess, sys
from pathlib import Path
from pyhostdev import HostRoot
from pyhostdev.util import pciscan
top = Path(sys.argv[1])
listed = top / "sys/bus/pci/devices"
listed.mkdir(parents=True)
subprocess.run(["mount", "--bind", "/sys/bus/pci/devices", str(listed)], check=True)
for name in os.listdir(listed):
    function = Path(os.path.normpath(listed / os.readlink(listed / name)))
    function.mkdir(parents=True)
    (function / "modalias").symlink_to(sys.argv[2])
print(*(hex(vendor) for vendor in pciscan.scan(HostRoot(top)).column("vendor")))
"""


def test_sysfs_in_a_part_of_a_tree_is_not_trusted(tmp_path: Path) -> None:
    """Where only the directory of functions is sysfs, its links lead into the tree, and those there not out of it."""
    if not os.path.isdir("/sys/bus/pci/devices") or not os.listdir("/sys/bus/pci/devices"):
        pytest.skip("this machine has no PCI function")
    if subprocess.run([*ALONE, "mount", "--bind", "/sys", "/sys"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no mount namespace of its own: not permitted")
    secret = tmp_path / "secret"
    secret.write_text("pci:v0000BEEFd00000001sv00000000sd00000000bc02sc00i00\n")
    line = [*ALONE, sys.executable, "-c", MOUNTED, str(tmp_path / "tree"), str(secret)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "0xbeef" not in done.stdout


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_scanner_opens_files_only(tmp_path: Path, bcm5719: FakeHost, tuning: Tuning, kind: str) -> None:
    """A FIFO as an identity file is an error, of the scanner and of the reference."""
    hostile.place(Path(bcm5719.root.path), f"{DEVICE}/modalias", kind, tmp_path, hostile.random.Random(0))
    with pytest.raises(SysfsError, match="not a regular file"):
        pciscan.scan_with(bcm5719.root, tuning)
    with pytest.raises(SysfsError, match="not a regular file"):
        pciscan_ref.scan(bcm5719.root)


def test_drivers_listing_stays_inside(tmp_path: Path) -> None:
    """A driver's directory that is a link to another host's makes no driver known."""
    fake, other = FakeHost.named("bcm5719", tmp_path / "host"), FakeHost.named("bcm5719", tmp_path / "other")
    link = Path(fake.root.pci_device(CARD)).resolve() / "driver"
    link.unlink()
    driver = Path(fake.root.pci_drivers, "tg3")
    hostile.remove(driver)
    driver.symlink_to(Path(other.root.pci_drivers, "tg3"))
    found = pciscan.scan_with(fake.root, Tuning(crowd=0, share=1))
    assert found[found.addresses.index(str(CARD))].driver is None


# Opening


def make_maze(top: Path) -> Path:
    """Make a root with links of all kinds, and a secret outside of it."""
    root = top / "root"
    (root / "a/b/c").mkdir(parents=True)
    (top / "secret").write_text(SECRET)
    (root / "a/file").write_text("inside")
    links = {
        "absolute": "/a/file", "up": "../../../../a/file", "loop": "loop", "dir": "/a/b", "chain": "dir/../file",
        "out": str(top / "secret"), "climb": "../secret", "deep": "a/b/c/../../../a/b/../file",
    }  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "a/b/up").symlink_to("../..")
    return root


PATHS = (
    "a/file", "absolute", "up", "loop", "dir", "chain", "out", "climb", "deep", "dir/c", "dir/up/a/file", "..", "../a",
    "a/../../../secret", "", ".", "a/file/x", "a/file/", "absent", "absent/..", "dir/", "a//b/./c", "/a/file",
    "x" * 300,
    "a/b/up/a/b/up/a/b/up/absolute", "../" * 50 + "secret", "loop/x", "x/" * 3000,
)  # fmt: skip


@pytest.mark.parametrize("flags", [0, os.O_NOFOLLOW, os.O_DIRECTORY])
@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_walk_is_as_the_kernel(tmp_path: Path, path: str, flags: int) -> None:
    """Without openat2 the same file is found, or the same error."""
    root = make_maze(tmp_path)
    host, fd = HostRoot(root), os.open(root, os.O_PATH)

    def kernels() -> object:
        try:
            with confined.opened(confined.open_path(host, f"{root}/{path}", flags)) as found:
                return os.readlink(f"/proc/self/fd/{found}")
        except OSError as err:
            return err.errno

    def ours() -> object:
        found = confined._c.lib.phd_walk_inside(fd, os.fsencode(path), os.O_PATH | flags)
        if found < 0:
            return -found
        with confined.opened(found):
            return os.readlink(f"/proc/self/fd/{found}")

    with confined.opened(fd):
        assert kernels() == ours()
        assert str(kernels()).startswith(str(root)) or isinstance(kernels(), int)


def forbid_openat2(answer: int) -> None:
    """Make the kernel answer openat2 with an errno, as sandboxes do (seccomp(2)); for the rest of the process."""
    arch = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[platform.machine()]
    program = b"".join(
        struct.pack("HBBI", *step)
        for step in (
            (0x20, 0, 0, 4), (0x15, 0, 2, arch), (0x20, 0, 0, 0), (0x15, 1, 0, 437), (0x06, 0, 0, 0x7FFF0000),
            (0x06, 0, 0, 0x00050000 | answer),
        )
    )  # fmt: skip
    buffer = ctypes.create_string_buffer(program)
    filters = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert 0 == libc.prctl(38, 1, 0, 0, 0)
    assert 0 == libc.prctl(22, 2, filters, 0, 0), os.strerror(ctypes.get_errno())


WITHOUT = """
import sys
sys.path[:0] = {paths!r}
import test_hostile_root
test_hostile_root.forbid_openat2({answer})
from pyhostdev.tools import main
sys.exit(main.main({words!r}))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the filter knows two architectures")
@pytest.mark.parametrize("answer", [errno.ENOSYS, errno.EPERM])
def test_kernel_without_openat2(bcm5719: FakeHost, secret: Path, answer: int) -> None:
    """Old kernels and sandboxes: the same answers, and no link leads out."""
    top = Path(bcm5719.root.path)
    paths = [str(Path(__file__).parent), str(Path(hostile.__file__).parent)]

    def run(*words: str) -> str:
        code = WITHOUT.format(paths=paths, answer=int(answer), words=[*words, "--root", str(top)])
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert ask(top, "list-json").text == run("list", "--json")
    assert ask(top, "show-json").text == run("show", "0001:09:00.0", "--json")
    hostile.place(top, f"{DEVICE}/driver_override", "secret_file", secret, hostile.random.Random(0))
    assert SECRET not in run("show", "0001:09:00.0", "--json")


def test_devices_and_fifos_are_looked_at_only(tmp_path: Path) -> None:
    """FIFOs and devices are not opened: a writer of the FIFO keeps waiting."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for root in (HostRoot(tmp_path), HostRoot("/")):
        with pytest.raises(SysfsError, match="not a regular file"):
            virfile.read_attribute(root, str(fifo))
        with pytest.raises(OSError, match="No such device") as error:  # there was no reader, not for a moment
            os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        assert errno.ENXIO == error.value.errno
    stop, readers = threading.Event(), []

    def look_for_readers() -> None:
        while not stop.is_set():
            try:
                os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
                readers.append(1)
            except OSError:
                pass

    thread = threading.Thread(target=look_for_readers)
    thread.start()
    try:
        for _ in range(300):
            with pytest.raises(SysfsError):
                virfile.read_attribute(HostRoot(tmp_path), str(fifo))
    finally:
        stop.set()
        thread.join()
    assert [] == readers


def test_path_outside_is_an_internal_error(tmp_path: Path) -> None:
    """A reader is never asked for what is not below its root; a name that only begins alike is not."""
    root = HostRoot(tmp_path / "root")
    for path in ("/etc/passwd", f"{root.path}-more/file"):
        with pytest.raises(InternalError):
            virfile.read_attribute(root, path)


WITHOUT_PROC = """
import subprocess, sys
from pyhostdev import Host, PCIDeviceAddress, SysfsError
from pyhostdev.util.pciscan import read_config
subprocess.run(["umount", "-l", "/proc"], check=True)
host, card = Host(sys.argv[1]), PCIDeviceAddress.parse(sys.argv[2])
for read in (lambda: host.pci_device(card), lambda: read_config(host.root, card, 0, 64)):
    try:
        print(read())
    except SysfsError as err:
        print(err)
"""


def test_nothing_is_absent_where_proc_is_missing(bcm5719: FakeHost) -> None:
    """A file of a root is opened through /proc; without it, reading fails, and the answer is not that it is absent."""
    if subprocess.run([*ALONE, "umount", "-l", "/proc"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no mount namespace of its own: not permitted")
    line = [*ALONE, sys.executable, "-c", WITHOUT_PROC, bcm5719.root.path, str(CARD)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert [True, True] == ["Function not implemented" in said for said in done.stdout.splitlines()]


def test_reset_methods_with_a_byte_that_ends_a_name(bcm5719: FakeHost) -> None:
    """The kernel's text has no NUL; in the pool of names it would be several names."""
    Path(bcm5719.root.pci_device(CARD), "reset_method").write_bytes(b"flr\0bus\n")
    reader = pciscan.FunctionReader(bcm5719.root)
    with pytest.raises(SysfsError) as caught:
        reader.read_more([CARD])
    reader.close()
    assert errno.EBADMSG == caught.value.errno


# Bounds


def test_attribute_of_more_than_a_page(tmp_path: Path) -> None:
    """An attribute has 64 KiB at most: one more byte is an error with that reason."""
    path, root = tmp_path / "file", HostRoot(tmp_path)
    path.write_bytes(b"x" * virfile.ATTRIBUTE_MAX)
    assert virfile.ATTRIBUTE_MAX == len(virfile.read_attribute(root, str(path)) or "")
    path.write_bytes(b"x" * (virfile.ATTRIBUTE_MAX + 1))
    with pytest.raises(SysfsError, match="more than 65536 bytes") as error:
        virfile.read_attribute(root, str(path))
    assert errno.EFBIG == error.value.errno


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\n" * (virfile.FOREIGN.lines + 1), "131072 lines"),
        (b"x" * (virfile.LINE_MAX + 1), "65536 bytes"),
        ((b"y" * 60_000 + b"\n") * 300, "16777216 bytes"),
    ],
    ids=["lines", "line", "size"],
)
def test_table_has_bounds(tmp_path: Path, data: bytes, what: str) -> None:
    """Lines, the length of one, and bytes."""
    (tmp_path / "table").write_bytes(data)
    with pytest.raises(SysfsError, match=f"more than {what}") as error:
        for _ in virfile.read_lines(HostRoot(tmp_path), str(tmp_path / "table")):
            pass
    assert errno.EFBIG == error.value.errno


def test_tables_that_fit_are_read_whole(tmp_path: Path) -> None:
    """As many lines as there may be, the last one without an end."""
    (tmp_path / "table").write_bytes(b"a\n" * (virfile.FOREIGN.lines - 1) + b"b")
    lines = list(virfile.read_lines(HostRoot(tmp_path), str(tmp_path / "table")))
    assert (virfile.FOREIGN.lines, "a", "b") == (len(lines), lines[0], lines[-1])


def test_directory_has_a_bound(tmp_path: Path) -> None:
    """A directory without end is an error."""
    for number in range(12):
        (tmp_path / str(number)).mkdir()
    root = HostRoot(tmp_path)
    assert 12 == len(virfile.list_names(root, str(tmp_path), 12))
    with pytest.raises(SysfsError, match="more than 11 names"):
        virfile.list_names(root, str(tmp_path), 11)


@pytest.fixture
def endless(bcm5719: FakeHost) -> Iterator[Path]:
    """A tree in which a directory has more names than any has."""
    top = Path(bcm5719.root.path)
    crowd = top / "crowd"
    crowd.mkdir()
    here = os.open(crowd, os.O_PATH)
    for number in range(virfile.FOREIGN.names + 1):
        os.symlink("x", f"{number:x}", dir_fd=here)
    os.close(here)
    yield top
    for name in os.listdir(crowd):
        (crowd / name).unlink()


def test_endless_directories(endless: Path) -> None:
    """A huge number of entries in every listed directory: each verb ends in time."""
    for where in ("proc", "run/libvirt/qemu", "sys/class/graphics", "sys/fs/btrfs", "sys/bus/pci/drivers/tg3"):
        hostile.remove(endless / where)
        (endless / where).parent.mkdir(parents=True, exist_ok=True)
        (endless / where).symlink_to("/crowd")
        for verb in ("list", "show", "plan"):
            check(endless, verb, where)


def test_live_host_is_not_held_up() -> None:
    """The live host's tables, which are the kernel's, may be longer; its attributes are files as well."""
    root = HostRoot("/")
    assert virfile.LIVE == virfile.bounds_of(root)
    assert any(line.split()[1] == "/" for line in virfile.read_lines(root, root.mounts))
    assert re.fullmatch(r"[0-9a-f-]{36}", virfile.read_attribute(root, root.boot_id) or "")
    assert str(os.getpid()) in virfile.list_names(root, root.proc)
    begin = time.monotonic()
    with pytest.raises(SysfsError, match="not a regular file"):
        virfile.read_attribute(root, "/dev/zero")
    assert time.monotonic() - begin < 1
    assert stat.S_ISDIR((virfile.read_status(root, "/proc") or os.stat("/")).st_mode)


# Output


@pytest.mark.parametrize("name", NAMES)
def test_text_is_printable(name: str) -> None:
    """The printed form of any name cannot control a terminal; harmless characters are kept."""
    assert printable(name).isprintable()
    assert "Domäne 'x'" == printable("Domäne 'x'")


@pytest.mark.parametrize("word", ["plain", "a b", "it's", "\x1b[31m\\'\u202e", "two\nlines", "\x9b", "\udcff", ""])
def test_word_of_a_shell_survives(word: str) -> None:
    """A shell reads back what was quoted, and a terminal sees nothing of it."""
    assert shell_word(word).isprintable()
    if bash := next((path for path in ("/bin/bash", "/usr/bin/bash") if os.path.exists(path)), None):
        done = subprocess.run([bash, "-c", f"printf %s {shell_word(word)}"], capture_output=True, check=True)
        assert word == done.stdout.decode("utf-8", "surrogateescape")


def test_document_survives() -> None:
    """XML with control characters as references has the same content."""
    from lxml import etree

    text = "<domain><name>a\x85b\u202ec\u200d\n\t</name></domain>\n"
    shown = printable_xml(text)
    assert "<domain><name>a&#133;b&#8238;c\u200d\n\t</name></domain>\n" == shown
    assert etree.fromstring(text).findtext("name") == etree.fromstring(shown).findtext("name")
