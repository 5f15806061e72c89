# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev plan`` with several hosts: which of them can run the guest, and what prevents it on the others."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import ConfigError, DeviceMissingError, HostdevError, InvalidAddressError
from pyhostdev.hypervisor.host import Host
from pyhostdev.hypervisor.hostdev_plan import Plan
from pyhostdev.tools import arguments, devices, output, streams
from pyhostdev.tools.main import complain
from pyhostdev.tools.planning import Found, found_sentences, planned, to_json
from pyhostdev.tools.releases import release_of
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.snapshotfile import unpack
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities


class Answer(NamedTuple):
    """The result for one host."""

    root: str
    can: bool
    obstacles: tuple[str, ...]
    value: dict[str, Any]
    lacking: int  # files that the snapshot's user could not read
    found: tuple[str, ...]  # where the pinned devices are


class _Worker:
    """
    Plans one domain on several hosts in turn; caches what does not depend on the host.

    Without a definition, each host is asked for the devices that the command line names.
    """

    def __init__(self, args: argparse.Namespace, definition: DomainDef | None) -> None:
        self.args = args
        self.definition = definition
        self.stored: dict[LibvirtRelease, QEMUCapabilities] = {}

    def answer(self, root: str) -> Answer:
        """Plan on a host: a directory, or a snapshot that is unpacked temporarily."""
        try:
            if not os.path.isfile(root):
                return self._answer(root, self._host_in(root), 0)
            with tempfile.TemporaryDirectory(prefix="pyhostdev-snapshot-") as directory:
                unpacked = HostRoot(directory)
                lacking = len(unpack(root, unpacked).unreadable)
                return self._answer(root, arguments.snapshot_host(unpacked), lacking)
        except HostdevError as err:
            return self._refused(root, Finding("host-unreadable", ERROR, None, f"The host cannot be read: {err}"))

    def _refused(self, root: str, finding: Finding, lacking: int = 0) -> Answer:
        """Answer without a plan."""
        requests: dict[str, Any] = {"requests": (), "steps": (), "fates": tuple}
        owner = str(self.args.owner if self.definition is None else self.definition.name)
        return self._answer_of(
            root, Plan(owner=owner, policy=self.args.policy, findings=[finding], **requests), None, lacking
        )

    def _host_in(self, directory: str) -> Host:
        if not os.path.isdir(directory):
            raise ConfigError(f"'{directory}' is not a directory")
        return Host(directory)

    def _answer(self, name: str, host: Host, lacking: int) -> Answer:
        definition = self.definition
        if definition is None:
            return self._answer_named(name, host, lacking)
        made, origin = planned(self.args, definition, host, lambda: self._capabilities(definition, host))
        found = host.find_pinned(definition) if self.args.find else None
        return self._answer_of(name, made, origin, lacking, found)

    def _answer_named(self, name: str, host: Host, lacking: int) -> Answer:
        """Plan for the functions that the selectors name on this host; the guest is unknown."""
        try:
            definition = devices.named_domain(self.args, host)
        except (DeviceMissingError, InvalidAddressError) as err:
            return self._refused(name, Finding(str(err.reason), ERROR, None, err.message), lacking)
        release = release_of(self.args, host)
        made = host.plan(definition, self.args.policy, accept=self.args.accept, release=release)
        return self._answer_of(name, made, None, lacking)

    def _answer_of(self, name: str, made: Plan, origin: str | None, lacking: int, found: Found | None = None) -> Answer:
        can = bool(made.can_start) if self.args.for_start else made.ok
        obstacles = [*made.obstacles, *(made.start_obstacles if self.args.for_start else ())]
        value = to_json(made, origin, found, name)
        where = () if found is None else tuple(found_sentences(found))
        return Answer(name, can, tuple(finding.sentence for finding in obstacles), value, lacking, where)

    def _capabilities(self, definition: DomainDef, host: Host) -> QEMUCapabilities:
        from pyhostdev.qemu import qemu_driver

        release = release_of(self.args, host)
        if host.root.is_live:
            return qemu_driver.capabilities_of(definition, host, self.args.capabilities, release)
        if release not in self.stored:
            found = qemu_driver.capabilities_of(definition, host, self.args.capabilities, release)
            self.stored[release] = found
        return self.stored[release]


_workers: list[_Worker] = []  # of a process of the pool: one


def _begin(args: argparse.Namespace, definition: DomainDef | None) -> None:
    _workers[:] = [_Worker(args, definition)]


def _answer(root: str) -> Answer:
    return _workers[0].answer(root)


def run(args: argparse.Namespace, definition: DomainDef | None, roots: list[str]) -> int:
    """
    Plan on all hosts and print the results in order; return 0 if a host can run the guest.

    Args:
        definition: None for the devices that the command line names.
    """
    if args.state_dir is not None:
        raise ConfigError("--state-dir cannot be used with several hosts")
    answers = _ask_all(args, definition, roots)
    if args.json:
        _print_json(answers)
    else:
        titles = ("HOST", "CAN", "WHAT PREVENTS IT", *(["PINNED DEVICES"] if args.find else []))
        output.print_table(titles, _rows(answers))
    return 0 if any(answer.can for answer in answers) else 1


def _ask_all(args: argparse.Namespace, definition: DomainDef | None, roots: list[str]) -> list[Answer]:
    """Plan on all hosts, in as many processes as there are processors; show the progress."""
    answers = []
    processes = min(len(roots), os.cpu_count() or 1)
    forked = multiprocessing.get_context("fork")  # the default of Python 3.14 imports all again, and leaves a process
    with ProcessPoolExecutor(processes, forked, _begin, (args, definition)) as pool:
        for number, answer in enumerate(pool.map(_answer, roots, chunksize=1 + len(roots) // 64), 1):
            answers.append(answer)
            streams.show_progress(f"{number} of {len(roots)} hosts")
    streams.end_progress()
    return answers


def _print_json(answers: list[Answer]) -> None:
    """Print one line for each host, and on stderr which facts a snapshot lacks."""
    for answer in answers:
        if answer.lacking:
            complain(arguments.lacking_note(answer.root, answer.lacking))
    streams.write("".join(f"{json.dumps(answer.value)}\n" for answer in answers))


def _rows(answers: list[Answer]) -> Iterator[tuple[str, ...]]:
    for answer in answers:
        more = len(answer.obstacles) - 1
        words = [*answer.obstacles[:1], *([f"and {more} more"] if more > 0 else [])]
        if answer.lacking:
            words.append(f"(the snapshot lacks {arguments.files(answer.lacking)})")
        found = ["; ".join(answer.found)] if answer.found else []
        yield answer.root, "yes" if answer.can else "no", "; ".join(words) or "-", *found
