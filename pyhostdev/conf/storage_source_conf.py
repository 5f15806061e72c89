# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Sources of a disk's content: files, devices, servers, namespaces of NVMe controllers; and backing images.

Mirrors: virStorageSource (src/conf/storage_source_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.address_conf import check_pci_address
from pyhostdev.conf.device_conf import WORD_NUMBERS
from pyhostdev.conf.xml.xmlcodec import big_number, enum, hexadecimal, number, positive, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import OptionalElement, attribute, content, elements, ignored, opaque, optional_element
from pyhostdev.errors import (
    VIR_ERR_CONFIG_UNSUPPORTED,
    VIR_ERR_INVALID_ARG,
    VIR_ERR_XML_ERROR,
    ConfigUnsupportedError,
    XMLError,
)
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.viruuid import normal_uuid
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Collection

    from pyhostdev.util.virxml import Element

SOURCE_TYPES = ("file", "block", "dir", "network", "volume", "nvme", "vhostuser")
IMAGE_FORMATS = (
    *("none", "raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "ploop"),
    *("cow", "qcow", "qcow2", "qed", "vmdk"),
)
PROTOCOLS = (
    *("nbd", "rbd", "sheepdog", "gluster", "iscsi", "http", "https", "ftp", "ftps", "tftp"),
    *("ssh", "vxhs", "nfs"),
)
# protocol -> the port of a server without one
DEFAULT_PORTS = {
    "nbd": 10809,
    "iscsi": 3260,
    "http": 80,
    "https": 443,
    "ftp": 21,
    "ftps": 990,
    "gluster": 24007,
    "ssh": 22,
}


# type of source -> what only it has
_TYPE_WORDS = {
    "file": ("@file", "@fdgroup"),
    "block": ("@dev",),
    "dir": ("@dir",),
    "volume": ("@pool", "@volume", "@mode"),
    "network": ("@protocol", "@name", "@tls", "@tlsHostname", "host", "snapshot", "config", "initiator"),
    "nvme": ("@type", "@managed", "@namespace", "address"),
    "vhostuser": ("@type", "@path", "reconnect/@enabled", "reconnect/@timeout"),
    "vhostvdpa": ("@dev",),
}
# protocol of a network disk -> what only it has
_PROTOCOL_WORDS = {
    "http": ("@query", "cookies", "readahead", "timeout"),
    "https": ("@query", "cookies", "readahead", "timeout", "ssl"),
    "ftp": ("readahead", "timeout"),
    "ftps": ("readahead", "timeout", "ssl"),
    "ssh": ("knownHosts", "identity"),
    "nfs": ("identity",),
    "nbd": ("reconnect/@delay",),
}
_ALL_WORDS = frozenset(word for words in (*_TYPE_WORDS.values(), *_PROTOCOL_WORDS.values()) for word in words)


class StorageHost(ElementDef):
    """A server of a network disk."""

    tag = "host"

    transport = attribute(
        "transport", enum("tcp", "unix", "rdma"), code=VIR_ERR_CONFIG_UNSUPPORTED, renumbered=WORD_NUMBERS
    )
    name = attribute("name")
    port = attribute("port", number, code=VIR_ERR_INVALID_ARG)
    socket = attribute("socket")

    def parsed(self, element: Element) -> None:
        """
        Refuse a server without the attributes of its transport.

        Mirrors: virStorageNetworkHostParse (src/conf/domain_conf.c)
        """
        if self.transport == "unix" and self.socket is None:
            raise XMLError("A <host> with transport='unix' lacks 'socket'", line=self.line)
        if self.transport != "unix" and self.socket is not None:
            raise XMLError("Only a <host> with transport='unix' can have a socket", line=self.line)
        if self.transport != "unix" and self.name is None:
            raise XMLError("A <host> lacks 'name'", line=self.line)


class StorageSecret(ElementDef):
    """The name of a secret that libvirt's secret driver keeps."""

    tag = "secret"

    type = attribute("type")
    uuid = attribute("uuid")
    usage = attribute("usage")

    def parsed(self, element: Element) -> None:
        """
        Refuse a secret without exactly one name.

        Mirrors: virSecretLookupParseSecret (src/conf/secret_conf.c)
        """
        if (self.uuid is None) == (self.usage is None):
            raise XMLError("A <secret> needs either a uuid or a usage", line=self.line)
        if self.uuid is not None:
            try:
                normal_uuid(self.uuid)
            except ValueError:
                text = f"The uuid '{shown(self.uuid)}' of a <secret> is not valid"
                raise XMLError(text, line=self.line) from None


class StorageAuth(ElementDef):
    """
    The user at the server of a network disk.

    Mirrors: virStorageAuthDef (src/conf/storage_source_conf.h)
    """

    tag = "auth"

    username = attribute("username", required=True)
    secret = optional_element("secret", StorageSecret)

    def parsed(self, element: Element) -> None:
        """Refuse a user without a password."""
        if self.secret is None:
            raise XMLError("An <auth> needs a <secret>", line=self.line)


class StorageEncryption(ElementDef):
    """
    The encryption of an image.

    Mirrors: virStorageEncryption (src/conf/storage_encryption_conf.h)
    """

    tag = "encryption"

    format_ = attribute(
        "format",
        enum("default", "qcow", "luks", "luks2", since={"luks-any": "luks-any"}),
        code=VIR_ERR_CONFIG_UNSUPPORTED,
        missing=VIR_ERR_XML_ERROR,
        required=True,
    )
    engine = attribute("engine", enum("qemu", "librbd"))
    secrets = elements("secret", StorageSecret)
    cipher = opaque("cipher")
    ivgen = opaque("ivgen")

    def parsed(self, element: Element) -> None:
        """
        Refuse a secret that is not a passphrase.

        Mirrors: virStorageEncryptionSecretParse (src/conf/storage_encryption_conf.c)
        """
        for secret in self.secrets:
            if secret.type is None:
                raise XMLError("A <secret> of <encryption> needs a type", line=secret.line)
            if secret.type != "passphrase":
                text = f"A <secret> of <encryption> cannot have the type '{shown(secret.type)}'"
                raise ConfigUnsupportedError(text, line=secret.line)


class NVMeAddress(ElementDef):
    """
    The host's PCI function of an NVMe controller.

    Mirrors: virStorageSourceNVMeDef (src/conf/storage_source_conf.h)
    """

    tag = "address"

    domain = attribute("domain", hexadecimal(4), default=0)
    bus = attribute("bus", hexadecimal(2), default=0)
    slot = attribute("slot", hexadecimal(2), default=0)
    function = attribute("function", hexadecimal(1), default=0)
    of_guest_addresses = ignored("@type", "@multifunction")

    @property
    def pci(self) -> PCIDeviceAddress:
        """The address on the host."""
        return PCIDeviceAddress(self.domain, self.bus, self.slot, self.function)

    def move(self, address: PCIDeviceAddress) -> None:
        """Name another function."""
        self.domain, self.bus, self.slot, self.function = address

    def parsed(self, element: Element) -> None:
        """Refuse numbers out of range."""
        check_pci_address(self.pci, element)


class StorageSlice(ElementDef):
    """
    The part of a file or device that has the image; offset and size are in bytes.

    Mirrors: virDomainStorageSourceParseSlice (src/conf/domain_conf.c)
    """

    tag = "slice"

    type = attribute("type")
    offset = attribute("offset", big_number)
    size = attribute("size", big_number)


class HTTPCookie(ElementDef):
    """A cookie that the client of a web server sends."""

    tag = "cookie"

    name = attribute("name")
    value = content("")


class ReservationsDef(ElementDef):
    """
    The program that makes persistent reservations of a SCSI unit for QEMU.

    Mirrors: virStoragePRDef (src/conf/storage_source_conf.h)
    """

    tag = "reservations"

    managed = attribute("managed", yes_no, required=True)
    migration = attribute("migration", yes_no, since="disk-migrate-reservations")
    source_type = attribute("source/@type")
    path = attribute("source/@path")
    mode = attribute("source/@mode")

    def parsed(self, element: Element) -> None:
        """Refuse a program of the administrator without its socket."""
        if self.managed is False and (self.source_type != "unix" or self.path is None or self.mode != "client"):
            raise XMLError("<reservations managed='no'> needs the socket of a server", line=self.line)


class StorageSource(ElementDef):
    """
    The source of a disk's content.

    Mirrors: virStorageSource (src/conf/storage_source_conf.h)
    """

    tag = "source"

    file = attribute("file")
    dev = attribute("dev")
    dir = attribute("dir")
    pool = attribute("pool")
    volume = attribute("volume")
    mode = attribute("mode", enum("host", "direct"), code=VIR_ERR_CONFIG_UNSUPPORTED, renumbered=WORD_NUMBERS)
    protocol = attribute("protocol", enum(*PROTOCOLS))
    name = attribute("name")
    query = attribute("query")
    tls = attribute("tls", yes_no)
    tls_hostname = attribute("tlsHostname")
    type = attribute("type")
    managed = attribute("managed", yes_no)
    namespace = attribute("namespace", big_number)
    path = attribute("path")
    fd_group = attribute("fdgroup")
    startup_policy = attribute("startupPolicy", enum("mandatory", "requisite", "optional"))
    index = ignored("@index")  # of a running guest
    address = optional_element("address", NVMeAddress)
    hosts = elements("host", StorageHost)
    snapshot = attribute("snapshot/@name")
    config_file = attribute("config/@file")
    initiator = attribute("initiator/iqn/@name")
    auth = optional_element("auth", StorageAuth)
    encryption = optional_element("encryption", StorageEncryption)
    reservations = optional_element("reservations", ReservationsDef)
    slices = elements("slices/slice", StorageSlice)
    ssl_verify = attribute("ssl/@verify", yes_no)
    cookies = elements("cookies/cookie", HTTPCookie)
    readahead = attribute("readahead/@size", number)
    timeout = attribute("timeout/@seconds", number)
    known_hosts = attribute("knownHosts/@path", since="disk-ssh")
    identity_user = attribute("identity/@user", since="disk-words")
    identity_group = attribute("identity/@group", since="disk-words")
    identity_username = attribute("identity/@username", since="disk-ssh")
    identity_keyfile = attribute("identity/@keyfile", since="disk-ssh")
    identity_agent = attribute("identity/@agentsock", since="disk-ssh")
    reconnect_enabled = attribute("reconnect/@enabled", yes_no)
    reconnect_timeout = attribute("reconnect/@timeout", positive)
    reconnect_delay = attribute("reconnect/@delay", number, since="disk-words")
    seclabel = opaque("seclabel", for_host=True)
    data_store: OptionalElement[DataStoreDef] = optional_element(
        "dataStore", "storage_source_conf.DataStoreDef", since="disk-data-store"
    )

    @classmethod
    def unread(cls, element: Element) -> Collection[str]:
        """
        Return what only sources of other types or protocols have.

        Mirrors: virDomainStorageSourceParse, virDomainDiskSourceNetworkParse (src/conf/domain_conf.c)
        """
        parent = element.getparent()
        kind = None if parent is None else parent.get("type", "file")
        if kind not in _TYPE_WORDS:
            return ()
        own = _TYPE_WORDS[kind] + (_PROTOCOL_WORDS.get(element.get("protocol", ""), ()) if kind == "network" else ())
        present = {*("@" + str(name) for name in element.attrib), *(str(child.tag) for child in element)}
        return sorted(word for word in _ALL_WORDS.difference(own) if word.partition("/")[0] in present)

    @property
    def slice(self) -> StorageSlice | None:
        """The part of the storage that has the image; None for all of it."""
        return next(iter(self.slices), None)

    def parsed(self, element: Element) -> None:
        """
        Keep the first part of the storage, and drop limits of 0, as libvirt does.

        Raises:
            XMLError: it has no offset or no size.
        """
        self.readahead, self.timeout = self.readahead or None, self.timeout or None
        self.slices = [part for part in self.slices if part.type == "storage"][:1]
        if any(part.offset is None or part.size is None for part in self.slices):
            raise XMLError("A <slice> lacks 'offset' or 'size'", line=self.line)


class DataStoreDef(ElementDef):
    """
    The file or device with the content of a qcow2 image that has only the tables.

    Mirrors: virDomainStorageSourceParseDataStore (src/conf/domain_conf.c)
    """

    tag = "dataStore"

    type = attribute("type", enum(*SOURCE_TYPES), required=True)
    image_format = attribute("format/@type", enum(*IMAGE_FORMATS), code=VIR_ERR_CONFIG_UNSUPPORTED)
    source = optional_element("source", StorageSource)

    def parsed(self, element: Element) -> None:
        """Refuse a store without source or format, and a part of one."""
        if self.source is None:
            raise XMLError("<dataStore> lacks <source>", line=self.line)
        if self.image_format is None:
            raise XMLError("<dataStore> lacks <format>", line=self.line)
        if self.source.slices:
            raise XMLError("The source of <dataStore> cannot have slices", line=self.line)


class BackingStoreDef(ElementDef):
    """
    A backing image; without a type it ends the chain.

    Mirrors: virDomainDiskBackingStoreParse (src/conf/domain_conf.c)
    """

    tag = "backingStore"

    type = attribute("type", enum(*SOURCE_TYPES, since={"vhostvdpa": "disk-vdpa"}))
    index = ignored("@index")  # of a running guest
    image_format = attribute("format/@type", enum(*IMAGE_FORMATS), code=VIR_ERR_CONFIG_UNSUPPORTED)
    source = optional_element("source", StorageSource)
    backing_store: OptionalElement[BackingStoreDef] = optional_element(
        "backingStore", "storage_source_conf.BackingStoreDef"
    )

    @classmethod
    def unread(cls, element: Element) -> Collection[str]:
        """Return all child elements if the type is absent: libvirt then reads an empty backing store."""
        return () if element.get("type") is not None else ("format", "source", "backingStore")

    def parsed(self, element: Element) -> None:
        """Refuse an image without source or format."""
        if self.type is None:
            return
        if self.image_format is None:
            raise XMLError("<backingStore> lacks <format>", line=self.line)
        if self.source is None:
            raise XMLError("<backingStore> lacks <source>", line=self.line)
