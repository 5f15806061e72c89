_pyhostdev_root() {
  local at=${words[(i)--root]}
  (( at < $#words )) && print -rn -- ${(Q)words[at + 1]}
}

_pyhostdev_addresses() {
  local -a found=($(_pyhostdev_root)/sys/bus/pci/devices/*(N:t))
  compadd -a found
}

_pyhostdev_consents() {
  local -a found=($(_pyhostdev_root)/sys/bus/pci/devices/*(N:t)) reasons=(@REASONS@)
  local -a consents=(${^reasons}:${^found})
  compadd -a consents
}

_pyhostdev_bound_by() {
  local -a found=($(_pyhostdev_root)/sys/bus/pci/drivers/*(N:t))
  compadd -a found
}

_pyhostdev_capabilities() {
  compadd @CAPABILITIES@
  _files
}

_pyhostdev_users() { _users }
