# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Sources of a disk's content: files, devices, servers, namespaces of NVMe controllers; and backing images.

Mirrors: virStorageSource (src/conf/storage_source_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.device_conf import WORD_NUMBERS, check_pci_address
from pyhostdev.conf.xml.xmlcodec import big_number, enum, hexadecimal, number, positive, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import OptionalElement, attribute, content, elements, ignored, opaque, optional_element
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, VIR_ERR_XML_ERROR, ConfigUnsupportedError, XMLError
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
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


class StorageHost(ElementDef):
    """A server of a network disk."""

    tag = "host"

    transport = attribute(
        "transport", enum("tcp", "unix", "rdma"), code=VIR_ERR_CONFIG_UNSUPPORTED, renumbered=WORD_NUMBERS
    )
    name = attribute("name")
    port = attribute("port", number)
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


class StorageAuth(ElementDef):
    """
    The user at the server of a network disk.

    Mirrors: virStorageAuthDef (src/conf/storage_source_conf.h)
    """

    tag = "auth"

    username = attribute("username", required=True)
    secret = optional_element("secret", StorageSecret)


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
    engine = attribute("engine", enum("default", "qemu", "librbd"))
    secrets = elements("secret", StorageSecret)
    cipher = opaque("cipher")
    ivgen = opaque("ivgen")

    def parsed(self, element: Element) -> None:
        """
        Refuse a secret that is not a passphrase.

        Mirrors: virStorageEncryptionSecretParse (src/conf/storage_encryption_conf.c)
        """
        for secret in self.secrets:
            if secret.type not in (None, "passphrase"):
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
    mode = attribute("mode")
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
    readahead = attribute("readahead/@size", positive)
    timeout = attribute("timeout/@seconds", positive)
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

    @property
    def slice(self) -> StorageSlice | None:
        """The part of the storage that has the image; None for all of it."""
        return next(iter(self.slices), None)

    def parsed(self, element: Element) -> None:
        """
        Keep the first part of the storage, as libvirt does.

        Raises:
            XMLError: it has no offset or no size.
        """
        self.slices = [part for part in self.slices if part.type == "storage"][:1]
        if any(part.offset is None or part.size is None for part in self.slices):
            raise XMLError("A <slice> lacks 'offset' or 'size'", line=self.line)

    def drop_others(self, kind: str | None) -> None:
        """Drop what only sources of other types have, as libvirt's parser does."""
        if kind != "nvme":
            self.managed = self.namespace = self.address = None
        if kind not in ("nvme", "vhostuser"):
            self.type = None


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
        self.source.drop_others(self.type)


class BackingStoreDef(ElementDef):
    """
    A backing image; without a type it ends the chain.

    Mirrors: virDomainDiskBackingStoreParse (src/conf/domain_conf.c)
    """

    tag = "backingStore"

    type = attribute("type", enum(*SOURCE_TYPES))
    index = ignored("@index")  # of a running guest
    image_format = attribute("format/@type", enum(*IMAGE_FORMATS), code=VIR_ERR_CONFIG_UNSUPPORTED)
    source = optional_element("source", StorageSource)
    backing_store: OptionalElement[BackingStoreDef] = optional_element(
        "backingStore", "storage_source_conf.BackingStoreDef"
    )

    def parsed(self, element: Element) -> None:
        """Refuse an image without source or format."""
        if self.type is None:
            return
        if self.source is not None:
            self.source.drop_others(self.type)
        if self.image_format is None:
            raise XMLError("<backingStore> lacks <format>", line=self.line)
        if self.source is None:
            raise XMLError("<backingStore> lacks <source>", line=self.line)
