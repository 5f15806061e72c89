# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Copies of directory trees in memory: a host that many tests need is built once per process and then written out.
"""

from __future__ import annotations

import os
from typing import Union

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Image = dict[str, Union[str, bytes, "Image"]]  # name -> target of a link, contents of a file, or a directory


def read_image(path: str) -> Image:
    """Return a copy of a directory of directories, regular files and links."""
    image: Image = {}
    for entry in os.scandir(path):
        if entry.is_symlink():
            image[entry.name] = os.readlink(entry.path)
        elif entry.is_dir():
            image[entry.name] = read_image(entry.path)
        else:
            with open(entry.path, "rb") as stream:
                image[entry.name] = stream.read()
    return image


def write_image(path: str, image: Image) -> None:
    """
    Write a copy to an empty directory.

    Raises:
        FileExistsError: the directory has an entry.
    """
    fd = os.open(path, _OPEN)
    try:
        if os.listdir(fd):
            raise FileExistsError(path)
        _write(fd, image)
    finally:
        os.close(fd)


def _write(top: int, image: Image) -> None:
    for name, content in image.items():
        if isinstance(content, str):
            os.symlink(content, name, dir_fd=top)
        elif isinstance(content, bytes):
            _write_file(os.open(name, _CREATE, 0o644, dir_fd=top), content)
        else:
            os.mkdir(name, 0o755, dir_fd=top)
            fd = os.open(name, _OPEN, dir_fd=top)
            try:
                _write(fd, content)
            finally:
                os.close(fd)


def _write_file(fd: int, content: bytes) -> None:
    try:
        while content:
            content = content[os.write(fd, content) :]
    finally:
        os.close(fd)
