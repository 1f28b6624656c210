# shellcheck shell=bash
# Messages of set-up for the user, and its exit codes. Sourced by setup.sh.

# Exit codes of set-up; docs: README.md, "When set-up cannot go on".
# shellcheck disable=SC2034  # used by the files that source this one
readonly EXIT_ROOT=10 EXIT_DISTRIBUTION=11 EXIT_BTF=12 EXIT_LOCKDOWN=13 EXIT_RUSTUP=14 \
    EXIT_TOOLCHAIN=15 EXIT_PACKAGES=16 EXIT_LINKER=17 EXIT_HOST=18

say() { printf 'setup: %s\n' "$*"; }

# die CODE MESSAGE: one line, and out.
die() {
    local code=$1
    shift
    printf 'setup: error: %s\n' "$*" >&2
    exit "$code"
}

# quietly LABEL COMMAND...: runs COMMAND, shows its output only when it fails.
quietly() {
    local label=$1 log status=0
    shift
    log=$(mktemp)
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne 0 ]; then
        printf 'setup: %s failed (status %s); its last lines:\n' "$label" "$status" >&2
        tail -n 15 "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}
