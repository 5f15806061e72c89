# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Ask both trees all questions: one process for each tree, release and part of a folder, one at a time per processor.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from corpus import Case, Folder
from lines import Answer, answer_of, is_native
from trees import Tree, TreeError

PART = 120  # cases that one process answers: a start of it costs as much as several cases
TIMEOUT_S = 3600


class Question(NamedTuple):
    """What an answer is about; the same for both trees."""

    release: str
    case: Case
    column: str


Answers = dict[Question, "Answer | None"]


class Job(NamedTuple):
    """What one process is asked."""

    tree: Tree
    release: str
    folder: Folder
    cases: tuple[Case, ...]


def ask_all(trees: Sequence[Tree], folders: Sequence[Folder], tell: Callable[[str], None]) -> list[Answers]:
    """
    Return the answers of each tree.

    Args:
        tell: called with a line of progress.

    Raises:
        TreeError: a server ended before it had answered.
        CorpusError: a host cannot be made.
    """
    answers: dict[Tree, Answers] = {tree: {} for tree in trees}
    jobs = list(_jobs(trees, folders))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(_ask, job): job for job in jobs}
        try:
            for count, future in enumerate(as_completed(running), 1):
                answers[running[future].tree].update(future.result())
                tell(f"{count} of {len(jobs)} parts are answered")
        finally:
            pool.shutdown(cancel_futures=True)
    return [answers[tree] for tree in trees]


def _jobs(trees: Sequence[Tree], folders: Sequence[Folder]) -> Iterator[Job]:
    for folder in folders:
        for release in folder.releases:
            for begin in range(0, len(folder.cases), PART):
                for tree in trees:
                    yield Job(tree, release, folder, folder.cases[begin : begin + PART])


def _ask(job: Job) -> Answers:
    """Start a server on a host of its own, ask it, and read its answers."""
    asked = [(case, kind, extra) for case in job.cases for kind, extra in case.questions()]
    text = "".join(f"{kind}\t{case.file('.xml').resolve()}\t{extra}\n" for case, kind, extra in asked)
    with tempfile.TemporaryDirectory(prefix="prototype") as host:
        job.folder.build_host(Path(host))
        done = subprocess.run(
            job.tree.server(job.release, Path(host)),
            input=text,
            capture_output=True,
            text=True,
            cwd=host,
            env=job.tree.environment(),
            timeout=TIMEOUT_S,
        )
    replies = done.stdout.splitlines()
    if done.returncode or len(replies) != len(asked):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TreeError(f"The server of {job.tree.name} ends after {len(replies)} of {len(asked)} answers: {last}")
    return {
        Question(job.release, case, kind): answer_of(kind, json.loads(reply), host, is_native=is_native(case))
        for (case, kind, _), reply in zip(asked, replies, strict=True)
    }
