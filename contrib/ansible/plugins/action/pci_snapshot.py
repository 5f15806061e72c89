# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the module pci_snapshot on the host, then copies its file to the control node."""

from __future__ import annotations

import base64
import os
import tempfile

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """The part of pci_snapshot that runs on the control node."""

    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Take the snapshot, and fetch it if the task asks for it."""
        result = super().run(tmp, task_vars)
        fetch = self._task.args.get("fetch")
        module = "pyhostdev.pci.pci_snapshot"
        result.update(self._execute_module(module_name=module, module_args=self._task.args, task_vars=task_vars))
        if result.get("failed") or not fetch or self._task.check_mode:
            return result
        # slurp reads as the user that the task becomes; the connection itself cannot
        read = self._execute_module(
            module_name="ansible.legacy.slurp", module_args={"src": result["dest"]}, task_vars=task_vars
        )
        if read.get("failed"):
            return {**result, "failed": True, "msg": f"Cannot fetch '{result['dest']}': {read.get('msg')}"}
        target = self._target(fetch, result["dest"], task_vars)
        try:
            is_new = write(target, base64.b64decode(read["content"]))
        except OSError as err:
            return {**result, "failed": True, "msg": f"Cannot write '{target}': {err.strerror}"}
        return {**result, "fetched": target, "changed": bool(result.get("changed") or is_new)}

    @staticmethod
    def _target(fetch, dest, task_vars):
        """Return the file on the control node."""
        path = os.path.abspath(os.path.expanduser(fetch))
        if not fetch.endswith("/"):
            return path
        _name, dot, ending = os.path.basename(dest).partition(".")
        return os.path.join(path, f"{task_vars['inventory_hostname']}{dot}{ending}")


def write(path, data):
    """Write a file, complete or not at all; return False if it had these bytes already."""
    if os.path.exists(path):
        with open(path, "rb") as stream:
            if stream.read() == data:
                return False
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=directory)  # for this user alone: it has serial numbers
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise
    return True
