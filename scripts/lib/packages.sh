# shellcheck shell=bash
# Packages of the distribution: what is missing, and installing it. Sourced by setup.sh.

packages_refreshed=no

have_package() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Debian, Ubuntu, or one that says it is like them.
is_supported_distribution() {
    local ids
    [ -r "$HOST_ROOT/etc/os-release" ] || return 1
    # shellcheck disable=SC1091  # the host's file
    ids=$(. "$HOST_ROOT/etc/os-release" && echo "${ID:-} ${ID_LIKE:-}")
    case " $ids " in
    *' debian '* | *' ubuntu '*) command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ;;
    *) return 1 ;;
    esac
}

# require_install WHAT: exits unless this user can install packages on this host.
require_install() {
    local name
    if ! is_supported_distribution; then
        # shellcheck disable=SC1091
        name=$(. "$HOST_ROOT/etc/os-release" 2>/dev/null && echo "${PRETTY_NAME:-$ID}") || name=
        die "$EXIT_DISTRIBUTION" "cannot install $1 on ${name:-this distribution}: only Debian and Ubuntu are supported; install the same by hand (CONTRIBUTING.md lists it) and run this again"
    fi
    [ "$(id -u)" -eq 0 ] && return
    command -v sudo >/dev/null ||
        die "$EXIT_ROOT" "cannot install $1: not root and no sudo here; run this as root"
    sudo -n true 2>/dev/null ||
        die "$EXIT_ROOT" "cannot install $1: not root, and sudo wants a password; run 'sudo -v' first, or run this as root"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

# A failed refresh is reported and does not end the set-up: the existing lists may be enough.
refresh_packages() {
    [ "$packages_refreshed" = no ] || return 0
    packages_refreshed=yes
    quietly 'apt-get update' as_root apt-get -q update ||
        say 'package lists could not be refreshed; going on with those already here'
}

# The version that would be installed, or nothing.
package_candidate() {
    apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p' | grep -vx '(none)'
}

# install_packages WHY PACKAGE...: installs those that are missing, and says why.
install_packages() {
    local why=$1 package missing=()
    shift
    for package in "$@"; do
        have_package "$package" || missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    require_install "${missing[*]}"
    refresh_packages
    say "installing ${missing[*]} ($why)"
    quietly 'apt-get install' as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends install "${missing[@]}" ||
        die "$EXIT_PACKAGES" "could not install ${missing[*]} ($why); see the lines above"
}

# install_idle WHY PACKAGE...: as install_packages, for packages that bring a service: it is
# neither started now nor at boot, because only the tests use the program.
install_idle() {
    local why=$1 package fresh=() policy=$HOST_ROOT/usr/sbin/policy-rc.d own_policy=no
    shift
    for package in "$@"; do
        have_package "$package" || fresh+=("$package")
    done
    [ "${#fresh[@]}" -gt 0 ] || return 0
    require_install "${fresh[*]}"
    # An existing policy of this host's administrator stays in force.
    if [ ! -e "$policy" ]; then
        own_policy=yes
        # shellcheck disable=SC2064  # expanded now on purpose
        trap "as_root rm -f '$policy'" EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    install_packages "$why" "${fresh[@]}"
    if [ -d /run/systemd/system ]; then
        for package in "${fresh[@]}"; do
            as_root systemctl disable --now "${package%-light}.service" >/dev/null 2>&1 || true
        done
    fi
    if [ "$own_policy" = yes ]; then
        as_root rm -f "$policy"
        trap - EXIT
    fi
}
