# shellcheck shell=bash
# What the host itself must offer, apart from installed packages. Sourced by setup.sh.

# Everything read from the host goes through this prefix, so that the refusals can be tested on a
# host that has nothing to refuse.
readonly HOST_ROOT=${OBSERVER_SETUP_HOST_ROOT:-}

check_machine() {
    local machine kernel major minor
    [ "$(uname -s)" = Linux ] || die "$EXIT_HOST" "this is $(uname -s); observer watches the Linux kernel only"
    machine=${OBSERVER_SETUP_MACHINE:-$(uname -m)}
    [ "$machine" = x86_64 ] ||
        die "$EXIT_HOST" "machine type $machine is not supported; run observer on an x86_64 host"
    kernel=${OBSERVER_SETUP_KERNEL:-$(uname -r)}
    IFS=. read -r major minor _ <<<"$kernel"
    minor=${minor%%[!0-9]*}
    if [ "$major" -lt 5 ] || { [ "$major" -eq 5 ] && [ "${minor:-0}" -lt 12 ]; }; then
        die "$EXIT_HOST" "kernel $kernel lacks atomic BPF instructions; run 5.12 or newer"
    fi
}

check_btf() {
    [ -r "$HOST_ROOT/sys/kernel/btf/vmlinux" ] ||
        die "$EXIT_BTF" "no BTF at /sys/kernel/btf/vmlinux; run a kernel built with CONFIG_DEBUG_INFO_BTF=y"
}

# Lockdown in confidentiality mode forbids BPF programs to read kernel memory. securityfs may not
# be mounted; the kernel's command line then still shows what was requested at boot.
check_lockdown() {
    local state=''
    if [ -r "$HOST_ROOT/sys/kernel/security/lockdown" ]; then
        state=$(cat "$HOST_ROOT/sys/kernel/security/lockdown")
    elif grep -qw 'lockdown=confidentiality' "$HOST_ROOT/proc/cmdline" 2>/dev/null; then
        state='[confidentiality]'
    fi
    case $state in
    *'[confidentiality]'*)
        die "$EXIT_LOCKDOWN" "kernel lockdown is in confidentiality mode, which refuses BPF reads of kernel memory; boot with lockdown=integrity or none"
        ;;
    esac
}
