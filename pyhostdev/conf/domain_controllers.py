# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The list of a domain's controllers: order, indices and additions.

Mirrors: virDomainControllerInsertPreAlloced, virDomainAssignControllerIndexes, virDomainDefAddController
(src/conf/domain_conf.c, domain_postparse.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.controller_conf import DomainControllerDef

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease

USB2_MODELS = ("ich9-ehci1", "ich9-uhci1", "ich9-uhci2", "ich9-uhci3")
_COMPANION_PORTS = {"ich9-uhci1": 0, "ich9-uhci2": 2, "ich9-uhci3": 4}  # of the EHCI that they belong to


def insert_controller(controllers: list[DomainControllerDef], new: DomainControllerDef) -> None:
    """
    Insert a controller among those of its type, by index; the others keep their order.

    The controllers of a type that have an index are in order, so the search ends at the first one that stays before
    the new one.

    Mirrors: virDomainControllerInsertPreAlloced (src/conf/domain_conf.c)
    """
    at: int | None = None
    for place in range(len(controllers) - 1, -1, -1):
        current = controllers[place]
        if current.type != new.type:
            continue
        if new.index is not None and _precedes(new, current):
            at = place
            continue
        if at is None:
            at = place + 1
        if new.index is None or current.index is not None:
            break
    controllers.insert(len(controllers) if at is None else at, new)


def _precedes(new: DomainControllerDef, current: DomainControllerDef) -> bool:
    assert new.index is not None
    index = -1 if current.index is None else current.index
    if index != new.index:
        return index > new.index
    # a USB master comes before its companions
    return new.info.master_startport is None and current.info.master_startport is not None


def sort_controllers(dom: DomainDef) -> None:
    """
    Order the controllers as libvirt's parser does; companions follow their master.

    Mirrors: virDomainControllerDefParseXML (src/conf/domain_conf.c) for the companions' ports
    """
    for controller in dom.controllers:
        if controller.type == "usb" and controller.info.master_startport is None:
            controller.info.master_startport = _COMPANION_PORTS.get(str(controller.model))
    given, dom.controllers = dom.controllers, []
    for controller in given:
        insert_controller(dom.controllers, controller)


def assign_indices(dom: DomainDef) -> None:
    """
    Give every controller without an index the lowest free one of its type.

    Consecutive USB 2 companions share an index.

    Mirrors: virDomainAssignControllerIndexes (src/conf/domain_postparse.c)
    """
    for place, controller in enumerate(dom.controllers):
        if controller.index is not None:
            continue
        is_companion = place > 0 and controller.type == "usb" and controller.model in USB2_MODELS
        index = _companions_index(dom.controllers[:place], dom, controller) if is_companion else None
        controller.index = _unused_index(dom, controller.type) if index is None else index


def _companions_index(before: list[DomainControllerDef], dom: DomainDef, controller: DomainControllerDef) -> int | None:
    """Return the index of the companions right before this one, if they lack this model; else None."""
    previous = next((c for c in reversed(before) if c.type == "usb"), None)
    if previous is None or previous.model not in USB2_MODELS:
        return None
    taken = any(c.type == "usb" and c.index == previous.index and c.model == controller.model for c in dom.controllers)
    return None if taken else previous.index


def _unused_index(dom: DomainDef, type_: str) -> int:
    used = {c.index for c in dom.controllers if c.type == type_}
    return next(index for index in range(len(used) + 1) if index not in used)


def find_controller(dom: DomainDef, type_: str, index: int) -> DomainControllerDef | None:
    """Return the first controller of a type with an index."""
    return next((c for c in dom.controllers if c.type == type_ and c.index == index), None)


def place_controller(dom: DomainDef, controller: DomainControllerDef, release: LibvirtRelease) -> None:
    """
    Insert an added controller into the list, in the order of the libvirt release.

    Mirrors: virDomainControllerInsert (src/conf/domain_conf.c)
    """
    if release.has("added-controllers-sorted"):
        insert_controller(dom.controllers, controller)
    else:
        dom.controllers.append(controller)


def add_controller(
    dom: DomainDef, release: LibvirtRelease, type_: str, index: int, model: str | None = None
) -> DomainControllerDef:
    """
    Add a controller.

    Mirrors: virDomainDefAddController (src/conf/domain_conf.c)
    """
    controller = DomainControllerDef(type=type_, index=index, model=model)
    place_controller(dom, controller, release)
    return controller


def maybe_add_controller(
    dom: DomainDef, release: LibvirtRelease, type_: str, index: int, model: str | None = None
) -> None:
    """
    Add a controller, unless one of its type and index exists.

    Mirrors: virDomainDefMaybeAddController (src/conf/domain_conf.c)
    """
    if find_controller(dom, type_, index) is None:
        add_controller(dom, release, type_, index, model)


def add_usb_controller(dom: DomainDef, release: LibvirtRelease, index: int, model: str | None) -> None:
    """
    Add a USB controller with the companions of its model.

    Mirrors: virDomainDefAddUSBController (src/conf/domain_conf.c)
    """
    add_controller(dom, release, "usb", index, model)
    if model != "ich9-ehci1":
        return
    for companion, port in _COMPANION_PORTS.items():
        add_controller(dom, release, "usb", index, companion).info.master_startport = port
