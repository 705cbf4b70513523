# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
#
# common.sh: what packaging/libfuse, packaging/test and packaging/quickstart share. Sourced, never run.
#
# Root installs directly. Anyone else needs root only for apt-get, through sudo where there is one;
# otherwise the command root has to run is printed. Nothing is asked of apt when nothing is missing.

source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
build_dir=${LARDER_BUILD_DIR:-$source_dir/build}

# Administrators' tools (modprobe, mount helpers) are not in an ordinary user's PATH on Debian.
PATH=$PATH:/usr/sbin:/sbin

say()
{
    printf '%s: %s\n' "${0##*/}" "$*"
}

warn()
{
    say "$*" >&2
}

die()
{
    warn "$*"
    exit 1
}

is_root()
{
    [ "$(id -u)" -eq 0 ]
}

# Not simply `python3`: a version manager's may come first in PATH and have no pytest.
find_pytest_python()
{
    local python

    for python in /usr/bin/python3 python3; do
        if "$python" -c 'import pytest' >/dev/null 2>&1; then
            printf '%s\n' "$python"
            return 0
        fi
    done
    return 1
}

is_there()
{
    local probe=$1 what=${1#*:}

    case $probe in
    cmd:*) command -v "$what" >/dev/null 2>&1 ;;
    pc:*) pkg-config --exists "$what" >/dev/null 2>&1 ;;
    py:*) find_pytest_python >/dev/null ;;
    file:*) [ -e "$what" ] ;;
    *) die "packaging/packages: '$probe': unknown way to look for a package" ;;
    esac
}

# missing_packages GROUP...
missing_packages()
{
    local group package probe

    while read -r group package probe; do
        case " $* " in
        *" $group "*) is_there "$probe" || printf '%s\n' "$package" ;;
        esac
    done <"$source_dir/packaging/packages"
}

# run_as_root "WHY" COMMAND...; never returns when it cannot
run_as_root()
{
    local why=$1
    shift

    if is_root; then
        "$@"
    elif command -v sudo >/dev/null 2>&1 && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
        say "$why; asking sudo for: $*"
        sudo "$@"
    else
        die "$why, which needs root: have root run
    apt-get update && apt-get install --no-install-recommends ${missing[*]}
and start this again"
    fi
}

apt_install()
{
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120)
    local install=("${apt[@]}" install -y --no-install-recommends "${missing[@]}")
    local why="installing ${missing[*]}" updated=false

    # An index that is absent, or does not know a package, is fetched first; one that is merely old shows in a
    # failed download. A source of the machine's that cannot be reached is none of our business: what decides
    # is whether the packages can be installed.
    if ! apt-get -qq --simulate install "${missing[@]}" >/dev/null 2>&1; then
        run_as_root "$why" "${apt[@]}" update || warn "apt-get update: not every source answered; going on"
        updated=true
    fi
    if run_as_root "$why" "${install[@]}"; then
        return 0
    fi
    if ! $updated; then
        run_as_root "$why" "${apt[@]}" update || warn "apt-get update: not every source answered; going on"
        run_as_root "$why" "${install[@]}" && return 0
    fi
    die "apt-get could not install ${missing[*]}: its reason is above"
}

# install_missing GROUP...
install_missing()
{
    local missing

    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -eq 0 ] && return 0
    command -v apt-get >/dev/null 2>&1 ||
        die "missing: ${missing[*]} (Debian's names), and there is no apt-get here: install them in this system's way"
    apt_install

    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -eq 0 ] || die "still missing after apt-get installed them: ${missing[*]}"
}

# The device is there on any ordinary machine; on a bare one the module may wait to be loaded.
ensure_fuse_device()
{
    [ -c /dev/fuse ] && return 0
    if is_root; then
        modprobe fuse 2>/dev/null || true
        [ -c /dev/fuse ] && return 0
    fi
    return 1
}

# meson talks much and only its summary matters, until it fails.
configure()
{
    local log

    log=$(mktemp)
    if ! meson setup "$@" "$build_dir" "$source_dir" >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        die "$build_dir: meson could not configure it: the reason is above; if it is the directory itself, remove it"
    fi
    sed -n '/^larder /,/^Found ninja/{/^Found ninja/!p}' "$log"
    rm -f "$log"
}

# build anew|as-is: `anew` looks for new files too, tests are found by name when meson configures
build()
{
    "$source_dir/packaging/libfuse"
    if ! [ -f "$build_dir/build.ninja" ]; then
        configure
    elif [ "$1" = anew ]; then
        configure --reconfigure
    fi
    ninja -C "$build_dir"
}
