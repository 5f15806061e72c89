# SPDX-License-Identifier: LGPL-2.1-or-later
"""Operations that are refused once: every write to the kernel and every operation on the state, with an errno."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from crash import process, recovered
from scenarios import Case, Stage

from pyhostdev.errors import HostdevError
from pyhostdev.testing.faults import Fail
from pyhostdev.util.transaction import log

ERRNOS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENODEV, errno.EBUSY, errno.EINVAL,
    errno.EAGAIN, errno.EIO, errno.ENOSPC, errno.EMFILE, errno.ENOMEM, errno.EINTR,
)  # fmt: skip


def refusals(stage: Stage) -> Iterator[Case]:
    """Yield each operation of prepare and of release that can be refused."""
    for phase, whole in (("prepare", stage.preparing), ("release", stage.releasing)):
        for number in range(1, whole.kernel.writes + 1):
            yield Case(phase, {"write": number})
        for number, name in enumerate(whole.state.names_of_steps, start=1):
            if name != "done":  # nothing is done there that could be refused
                yield Case(phase, {"state": number})


def check_refusal(
    stage: Stage, case: Case, errnum: int, refusing: AbstractContextManager[object] | None = None
) -> None:
    """
    Refuse one operation; check that the error is correct and that recover finishes the rest; then rewind.

    Without an error, the result is as without the refusal, or the log has the omission. A HostdevError before any
    change, or rolled back, leaves all as before. One that was not rolled back leaves a record. No other kind of
    exception occurs.

    Args:
        refusing: what refuses in the place of the kernel and the state directory while the action runs.
    """
    action = stage.action(case.phase)
    start = [stage.prepared] if case.phase == "release" else stage.before
    end = stage.after if case.phase == "release" else stage.prepared
    victim = process(stage.fake, dies_at_state=int(str(case.fault.get("state", 0))), errnum=errnum)
    if "write" in case.fault:
        victim.kernel.inject(int(str(case.fault["write"])), Fail(errnum))
    records = process(stage.fake).manager.journal.read()[0]
    told = _Told(logging.ERROR)
    try:
        with told.collected(), refusing or nullcontext():
            action(victim.manager)
    except HostdevError as err:
        if err.rolled_back is False:
            assert victim.manager.journal.read()[0], (case, errnum)
        else:
            assert stage.look() in start, (case, errnum, str(err))
            assert records == victim.manager.journal.read()[0], (case, errnum, str(err))
    else:
        assert end == stage.look(), (case, errnum)
        whole = stage.releasing if case.phase == "release" else stage.preparing
        assert told.messages or whole.kernel.writes == victim.kernel.writes, (case, errnum)
    recovered(stage.fake)
    _check_end(stage, case, errnum)


class _Told(logging.Handler):
    """The messages in the log of changes."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Listen for as long as the block runs."""
        log().addHandler(self)
        try:
            yield
        finally:
            log().removeHandler(self)


def _check_end(stage: Stage, case: Case, errnum: int) -> None:
    if stage.look() == stage.prepared:
        stage.scenario.release(process(stage.fake).manager)
        assert stage.after == stage.look(), (case, errnum)
    else:
        assert stage.look() in (*stage.before, stage.after), (case, errnum)
    stage.rewind()
