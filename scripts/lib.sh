# Shared by the scripts. To be sourced; it only defines functions and variables.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export cache=${CONNECT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/connect-sidecar}

# Creates the cache directory.
make_cache() {
  { mkdir -p "$cache" 2>/dev/null && [ -w "$cache" ]; } || fail "cannot write to the cache directory $cache" "set CONNECT_CACHE to a directory of yours"
}

say() { printf '\033[1m-- %s\033[0m\n' "$*" >&2; }

fail() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2
  exit 1
}

# Installs commands that are missing, as root: need 'COMMAND=PACKAGE [PACKAGE...]'...
need() {
  local missing=() pair
  for pair in "$@"; do
    # shellcheck disable=SC2206 # packages are words
    command -v "${pair%%=*}" >/dev/null || missing+=(${pair#*=})
  done
  [ ${#missing[@]} -eq 0 ] && return
  command -v apt-get >/dev/null || fail "missing: ${missing[*]}" "install them (the names are Debian's)"
  [ "$(id -u)" -eq 0 ] || fail "missing: ${missing[*]}" "install them as root: apt-get install ${missing[*]}"
  say "installing from Debian: ${missing[*]}"
  make_cache
  # One script at a time, because apt fails while another one runs.
  (
    flock 7
    apt-get update -qq || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
  ) 7>"$cache/apt.lock" >&2 || fail "cannot install ${missing[*]}" "check that apt reaches its mirror"
}

need_cargo() {
  command -v cargo >/dev/null || fail "there is no cargo" "install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml") or newer"
}

need_root() {
  [ "$(id -u)" -eq 0 ] || fail "pods are made of network namespaces, which require root" "run it as root"
}

# The machine's architecture, by its name in images.
own_arch() {
  case $(uname -m) in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    *) uname -m ;;
  esac
}

# Decides how to build release binaries, static and small. Sets $target for cargo, and
# RUSTFLAGS for these builds only, so that tests keep their cache. Links with musl if the
# toolchain has that target or rustup can add it, else with glibc and crt-static;
# CONNECT_LIBC=musl or gnu overrides this.
choose_target() {
  local arch musl libc=${CONNECT_LIBC:-}
  arch=$(uname -m)
  musl=$arch-unknown-linux-musl
  has_musl() { [ -d "$(rustc --print sysroot)/lib/rustlib/$musl" ]; }
  if [ -z "$libc" ]; then
    if ! has_musl && command -v rustup >/dev/null; then
      timeout 120 rustup target add "$musl" >/dev/null 2>&1 || true
    fi
    libc=gnu
    # ring contains some C and assembler, which need a compiler for musl.
    if has_musl && { command -v musl-gcc >/dev/null || [ "$(id -u)" -eq 0 ]; }; then libc=musl; fi
  fi
  case $libc in
    musl)
      need musl-gcc=musl-tools
      target=$musl
      ;;
    gnu)
      target=$arch-unknown-linux-gnu
      export RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static"
      ;;
    *) fail "CONNECT_LIBC is $libc" "expected musl or gnu" ;;
  esac
  # A panic aborts, so there is no unwinding.
  export RUSTFLAGS="${RUSTFLAGS:-} -C link-arg=-Wl,--no-eh-frame-hdr"
  # Unwind tables are not needed either: they are a tenth of each binary.
  if [[ $root != *" "* ]] && runs_with -C link-arg=-Wl,-T,"$root/scripts/no-unwinding.ld"; then
    RUSTFLAGS+=" -C link-arg=-Wl,-T,$root/scripts/no-unwinding.ld"
  fi
  # Packed relocations take a sixtieth of the space. The linker must support packing, and the
  # C library unpacking, as musl does since 1.2.4.
  if runs_with -C link-arg=-Wl,-z,pack-relative-relocs; then
    RUSTFLAGS+=" -C link-arg=-Wl,-z,pack-relative-relocs"
  fi
}

