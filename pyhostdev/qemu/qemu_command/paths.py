# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The paths of the files that belong to one run of a domain.
"""

from __future__ import annotations

from pyhostdev.util.typed import NamedTuple

_SHORT_NAME_MAX = 20


class DomainPaths(NamedTuple):
    """
    The paths of the files of one run of a domain.

    Mirrors: virDomainDefGetShortName (src/conf/domain_conf.c), qemuDomainSetPrivatePaths
    """

    state_dir: str
    short_name: str

    @classmethod
    def of(cls, state_dir: str, name: str, domain_id: int) -> DomainPaths:
        """Return the paths of a domain; long names are truncated, the id keeps them unique."""
        return cls(state_dir, f"{domain_id}-{name[:_SHORT_NAME_MAX]}")

    @property
    def lib_dir(self) -> str:
        """The directory of the files of this run."""
        return f"{self.state_dir}/lib/qemu/domain-{self.short_name}"

    @property
    def master_key(self) -> str:
        """The file with the key that encrypts the secrets on the command line; created before QEMU starts."""
        return f"{self.lib_dir}/master-key.aes"

    def memory(self, alias: str) -> str:
        """
        Return the path of the file that backs shared memory.

        Mirrors: qemuGetMemoryBackingPath (src/qemu/qemu_conf.c)
        """
        return f"{self.state_dir}/lib/qemu/ram/{self.short_name}/{alias}"

    def graphics_socket(self, kind: str) -> str:
        """Return the path of the socket of a display server, for one whose definition names none."""
        return f"{self.lib_dir}/{kind}.sock"

    @property
    def pr_helper_socket(self) -> str:
        """The path of the socket of the program that makes persistent reservations of SCSI units."""
        return f"{self.lib_dir}/pr-helper0.sock"

    @property
    def dbus_socket(self) -> str:
        """The path of the socket of the message bus of this run."""
        return f"{self.state_dir}/run/qemu/dbus/{self.short_name}-dbus.sock"

    @property
    def tpm_socket(self) -> str:
        """The path of the socket at which the TPM emulator of this run listens."""
        return f"{self.state_dir}/swtpm/{self.short_name}-swtpm.sock"

    def passt_socket(self, alias: str) -> str:
        """
        Return the path of the socket at which the passt of an interface listens.

        Mirrors: qemuPasstCreateSocketPath (src/qemu/qemu_passt.c)
        """
        return f"{self.state_dir}/run/qemu/passt/{self.short_name}-{alias}.socket"

    def fs_socket(self, alias: str) -> str:
        """Return the path of the socket at which the daemon of a file system listens."""
        return f"{self.lib_dir}/{alias}-fs.sock"

    @property
    def channels(self) -> str:
        """The directory of the sockets of channels without a path in the definition."""
        return f"{self.state_dir}/lib/qemu/channel/target/domain-{self.short_name}"
