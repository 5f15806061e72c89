# SPDX-License-Identifier: LGPL-2.1-or-later
"""What start creates for a guest besides QEMU: firmware variables, a TPM emulator, virtiofsd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import pytest

from pyhostdev import DomainDef, Host
from pyhostdev.conf.libvirt_release import RELEASES
from pyhostdev.conf.os_conf import OSDef
from pyhostdev.errors import ConfigUnsupportedError, OperationError
from pyhostdev.hypervisor import program_journal
from pyhostdev.hypervisor.program_journal import ProgramJournal
from pyhostdev.qemu import define
from pyhostdev.qemu.qemu_capabilities import load
from pyhostdev.qemu.qemu_command.paths import DomainPaths
from pyhostdev.qemu.qemu_process import daemons as daemons_module
from pyhostdev.qemu.qemu_process.access import needed_files
from pyhostdev.qemu.qemu_process.daemons import Daemons, DaemonSpec, daemon_specs
from pyhostdev.qemu.qemu_process.places import make_private_directory
from pyhostdev.qemu.qemu_process.variables import make_variables
from pyhostdev.util.ownership import Ownership

R12_8 = RELEASES[-1]
DOMAIN = """
<domain type='qemu'><name>d</name><uuid>6cb9df67-db89-5919-bb3e-efaeef4a35b1</uuid><memory unit='MiB'>64</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{}</devices></domain>
"""
PCI_TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'>{}</backend></tpm>"
FS = "<filesystem type='mount'><driver type='virtiofs'/>{}<source dir='{}'/><target dir='t'/></filesystem>"


def specs(devices: str, state: str = "/run/x") -> list[DaemonSpec]:
    dom = define(DomainDef.parse(DOMAIN.format(devices)), load("x86_64", R12_8.qemu), release=R12_8)
    return list(daemon_specs(dom, DomainPaths.of(state, "d", 1)))


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template"
    path.write_bytes(b"variables")
    return path


def test_variables_are_made_from_their_template(template: Path, tmp_path: Path) -> None:
    """The store is complete and private to its owner, and no partial copy remains."""
    store = tmp_path / "new" / "d_VARS.fd"
    assert True is make_variables(OSDef(nvram=str(store), nvram_template=str(template)), None)
    assert (b"variables", 0o600) == (store.read_bytes(), stat.S_IMODE(store.stat().st_mode))
    assert ["d_VARS.fd"] == os.listdir(store.parent)


def test_variables_are_never_overwritten(template: Path, tmp_path: Path) -> None:
    """A guest's saved variables are kept, even if the name is a dangling link."""
    store, link = tmp_path / "store", tmp_path / "link"
    store.write_bytes(b"saved")
    link.symlink_to(tmp_path / "nowhere")
    for path in (store, link):
        assert False is make_variables(OSDef(nvram=str(path), nvram_template=str(template)), None)
    assert (b"saved", True) == (store.read_bytes(), link.is_symlink())


def test_variables_that_cannot_be_made(template: Path, tmp_path: Path) -> None:
    """The error names a missing template or one of another format; no file remains."""
    store = tmp_path / "store"
    with pytest.raises(OperationError, match="No such file"):
        make_variables(OSDef(nvram=str(store), nvram_template=str(tmp_path / "absent")), None)
    with pytest.raises(OperationError, match="format qcow2"):
        make_variables(OSDef(nvram=str(store), nvram_format="qcow2", nvram_template=str(template)), None)
    assert ["template"] == os.listdir(tmp_path)


OTHER = Ownership(65534, 65534, "other")


def test_root_makes_variables_only_where_their_owner_could(template: Path, tmp_path: Path) -> None:
    """A definition cannot have root create a file of QEMU's user anywhere, nor copy what that user may not read."""
    (place := tmp_path / "etc").mkdir(mode=0o755)
    os_ = OSDef(nvram=str(place / "store"), nvram_template=str(template))
    template.chmod(0o644)
    with pytest.raises(OperationError, match="may not create anything"):
        make_variables(os_, OTHER)
    place.chmod(0o777)
    template.chmod(0o600)
    with pytest.raises(OperationError, match="may read"):
        make_variables(os_, OTHER)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o666)
    fifo.chmod(0o666)
    with pytest.raises(OperationError, match="regular file"):
        make_variables(OSDef(nvram=str(place / "store"), nvram_template=str(fifo)), OTHER)
    assert [] == os.listdir(place)