# Whether a program built for $target with these flags runs.
runs_with() {
  local folder ran=
  folder=$(mktemp -d)
  # shellcheck disable=SC2086 # flags are words
  if echo 'fn main() { println!("{}", std::env::args().count()) }' |
    rustc ${RUSTFLAGS:-} --target "$target" "$@" -o "$folder/program" - >/dev/null 2>&1; then
    ran=$("$folder/program" 2>/dev/null) || true
  fi
  rm -rf "$folder"
  [ "$ran" = 1 ]
}

# Runs one command in the background, and marks its output: beside COMMAND... It ends with
# the script at the latest. The script waits for it with join.
beside() {
  beside_folder=$(mktemp -d)
  trap stop_beside EXIT
  # In its own process group, which can be killed as a whole.
  set -m
  { "$@" 2>&1 >"$beside_folder/stdout" | tee "$beside_folder/stderr" | sed --unbuffered 's/^/[parts] /' >&2; } &
  beside=$!
  set +m
}

# Waits for the command of beside, and evaluates the assignments that it printed.
join() {
  ! kill -0 "$beside" 2>/dev/null || say "waiting for the parts that are built beside this"
  wait "$beside" || {
    beside=
    tail -n 10 "$beside_folder/stderr" >&2
    exit 1
  }
  beside=
  eval "$(cat "$beside_folder/stdout")"
  stop_beside
}

stop_beside() {
  [ -z "${beside:-}" ] || kill -- -"$beside" 2>/dev/null || true
  rm -rf "$beside_folder"
}

# Whether a file has that SHA-256.
is_intact() { [ -f "$1" ] && echo "$2  $1" | sha256sum --check --status; }

# Creates an empty directory for downloads, $work. It is removed when the script ends, even
# if it is interrupted.
make_work_folder() {
  [ -z "${work:-}" ] || rm -rf "$work"
  make_cache
  work=$(mktemp -d "$cache/.get.XXXXXX")
  trap 'rm -rf "$work"' EXIT
}

# Runs apt-get in $work for a suite of Debian, with its own lists and cache, so that the
# machine's apt settings stay unchanged: from_debian SUITE COMMAND...
# $without_debian, if set, is the hint for a machine without Debian's packages.
from_debian() {
  local suite=$1 lists=$work/apt-$1 mirror
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  local hint=${without_debian:-set the variables that $(basename "$0") prints}
  local apt=(apt-get -qq -o "Dir::Etc::SourceList=$lists/sources.list" -o Dir::Etc::SourceParts=-
    -o "Dir::State::Lists=$lists/lists" -o "Dir::Cache=$lists/cache" -o APT::Sandbox::User=root
    -o APT::Update::Error-Mode=any)
  shift
  command -v apt-get >/dev/null || fail "cannot get a package of Debian $suite: there is no apt-get" "$hint"
  if [ ! -d "$lists" ]; then
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || fail "cannot get a package of Debian $suite: apt knows no Debian mirror" "$hint; or run apt-get update as root"
    mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial"
    echo "deb [signed-by=$keyring] $mirror $suite main" >"$lists/sources.list"
    (cd "$work" && "${apt[@]}" update) >&2 || fail "cannot get the package lists of Debian $suite" "check that apt reaches its mirror; or $hint"
  fi
  (cd "$work" && "${apt[@]}" "$@") >&2 || fail "apt-get $* failed for Debian $suite" "check that apt reaches its mirror; or $hint"
}

debian_mirror() {
  # shellcheck disable=SC2016 # apt expands the variable
  local ours=(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages') mirror
  mirror=$("${ours[@]}" 'Origin: Debian' | grep -v security | head -n 1) || true
  if [ -z "$mirror" ]; then
    # The machine's lists may be empty; then their origin is unknown.
    [ "$(id -u)" -ne 0 ] || apt-get update -qq >&2 || true
    mirror=$("${ours[@]}" | grep debian | grep -v security | head -n 1) || true
  fi
  echo "$mirror"
}
