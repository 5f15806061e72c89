_pyhostdev_root() {
  local i
  for ((i = 1; i < ${#COMP_WORDS[@]} - 1; i++)); do
    [[ ${COMP_WORDS[i]} == --root ]] && printf '%s' "${COMP_WORDS[i + 1]}"
  done
}

_pyhostdev_list_addresses() { command ls "$(_pyhostdev_root)/sys/bus/pci/devices" 2>/dev/null; }

_pyhostdev_addresses() { compgen -W "$(_pyhostdev_list_addresses)" -- "$1"; }

_pyhostdev_consents() {
  local address reason
  for address in $(_pyhostdev_list_addresses); do
    for reason in @REASONS@; do
      [[ $reason:$address == "$1"* ]] && printf '%s\n' "$reason:$address"
    done
  done
}

_pyhostdev_bound_by() { compgen -W "$(command ls "$(_pyhostdev_root)/sys/bus/pci/drivers" 2>/dev/null)" -- "$1"; }

_pyhostdev_capabilities() {
  compgen -W "@CAPABILITIES@" -- "$1"
  compgen -f -- "$1"
}

_pyhostdev_users() { compgen -u -- "$1"; }

# Addresses have colons, at which bash splits words: put them together for shtab, and return what is behind the last.
_pyhostdev() {
  local i word before
  local -a words=()
  for ((i = 0; i <= COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    if ((i > 1)) && [[ $word == :* || ${COMP_WORDS[i - 1]} == *: ]]; then
      words[${#words[@]} - 1]+=$word
    else
      words+=("$word")
    fi
  done
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$((${#words[@]} - 1))
  word=${words[COMP_CWORD]}
  _shtab_pyhostdev
  if [[ $COMP_WORDBREAKS == *:* && $word == *:* ]]; then
    before=${word%"${word##*:}"}
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
  fi
}