def test_root_makes_a_directory_only_where_its_owner_could(tmp_path: Path) -> None:
    """The directory of a TPM's state that the XML names is not made for a user without the right to make it."""
    tmp_path.chmod(0o755)
    with pytest.raises(OperationError, match="may not create anything"):
        make_private_directory(str(tmp_path / "state"), "/elsewhere", OTHER)
    assert [] == os.listdir(tmp_path)
    make_private_directory(str(tmp_path / "state"), "/elsewhere", None)
    assert 0o700 == stat.S_IMODE((tmp_path / "state").stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_what_is_made_belongs_to_the_guests_user(template: Path, tmp_path: Path) -> None:
    """The created files belong to the guest's user."""
    tmp_path.chmod(0o777)
    template.chmod(0o644)
    make_private_directory(str(tmp_path / "state"), "/elsewhere", OTHER)
    assert True is make_variables(OSDef(nvram=str(tmp_path / "state/v"), nvram_template=str(template)), OTHER)
    assert {65534} == {path.stat().st_uid for path in (tmp_path / "state", tmp_path / "state/v")}


def test_the_emulator_of_a_tpm_gets_its_state() -> None:
    """The state of each TPM version has its own directory below the domain's UUID; the XML can name another."""
    (spec,) = specs(PCI_TPM.format(""))
    state = "/var/lib/libvirt/swtpm/6cb9df67-db89-5919-bb3e-efaeef4a35b1/tpm2"
    assert [spec.program, "socket", "--ctrl", "type=unixio,fd=7"] == spec.argv(7)[:4]
    assert (state, "/run/x/swtpm/1-d-swtpm.sock") == (spec.state, spec.socket)
    assert ["--tpmstate", f"dir={state},mode=0600", "--terminate", "--tpm2"] == spec.arguments
    (spec,) = specs(PCI_TPM.format("<source type='dir' path='/srv/tpm'/>"))
    assert "/srv/tpm" == spec.state
    with pytest.raises(ConfigUnsupportedError, match="comma"):
        specs(PCI_TPM.format("<source type='dir' path='/srv,mode=0666'/>"))


def test_virtiofsd_gets_the_directory_it_serves() -> None:
    """The attributes of <binary> are its options; a named socket needs no program."""
    binary = (
        "<binary path='/opt/virtiofsd' xattr='on'><cache mode='always'/><sandbox mode='chroot'/>"
        "<lock posix='off' flock='on'/><thread_pool size='4'/></binary>"
    )
    (spec,) = specs(FS.format(binary, "/srv"))
    options = "source=/srv,cache=always,sandbox=chroot,xattr,no_posix_lock,flock"
    assert ["/opt/virtiofsd", "--fd=5", "-o", options, "--thread-pool-size=4"] == spec.argv(5)
    assert "/run/x/lib/qemu/domain-1-d/fs0-fs.sock" == spec.socket
    assert [] == specs(FS.format("", "/srv").replace("dir='/srv'", "socket='/s'"))
    with pytest.raises(ConfigUnsupportedError, match="comma"):
        specs(FS.format("", "/srv,source=/"))
    with pytest.raises(ConfigUnsupportedError, match="backslash"):
        specs(FS.format(binary, "/srv\\"))


def test_programs_and_nodes_are_looked_for_before_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan reports a missing program, and checks the nodes that QEMU opens."""
    monkeypatch.setattr(daemons_module, "SYSTEM_PATH", "/nowhere")
    evdev = "<input type='evdev'><source dev='/dev/input/event9'/></input>"
    dom = DomainDef.parse(DOMAIN.format(PCI_TPM.format("") + FS.format("<binary path='/v'/>", "/srv") + evdev))
    paths = {file.path for file in needed_files(dom, Host("/").root)}
    assert {"/usr/bin/swtpm", "/v", "/srv", "/dev/input/event9"} <= paths


PASST = """<interface type='{}'><backend type='passt' logFile='/l' hostname='h'/><mac address='52:54:00:00:00:01'/>
  <source {}/><ip address='10.0.9.2' family='ipv4' prefix='24'/><ip address='fd00::2' family='ipv6'/>
  <portForward proto='tcp' address='127.0.0.1' dev='eth0'><range start='2222' to='22'/>
  <range start='80' end='89' to='8080'/><range start='85' exclude='yes'/></portForward>
  <portForward proto='udp'/><model type='virtio'/></interface>"""


def test_passt_is_told_the_guests_network() -> None:
    """Its options are those of passt(1); QEMU finds its socket through a link at libvirt's path."""
    user, vhost = (specs(PASST.format(*words)) for words in (("user", "dev='e'"), ("vhostuser", "type='unix' dev='e'")))
    (spec,) = user
    assert "/run/x/run/qemu/passt/1-d-net0.socket.d/passt.socket" == spec.socket
    assert ["--foreground", "--one-off", "--socket", spec.socket] == spec.argv(-1)[1:5]
    assert spec.argv(-1)[5:] == [
        *("--interface", "e", "--log-file", "/l", "--hostname", "h"),
        *("--address", "10.0.9.2", "--netmask", "24", "--address", "fd00::2"),
        *("--tcp-ports", "127.0.0.1%eth0/2222:22,80-89:8080-8089,~85", "--udp-ports", "all"),
    ]
    assert ["--vhost-user"] == [word for word in vhost[0].arguments if word not in spec.arguments]


LISTENER = """
import os, socket, sys, time
if sys.argv[1] == "fails": sys.exit(1)
os.umask(0o077)
place = socket.socket(socket.AF_UNIX)
place.bind(sys.argv[2])
time.sleep(0.2)
place.listen()
time.sleep(60)
"""


def listener(tmp_path: Path, word: str = "works") -> DaemonSpec:
    """A program that makes its socket itself, and listens a moment later."""
    place = f"{tmp_path}/run/net0.socket.d/passt.socket"
    return DaemonSpec("the listener", sys.executable, "", ["-c", LISTENER, word, place], place, makes_socket=True)


def test_a_program_with_its_own_socket_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU can connect through the link as soon as the program has started; nothing is left at the end."""
    monkeypatch.setattr(daemons_module, "END_TIMEOUT_S", 0.2)
    spec = listener(tmp_path)
    with daemons(tmp_path, spec), socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/run/net0.socket")
        assert 0o700 == stat.S_IMODE(os.stat(os.path.dirname(spec.socket)).st_mode)
    assert [] == list((tmp_path / "run").iterdir())


def test_a_program_that_makes_no_socket_is_an_error(tmp_path: Path) -> None:
    """The start fails before QEMU, and leaves nothing."""
    with pytest.raises(OperationError, match="it has ended"), daemons(tmp_path, listener(tmp_path, "fails")):
        pass
    assert [] == list((tmp_path / "run").iterdir())


def test_recover_removes_the_directory_of_a_programs_socket(tmp_path: Path) -> None:
    """Its starter was killed before QEMU connected."""
    pid = killed_beside(tmp_path, listener(tmp_path))
    journal = ProgramJournal(Host("/", state_dir=str(tmp_path / "records")))
    assert ["the program is ended"] == [found.message for found in journal.recover()]
    assert (False, []) == (is_alive(pid), list((tmp_path / "run").iterdir()))


def sleeper(tmp_path: Path, script: str) -> DaemonSpec:
    """A shell in place of the program; it inherits its socket."""
    place, state = str(tmp_path / "run" / "s.sock"), str(tmp_path / "state")
    return DaemonSpec("the sleeper", "/bin/sh", "-c", [script], place, state)


def daemons(tmp_path: Path, *specs: DaemonSpec) -> Daemons:
    """The programs of a domain named vm, recorded below the test's directory."""
    return Daemons(specs, None, ProgramJournal(Host("/", state_dir=str(tmp_path / "records"))), "vm")


def test_a_program_ends_with_its_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does not end is killed; its socket is removed, its state kept."""
    monkeypatch.setattr(daemons_module, "END_TIMEOUT_S", 0.2)
    spec = sleeper(tmp_path, f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done")
    with daemons(tmp_path, spec):
        assert stat.S_ISSOCK(os.stat(spec.socket).st_mode)
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            pass
        pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert [] == os.listdir(tmp_path / "records/programs")  # no lock of a name that does not come again
    assert (False, True) == (os.path.exists(spec.socket), os.path.isdir(tmp_path / "state"))


def test_a_program_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    """If a program cannot start, the earlier ones are ended and the sockets removed."""
    first = sleeper(tmp_path, "exit 0")
    second = first._replace(program="/nowhere/program", socket=str(tmp_path / "run" / "t.sock"))
    with pytest.raises(OperationError), daemons(tmp_path, first, second):
        pass
    assert False is (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("echo one; echo two >&2; exit 3", "the sleeper ended with exit status 3: 'one; two'"),
        ("kill -9 $$", "the sleeper was ended by SIGKILL"),
        ("exit 0", None),
    ],
)
def test_a_program_that_fails_is_quoted(tmp_path: Path, script: str, failure: str | None) -> None:
    """QEMU only says that it lost its connection; the program has said why."""
    with daemons(tmp_path, sleeper(tmp_path, script)) as running:
        (program,) = running._running
        os.waitid(os.P_PIDFD, program.pidfd, os.WEXITED | os.WNOWAIT)
        assert [failure] * (failure is not None) == running.failures()


def test_a_program_that_runs_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may print more than the pipe holds: the rest is lost, and it goes on."""
    monkeypatch.setattr(daemons_module, "END_TIMEOUT_S", 0.2)
    script = f"head -c 200000 /dev/zero; touch {tmp_path}/printed; while :; do sleep 0.05; done"
    with daemons(tmp_path, sleeper(tmp_path, script)) as running:
        while not (tmp_path / "printed").exists():
            time.sleep(0.01)
        assert [] == running.failures()


def killed_beside(tmp_path: Path, spec: DaemonSpec) -> int:
    """Start a program in a process that dies by SIGKILL before any QEMU connected, and return the program's number."""
    pid = os.fork()
    if pid == 0:
        daemons(tmp_path, spec).__enter__()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (record,) = (tmp_path / "records/programs").glob("*.program")
    return int(json.loads(record.read_text())["pid"])


def is_alive(pid: int) -> bool:
    """A process that was not reaped yet has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("script", ["while :; do sleep 0.05; done", "trap '' TERM; while :; do sleep 0.05; done"])
def test_recover_ends_a_program_whose_starter_was_killed(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program without a QEMU would wait at its socket for ever."""
    monkeypatch.setattr(program_journal, "END_TIMEOUT_S", 0.3)
    spec = sleeper(tmp_path, script)
    pid = killed_beside(tmp_path, spec)
    assert True is is_alive(pid)
    journal = ProgramJournal(Host("/", state_dir=str(tmp_path / "records")))
    (found,) = journal.recover()
    assert ("vm", "restored", "the program is ended") == (found.owner, found.outcome, found.message)
    assert (False, False) == (is_alive(pid), os.path.exists(spec.socket))
    assert ([], []) == (list(journal.recover()), os.listdir(journal.state.path))


def test_recover_finds_a_program_whose_number_was_not_recorded(tmp_path: Path) -> None:
    """Killed between fork and record: the program is found by its command line; no other process is touched."""
    spec = sleeper(tmp_path, "while :; do sleep 0.05; done")
    pid = killed_beside(tmp_path, spec)
    (record,) = (tmp_path / "records/programs").glob("*.program")
    facts = {**json.loads(record.read_text()), "pid": None, "started": None}
    record.write_text(json.dumps({**facts, "argv": [*facts["argv"], "other"]}))
    journal = ProgramJournal(Host("/", state_dir=str(tmp_path / "records")))
    assert ["the program has ended"] == [found.message for found in journal.recover()]
    assert True is is_alive(pid)
    record.write_text(json.dumps(facts))
    assert ["the program is ended"] == [found.message for found in journal.recover()]
    assert False is is_alive(pid)


def test_recover_leaves_the_programs_of_a_running_guest_and_other_processes(tmp_path: Path) -> None:
    """pyhostdev and QEMU hold the record's lock; a reused process number is not killed."""
    spec = sleeper(tmp_path, "while :; do sleep 0.05; done")
    journal = ProgramJournal(Host("/", state_dir=str(tmp_path / "records")))
    with daemons(tmp_path, spec) as running:
        assert [("vm", "kept")] == [(found.owner, found.outcome) for found in journal.recover()]
        assert 1 == len(running.lock_fds)
        (record,) = (tmp_path / "records/programs").glob("*.program")
        facts = json.loads(record.read_text())
    assert [] == list(journal.recover())
    name, lock = journal.start("vm", facts["argv"], facts["socket"])
    journal.note(name, "vm", argv=facts["argv"], socket=facts["socket"], pid=os.getpid(), started=1)
    os.close(lock)
    assert ["the program has ended"] == [found.message for found in journal.recover()]


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")
def test_swtpm_serves_and_ends_with_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """swtpm answers at its inherited socket, and ends when QEMU closes the data channel."""
    ours, theirs = socket.socketpair()
    signals: list[object] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *words: signals.append(words))
    (spec,) = specs(PCI_TPM.format(f"<source type='dir' path='{tmp_path}/state'/>"), str(tmp_path))
    with daemons(tmp_path, spec), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(spec.socket)
        socket.send_fds(client, [(16).to_bytes(4, "big")], [theirs.fileno()])  # CMD_SET_DATAFD of its tpm_ioctl.h
        assert bytes(4) == client.recv(4)
        theirs.close()
        ours.close()
    assert [] == signals
