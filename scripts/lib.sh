# Functions shared by these scripts; to be sourced. Requires only bash and coreutils.
set -euo pipefail
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034
RBUILD_USER=rbuild-test

say() { printf '\n==> %s\n' "$*"; }
die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }

# Runs a command as root.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi
}

# need_packages NAME...: installs the Debian packages that are missing.
need_packages() {
    local missing=() p
    for p in "$@"; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "apt-get is missing" "install these yourself: ${missing[*]}"
    say "installing ${missing[*]}"
    as_root apt-get update -q >/dev/null || die "the package lists could not be fetched" "check the network and the apt sources"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null ||
        die "the packages ${missing[*]} could not be installed"
}

# Ensures that cargo is as recent as Cargo.toml requires; the one of Debian 12 is not.
need_cargo() {
    local wanted found
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"$/\1/p' "$TOP/Cargo.toml")
    if [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH="$HOME/.cargo/bin:$PATH"
    elif ! command -v cargo >/dev/null && [ -n "${SUDO_USER:-}" ]; then
        # sudo resets PATH and HOME; the toolchains of rustup are in the home of its user.
        local home
        home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
        [ ! -x "$home/.cargo/bin/cargo" ] || export PATH="$home/.cargo/bin:$PATH" RUSTUP_HOME="$home/.rustup"
    fi
    command -v cargo >/dev/null || die "cargo is missing" "install Rust $wanted or newer with rustup: https://rustup.rs"
    found=$(cargo --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$wanted" "$found" | sort -V | sed -n 1p)" = "$wanted" ] ||
        die "cargo $found is too old" "install Rust $wanted or newer with rustup: https://rustup.rs"
}

# Prints cargo's target directory, which the environment or a configuration file may have moved.
target_dir() {
    need_cargo
    cargo metadata --manifest-path "$TOP/Cargo.toml" --no-deps --locked --format-version 1 |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# build_rbuild [FLAG]...: builds rbuild with these flags of cargo and prints the path of the binary.
build_rbuild() {
    local binary
    binary=$(cd "$TOP" && cargo build --locked -p rbuild --bin rbuild --message-format=json-render-diagnostics "$@" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
    [ -x "$binary" ] || die "rbuild was not built" "run it manually to see the cause: cargo build --locked -p rbuild $*"
    echo "$binary"
}

# Creates an ordinary user with sub-IDs to run as, if the script runs as root.
need_user() {
    if ! id "$RBUILD_USER" >/dev/null 2>&1; then
        say "creating the ordinary user $RBUILD_USER"
        as_root useradd --create-home --shell /bin/bash "$RBUILD_USER"
    fi
    need_subids "$RBUILD_USER"
}

# need_subids USER: grants the next 65536 unassigned IDs, unless the user already has some.
need_subids() {
    grep -q "^$1:" /etc/subuid 2>/dev/null && grep -q "^$1:" /etc/subgid 2>/dev/null && return 0
    say "granting sub-IDs to $1"
    local first
    first=$(cat /etc/subuid /etc/subgid 2>/dev/null | awk -F: '$2 + $3 > n { n = $2 + $3 } END { print n < 100000 ? 100000 : n }')
    as_root usermod --add-subuids "$first-$((first + 65535))" --add-subgids "$first-$((first + 65535))" "$1"
}

# as_user DIR COMMAND...: runs a command in DIR as an ordinary user: the caller, unless that is
# root.
as_user() {
    local dir=$1
    shift
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid "$RBUILD_USER" --regid "$RBUILD_USER" --init-groups --reset-env \
            env -C "$dir" PATH="$PATH" ${RBUILD_ROOT:+RBUILD_ROOT="$RBUILD_ROOT"} "$@"
    else
        env -C "$dir" "$@"
    fi
}

# Creates a root file system of Debian bookworm as a tar at $1, unless it exists.
need_debian_rootfs() {
    [ ! -s "$1" ] || return 0
    need_packages mmdebstrap
    say "creating a Debian root file system from packages: $1"
    mkdir -p "$(dirname "$1")"
    local mirror
    # Either of the two files may be missing. Cloud images refer to a file with mirrors, which the new
    # root file system would lack.
    mirror=$( (cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null || true) |
        sed -n 's/^URIs: *//p; s/^deb  *\(\[[^]]*\] *\)\{0,1\}\([^ ]*\) .*/\2/p' | grep -oE '^https?://[^ ]+' | sed -n 1p || true)
    # mmdebstrap infers the format, a gzip-compressed tar, from the file name.
    local part
    part=$(dirname "$1")/part-$(basename "$1")
    mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Languages "none"' bookworm "$part" ${mirror:+"$mirror"} ||
        die "mmdebstrap failed" "run it manually to see the cause: mmdebstrap --variant=minbase bookworm /dev/null"
    mv "$part" "$1"
}

# need_registry DIR: runs Debian's docker-registry on a free port of the loopback interface. Its data
# are in DIR/registry. Sets REGISTRY, its address. The caller has to call end_registry on exit.
REGISTRY_PID=
need_registry() {
    local dir=$1/registry program
    mkdir -p "$dir"
    program=$(command -v docker-registry || true)
    # The package is unpacked, because its installation would start a service.
    if [ -z "$program" ]; then
        program=$dir/package/usr/bin/docker-registry
        [ -x "$program" ] || need_unpacked docker-registry "$dir/package"
    fi
    printf '%s\n' 'version: 0.1' "storage: {filesystem: {rootdirectory: \"$dir/data\"}}" \
        'http: {addr: "127.0.0.1:0", secret: x}' >"$dir/config.yml"
    : >"$dir/log"
    "$program" serve "$dir/config.yml" >>"$dir/log" 2>&1 &
    REGISTRY_PID=$! REGISTRY=
    for _ in {1..100}; do
        REGISTRY=$(sed -n 's/.*msg="listening on \(127\.0\.0\.1:[0-9]*\)".*/\1/p' "$dir/log" | sed -n 1p)
        [ -z "$REGISTRY" ] || return 0
        kill -0 "$REGISTRY_PID" 2>/dev/null || break
        sleep 0.1
    done
    die "docker-registry did not start" "read $dir/log"
}

# Ends the registry, if it runs.
end_registry() {
    local pid=$REGISTRY_PID
    REGISTRY_PID=
    [ -n "$pid" ] || return 0
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

# need_unpacked NAME DIR: unpacks a Debian package without installing it.
need_unpacked() {
    local part=$2.part
    say "fetching the package $1"
    rm -rf "$part" "$2"
    mkdir -p "$part/tree"
    apt-cache show "$1" >/dev/null 2>&1 || as_root apt-get update -q >/dev/null ||
        die "the package lists could not be fetched" "check the network and the apt sources"
    # As root, apt-get warns that its own user cannot write to the directory.
    (cd "$part" && apt-get download -q "$1" >/dev/null 2>&1 && dpkg-deb -x "$1"_*.deb tree) ||
        die "the package $1 could not be fetched"
    mv "$part/tree" "$2"
    rm -rf "$part"
}

# bench_place [--store DIR] [ARG]...: sets `place`, the directory in which a benchmark keeps its stores
# and data (default: memory), `where`, its description for tables, and `rest`, the other arguments.
bench_place() {
    place=/dev/shm rest=()
    [ -w "$place" ] || place=/var/tmp
    while [ $# -gt 0 ]; do
        case $1 in
            --store) place=${2:?--store takes a directory}; shift ;;
            --store=*) place=${1#*=} ;;
            *) rest+=("$1") ;;
        esac
        shift
    done
    mkdir -p "$place" || die "$place cannot be used" "name another directory with --store"
    place=$(cd "$place" && pwd)
    case $(stat -f -c %T "$place") in
        tmpfs | ramfs) where="in memory ($place)" ;;
        *) where="on $(df --output=fstype "$place" | tail -1) ($place)" ;;
    esac
}
