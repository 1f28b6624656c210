#!/usr/bin/env bash
# Makes this host able to build and run observer, and says what it installs and why. Idempotent:
# existing parts are left alone, quickly and silently. Non-interactive.
#
# usage: scripts/setup.sh [--check] [--with-tests] [--with-bench]
#   --check       look at the host only: machine, kernel, BTF, lockdown; install nothing
#   --with-tests  also what `cargo xtask test` uses
#   --with-bench  also the observers that `cargo xtask bench` compares with, services and load generators
set -euo pipefail

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly PROJECT
# shellcheck source=lib/say.sh
. "$PROJECT/scripts/lib/say.sh"
# shellcheck source=lib/host.sh
. "$PROJECT/scripts/lib/host.sh"
# shellcheck source=lib/packages.sh
. "$PROJECT/scripts/lib/packages.sh"
# shellcheck source=lib/toolchain.sh
. "$PROJECT/scripts/lib/toolchain.sh"

check_only=no with_tests=no with_bench=no
for argument in "$@"; do
    case $argument in
    --check) check_only=yes ;;
    --with-tests) with_tests=yes ;;
    --with-bench) with_bench=yes ;;
    -h | --help)
        sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    *) die 2 "unknown argument $argument; see --help" ;;
    esac
done

# rustup's toolchain of the calling cargo would override the ones named here, and what belongs to
# a build in progress must not leak into another.
unset RUSTUP_TOOLCHAIN RUSTC RUSTC_WRAPPER RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_TARGET_DIR

check_machine
check_btf
check_lockdown
[ "$check_only" = no ] || exit 0

require_rustup
setup_stable
setup_bpf_toolchain
setup_linker
if [ "$with_tests" = yes ]; then
    setup_bpf_clippy
    setup_deny
    install_packages 'a load generator and a system call tracer: the tests compare with them' hey strace
    install_packages 'other kernels are tested in virtual machines, made of these' \
        qemu-system-x86 e2fsprogs iproute2 kmod util-linux xz-utils
    install_idle 'real parts that the tests put observer beside' nginx-light prometheus redis-server
    install_packages 'a compiler of Go: drills play a server of its library' golang-go
fi
if [ "$with_bench" = yes ]; then
    install_packages 'observers that the benchmark compares with, and load generators' bpftrace libbpf-tools wrk redis-tools
    install_idle 'services that the benchmark puts observer beside' nginx-light redis-server
    # Not every distribution has it under this name; the benchmark leaves it out then.
    [ -z "$(package_candidate linux-perf)" ] || install_packages 'one more to compare with' linux-perf
fi
say "ready: BPF programs are built by toolchain '$bpf_toolchain', linked by $(command -v bpf-linker)"
