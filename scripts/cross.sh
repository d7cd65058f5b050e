# Builds for another architecture than the machine's. To be sourced after lib.sh; cross_build
# runs it as a program in a namespace.
# shellcheck shell=bash
#
# Uses the machine's own Rust if it has that target or rustup can add it, else Debian's in a
# directory of its own (root only): Debian's archive has the standard library for every
# architecture. Either way, Debian's cross compiler links a static glibc.

# The suite whose Rust is new enough, and the packages to install. The suite changes daily;
# the directory is created once and then reused.
cross_suite=sid
cross_packages=(cargo rustc gcc libc6-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross)

# Decides how to build for another architecture. Sets $target, and $built to the directory in
# which cross_build puts the binaries.
choose_cross() {
  [ "$1" = arm64 ] || fail "cannot build for $1 on $(own_arch)" "expected arm64, or $(own_arch)"
  target=aarch64-unknown-linux-gnu
  # shellcheck disable=SC2034 # scripts/build's
  built=${CARGO_TARGET_DIR:-$root/target}/$target/release
  cross_settings=(
    "RUSTFLAGS=-C target-feature=+crt-static -C link-arg=-Wl,--no-eh-frame-hdr"
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
  )
  has_cross() { [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; }
  cross_folder=
  if ! has_cross && command -v rustup >/dev/null; then
    say "asking rustup for $target"
    timeout 120 rustup target add "$target" >/dev/null 2>&1 || true
  fi
  if has_cross; then
    need aarch64-linux-gnu-gcc='gcc-aarch64-linux-gnu libc6-dev-arm64-cross'
  elif [ "$(id -u)" -eq 0 ]; then
    make_cross_folder
  else
    fail "this Rust has no target $target, and rustup cannot add it" "install the target, or run this as root: Debian's Rust is then installed into ${cache:?}"
  fi
  say "building static binaries for $target${cross_folder:+ with the Rust of Debian $cross_suite}"
}

# Builds for the target of choose_cross: cross_build CARGO-ARGUMENT...
cross_build() {
  set -- --locked --release --target "$target" "$@"
  if [ -z "$cross_folder" ]; then
    env "${cross_settings[@]}" cargo build "$@" >&2
    return
  fi
  # The namespace has no network.
  cargo fetch --locked >&2
  # A mount namespace, so that the mounts are removed however the build ends.
  unshare --mount --propagation private "$BASH" "$root/scripts/cross.sh" \
    "$cross_folder" "$root" "${CARGO_HOME:-$HOME/.cargo}" "${CARGO_TARGET_DIR:-$root/target}" \
    "${cross_settings[@]}" -- "$@" >&2
}

# Runs in the namespace: FOLDER WORKSPACE CARGO-HOME TARGET-FOLDER SETTING... --
# CARGO-ARGUMENT...
inside() {
  local folder=$1 settings=()
  mkdir -p "$4" "$folder"/{workspace,cargo,built}
  mount --bind "$2" "$folder/workspace"
  mount --bind "$3" "$folder/cargo"
  mount --bind "$4" "$folder/built"
  mount -t proc proc "$folder/proc"
  shift 4
  while [ "$1" != -- ]; do
    settings+=("$1")
    shift
  done
  shift
  # Variables may set profiles, so those of CARGO_PROFILE are passed on.
  while IFS= read -r variable; do settings+=("$variable"); done < <(env | grep '^CARGO_PROFILE_' || true)
  # shellcheck disable=SC2016 # they are the inner shell's
  exec env -i "${settings[@]}" PATH=/usr/bin:/bin HOME=/root CARGO_HOME=/cargo CARGO_TARGET_DIR=/built \
    chroot "$folder" /bin/sh -c 'cd /workspace && exec cargo build "$@"' sh "$@"
}

# Installs Debian with Rust into the directory $cross_folder, once. Starts again after an
# interruption.
make_cross_folder() {
  cross_folder=$cache/cross-arm64-$cross_suite
  [ ! -e "$cross_folder/complete" ] || return 0
  local mirror
  need debootstrap=debootstrap
  make_cache
  mirror=$(debian_mirror)
  [ -n "$mirror" ] || fail "apt knows no Debian mirror" "run apt-get update as root"
  say "installing Debian $cross_suite with Rust for arm64 into $cross_folder: 1.5 GB, some minutes"
  exec 6>"$cache/cross.lock"
  flock 6
  [ ! -e "$cross_folder/complete" ] || return 0
  rm -rf "$cross_folder"
  # debootstrap of a stable release does not know newer suites; sid's script works for all.
  debootstrap --variant=minbase --include="$(IFS=,; echo "${cross_packages[*]}")" "$cross_suite" "$cross_folder" "$mirror" >&2 ||
    fail "cannot install Debian $cross_suite" "see $cross_folder/debootstrap/debootstrap.log"
  # A mirror's lists may have expired.
  echo 'Acquire::Check-Valid-Until "false";' >"$cross_folder/etc/apt/apt.conf.d/cross"
  chroot "$cross_folder" /bin/sh -euc '
    export DEBIAN_FRONTEND=noninteractive
    dpkg --add-architecture arm64
    apt-get -qq update
    apt-get -qq -y --no-install-recommends install libstd-rust-dev:arm64
    apt-get clean
  ' >&2 || fail "cannot install libstd-rust-dev:arm64 of Debian $cross_suite" "remove $cross_folder and try again"
  touch "$cross_folder/complete"
  flock -u 6
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  inside "$@"
fi
