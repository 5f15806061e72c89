function _pyhostdev_root
    set -l words (commandline -opc)
    set -l at (contains -i -- --root $words)
    and echo $words[(math $at + 1)]
end

function _pyhostdev_addresses
    set -l root (_pyhostdev_root)
    command ls "$root/sys/bus/pci/devices" 2>/dev/null
end

function _pyhostdev_consents
    for address in (_pyhostdev_addresses)
        for reason in @REASONS@
            echo $reason:$address
        end
    end
end

function _pyhostdev_bound_by
    set -l root (_pyhostdev_root)
    command ls "$root/sys/bus/pci/drivers" 2>/dev/null
end

function _pyhostdev_capabilities
    printf '%s\n' @CAPABILITIES@
    __fish_complete_path (commandline -ct)
end

function _pyhostdev_users
    __fish_complete_users
end
