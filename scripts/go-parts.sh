# Builds programs from the Go modules in scripts/parts. To be sourced; it defines
# functions and constants only.
# shellcheck shell=bash
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The version of Go to unpack from Debian if the PATH has none that is new enough.
debian_go=1.26
debian_go_suite=trixie-backports

# The version of a module that a part pins: pinned_version PART MODULE
pinned_version() {
  sed -nE "s#^(require)?[[:space:]]+$2 v([^ ]+)( // indirect)?\$#\2#p" "$root/scripts/parts/$1/go.mod"
}

# The packages that a part's go.mod lists as tools, one a line.
packages_of() {
  sed -nE -e 's#^tool ([^(].*)#\1#p' -e '/^tool \(/,/^\)/ s#^[[:space:]]+##p' "$root/scripts/parts/$1/go.mod"
}

# Builds the programs of a part that the cache directory does not have, and sets
# $built to their directory: build_part PART [LDFLAGS [FLAG...]]
#
# The directory's name contains the checksum of go.mod, go.sum and the flags, so it changes
# with the pins. Each program is moved there as soon as it is built. If several runs need a
# part, one builds it and the others wait.
build_part() {
  local part=$1 module=$root/scripts/parts/$1 flags=(-trimpath -ldflags "-s -w${2:+ $2}" "${@:3}")
  local packages package sum missing=()
  mapfile -t packages < <(packages_of "$part")
  sum=$({ cat "$module/go.mod" "$module/go.sum" && echo "${flags[@]}" "CGO_ENABLED=${CGO_ENABLED:-0}"; } | sha256sum)
  built=$cache/$part-${sum:0:16}
  for package in "${packages[@]}"; do
    [ -x "$built/${package##*/}" ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  find_go "$part" "$(sed -n 's/^go //p' "$module/go.mod")"
  hold_go_caches
  mkdir -p "$built"
  # In a subshell, which ends with its settings and the lock.
  (
    exec 9>"$built/lock"
    if ! flock --nonblock 9; then
      say "another run builds $part: waiting for it"
      flock 9
    fi
    set_go_environment
    cd "$module" || exit
    for package in "${missing[@]}"; do
      # Another run may have built it meanwhile.
      [ -x "$built/${package##*/}" ] || build_program "$part" "$package" "${flags[@]}"
    done
    rm -f "$built/log"
  )
}

# Sets $go to a Go of that version or newer, from the PATH or from Debian:
# find_go PART VERSION
find_go() {
  local part=$1 wanted=$2 found why="the PATH has no Go"
  if go=$(type -P go); then
    found=$(go_version "$go")
    if is_at_least "$wanted" "$found"; then return; fi
    why="$go is ${found:-broken}"
  fi
  go=$cache/go-$debian_go/usr/lib/go-$debian_go/bin/go
  [ -x "$go" ] || get_debian_go "$part" "$wanted" "$why"
  found=$(go_version "$go")
  is_at_least "$wanted" "$found" ||
    fail "$part needs Go $wanted or newer: $why, and Debian's is ${found:-broken}" "install Go $wanted or newer, and put it on the PATH"
}

go_version() { (cd / && GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) | sed -nE 's/.*go([0-9][^ -]*).*/\1/p'; }

# Whether the second version is as new as the first.
is_at_least() { [ -n "$2" ] && printf '%s\n%s\n' "$1" "$2" | sort --version-sort --check=silent; }

get_debian_go() {
  local package
  # shellcheck disable=SC2034 # from_debian reads it
  local without_debian="install Go $2 or newer, and put it on the PATH"
  say "$1 needs Go $2 or newer, and $3: getting Go $debian_go from Debian's archive"
  make_work_folder
  from_debian "$debian_go_suite" download "golang-$debian_go-go" "golang-$debian_go-src"
  for package in "$work/golang-$debian_go"-*.deb; do
    dpkg -x "$package" "$work/go"
  done
  # Moved atomically, because another run may do the same.
  mv -T "$work/go" "$cache/go-$debian_go" 2>/dev/null || [ -x "$go" ] || fail "cannot keep Go as $cache/go-$debian_go" "check the room in $cache"
}

# Only pins and flags decide what is built, not the user's Go settings (`go env -w`), except
# for those that say where modules come from.
set_go_environment() {
  local name
  for name in GOPROXY GONOPROXY GOSUMDB GONOSUMDB GOPRIVATE GOINSECURE GOAUTH GOVCS; do
    export "$name=$(cd / && GOTOOLCHAIN=local "$go" env "$name")"
  done
  unset GOOS GOARCH GOAMD64 GOARM64 GOEXPERIMENT GO111MODULE
  export GOENV=off GOTOOLCHAIN=local GOWORK=off GOFLAGS='-mod=readonly -modcacherw -buildvcs=false'
  export CGO_ENABLED=${CGO_ENABLED:-0}
  export GOCACHE=${GOCACHE:-$cache/go/build} GOMODCACHE=${GOMODCACHE:-$cache/go/mod}
}

# Go's caches are in our cache directory, not in the user's, so that nothing is left outside
# of it. The last script that builds removes them, which saves gigabytes; until then, an
# interrupted build reuses them. To keep caches for Go, set GOCACHE and GOMODCACHE.
hold_go_caches() {
  make_cache
  mkdir -p "$cache/go"
  exec 8>"$cache/go/lock"
  flock --shared 8
  holds_go_caches=yes
}

# Called at the end of a script, when everything is built.
remove_go_caches() {
  [ -n "${holds_go_caches:-}" ] || return 0
  flock --exclusive --nonblock 8 || return 0
  rm -rf "$cache/go/build" "$cache/go/mod"
  flock --unlock 8
}

# build_program PART PACKAGE FLAG...
build_program() {
  local part=$1 package=$2 program=${2##*/} log=$built/log total
  shift 2
  say "$part: fetching the sources of $program"
  "$go" list -deps "$@" "$package" 2>&1 >"$built/deps" | tee "$log" | progress "modules fetched" 100 ||
    blame "$log" "cannot fetch the sources of $program ($part)" \
      "check that Go reaches where it gets modules (go env GOPROXY), then run $(basename "$0") again: it goes on where it was"
  total=$(wc -l <"$built/deps")
  say "$part: building $program with $("$go" env GOVERSION)"
  nice -n 10 "$go" build -v "$@" -o "$built/.$program" "$package" 2>&1 | tee "$log" | progress "of at most $total packages compiled" 200 ||
    blame "$log" "$program ($part) does not build" \
      "check the room in $cache; then run $(basename "$0") again: it goes on where it was"
  mv -f "$built/.$program" "$built/$program"
  rm -f "$built/deps"
  say "$part: kept as $built/$program"
}

# Counts lines: on a terminal in place, else with one line for every N.
progress() {
  local count=0
  while read -r _; do
    count=$((count + 1))
    if [ -t 2 ]; then printf '\r   %d %s ' "$count" "$1" >&2
    elif [ $((count % $2)) -eq 0 ]; then printf '   %d %s\n' "$count" "$1" >&2
    fi
  done
  [ ! -t 2 ] || [ "$count" -eq 0 ] || printf '\n' >&2
}

# Fails with the last lines of a log: blame LOG WHAT HINT
blame() {
  tail -n 10 "$1" >&2
  fail "$2; the log is $1" "$3"
}
