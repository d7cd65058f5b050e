# What the scripts share. To be sourced; it defines functions and folders only.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export cache=${CONNECT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/connect-sidecar}

say() { printf '\033[1m-- %s\033[0m\n' "$*" >&2; }

fail() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2
  exit 1
}

# Makes sure that commands are there: need COMMAND=PACKAGE...
need() {
  local missing=() pair
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  [ ${#missing[@]} -eq 0 ] && return
  command -v apt-get >/dev/null || fail "missing: ${missing[*]}" "install them (the names are Debian's)"
  [ "$(id -u)" -eq 0 ] || fail "missing: ${missing[*]}" "install them as root: apt-get install ${missing[*]}"
  say "installing from Debian: ${missing[*]}"
  apt-get update -qq >&2 || true
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 ||
    fail "cannot install ${missing[*]}" "check that apt reaches its mirror"
}

need_cargo() {
  command -v cargo >/dev/null || fail "there is no cargo" "install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml") or newer"
}

need_root() {
  [ "$(id -u)" -eq 0 ] || fail "pods are made of network namespaces, which takes root" "run it as root"
}

# Whether a file has that SHA-256.
is_intact() { [ -f "$1" ] && echo "$2  $1" | sha256sum --check --status; }
