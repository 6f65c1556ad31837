#!/usr/bin/env bash
# Builds a wheel and a Debian package from one release binary, and installs both, and with `cargo install`,
# where nothing of this machine is: a new virtual environment, and a Debian root of its own without a network.
#
#   scripts/make-packages.sh [build|check|check-wheel|check-deb|all]
#
# PROFILE=dev packs an unoptimised binary, to try the packing itself.
# MODEL is the model that `realign demo` starts with [models/SmolLM2-135M-Instruct.Q4_1.gguf]. The root comes
# from debootstrap, needs root and Debian's archive, and is kept; REALIGN_SKIP_ROOT=1 leaves that check out.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
out=$target/packages
tools=$target/tools
model=${MODEL:-models/SmolLM2-135M-Instruct.Q4_1.gguf}
cargo=${CARGO:-cargo}
profile=${PROFILE:-release}
mkdir -p "$out"

say() { printf '== %s\n' "$*"; }

build_tools() {
    if [ ! -x "$tools/venv/bin/maturin" ]; then
        python3 -m venv "$tools/venv"
        "$tools/venv/bin/pip" install --quiet --disable-pip-version-check 'maturin>=1.9,<2'
    fi
    # Without optimisation: it is built once and packs one file.
    [ -x "$tools/bin/cargo-deb" ] ||
        CARGO_TARGET_DIR=$target/tools-build $cargo install --quiet --debug --locked --root "$tools" cargo-deb --version '^3'
}

build() {
    build_tools
    say "binary"
    $cargo build --profile "$profile" --locked --bin realign
    say "wheel"
    rm -f "$out"/*.whl "$out"/*.deb
    # The same profile and features as above, so nothing is compiled again.
    (cd packaging/wheel && CARGO_TARGET_DIR=$target "$tools/venv/bin/maturin" build --profile "$profile" --locked --out "$out")
    say "Debian package"
    # The unit of the repository runs /usr/local/bin/realign, where an administrator puts it by hand.
    sed 's|/usr/local/bin/realign|/usr/bin/realign|' deploy/systemd/realign.service > packaging/debian/realign.service
    CARGO_TARGET_DIR=$target "$tools/bin/cargo-deb" --profile "$profile" --no-build --output "$out" --quiet
    rm packaging/debian/realign.service
    ls -l "$out"
}

# The program starts, knows its version, makes a directory that the doctor accepts, and tells the
# beginning of the demo: a server that answers.
try() {
    local run=$1 work=$2
    $run --version
    (cd "$work" && $run init try >/dev/null && cd try && $run policy test >/dev/null) && echo "init and policy test work"
    if [ -f "$work/model.gguf" ]; then
        (cd "$work/try" && $run doctor --model "$work/model.gguf" >"$work/doctor") || { cat "$work/doctor"; return 1; }
        echo "doctor: $(tail -n 1 "$work/doctor")"
        # Without time for the realignment it ends with 1.
        $run demo --model "$work/model.gguf" --dir "$work/demo" --limit 0 >"$work/told" || true
        grep -q 'answer: .' "$work/told" || { cat "$work/told"; return 1; }
        echo "demo: the server started and answered"
    else
        echo "demo: SKIPPED, $model is not there"
    fi
}

check_wheel() {
    local work offline=
    work=$(mktemp -d)
    # Without a network there is no loopback either, until it is switched on.
    if unshare --net true 2>/dev/null; then
        offline="unshare --net python3 scripts/with-loopback.py"
    fi
    say "wheel, in a new virtual environment without an index${offline:+, and without a network}"
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-index "$out"/realign-*.whl
    [ ! -f "$model" ] || cp "$model" "$work/model.gguf"
    declare -f try >"$work/try.sh"
    model=$model $offline bash -euo pipefail -c ". $work/try.sh; try $work/venv/bin/realign $work"
    rm -rf "$work"
}

check_cargo() {
    say "cargo install, from the sources"
    CARGO_TARGET_DIR=$target $cargo install --quiet --profile "$profile" --locked --path . --root "$out/cargo" --force --no-track
    "$out/cargo/bin/realign" --version
    rm -rf "$out/cargo"
}

check_deb() {
    if [ "${REALIGN_SKIP_ROOT:-}" = 1 ]; then
        echo "Debian package: SKIPPED, REALIGN_SKIP_ROOT=1"
        return
    fi
    say "Debian package, in a root of its own without a network"
    local base=$target/tools/bookworm root=$target/tools/root
    [ -f "$base/.ready" ] || {
        rm -rf "$base"
        debootstrap --variant=minbase bookworm "$base" >"$target/tools/debootstrap.log"
        touch "$base/.ready"
    }
    rm -rf "$root"
    cp -a "$base" "$root"
    cp "$out"/realign_*.deb "$root/tmp/"
    inside="unshare --net --mount --pid --fork --mount-proc=$root/proc chroot"
    $inside "$root" sh -c 'dpkg -i /tmp/realign_*.deb && id realign && test -f /lib/systemd/system/realign.service -o -f /usr/lib/systemd/system/realign.service'
    mkdir -p "$root/var/lib/realign/try"
    [ ! -f "$model" ] || cp "$model" "$root/var/lib/realign/try/model.gguf"
    chroot "$root" chown -R realign: /var/lib/realign/try
    declare -f try >"$root/tmp/try.sh"
    # Without a network there is no loopback either, until it is switched on.
    unshare --net --mount --pid --fork --mount-proc="$root/proc" python3 scripts/with-loopback.py \
        chroot --userspec=realign:realign "$root" bash -c 'export HOME=/var/lib/realign model=model.gguf; . /tmp/try.sh; try realign /var/lib/realign/try'
    say "removing it keeps what it served"
    $inside "$root" sh -c 'dpkg --remove realign && test -d /var/lib/realign && ! test -e /usr/bin/realign'
    rm -rf "$root"
}

case $what in
    build) build ;;
    check) check_wheel; check_cargo; check_deb ;;
    check-deb) check_deb ;;
    check-wheel) check_wheel ;;
    all) build; check_wheel; check_cargo; check_deb ;;
    *) echo "usage: scripts/make-packages.sh [build|check|check-wheel|check-deb|all]" >&2; exit 2 ;;
esac
