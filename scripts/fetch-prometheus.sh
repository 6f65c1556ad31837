#!/bin/sh
# Makes Prometheus and promtool available to the tests without installing a service: links the system's own
# if it has them, otherwise unpacks the Debian package `prometheus`.
set -eu
cd "$(dirname "$0")/.."
dir=.tools/prometheus

give_up() {
    echo "fetch-prometheus: $1" >&2
    echo "  install prometheus and promtool, or set REALIGN_SKIP_PROMETHEUS=1 to skip these tests" >&2
    exit 1
}

rm -rf "$dir"
mkdir -p "$dir"
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    ln -s "$(command -v prometheus)" "$(command -v promtool)" "$dir/"
else
    command -v apt-get >/dev/null || give_up "this system has neither Prometheus nor apt-get"
    root=
    [ "$(id -u)" = 0 ] || root="sudo -n"
    # Package lists may be missing or outdated: they are updated only if the download fails.
    (cd "$dir" && apt-get -qq download prometheus 2>/dev/null) ||
        { $root apt-get -qq update && (cd "$dir" && apt-get -qq download prometheus); } ||
        give_up "apt-get could not download prometheus"
    dpkg-deb --extract "$dir"/prometheus_*.deb "$dir/package"
    mv "$dir"/package/usr/bin/prometheus "$dir"/package/usr/bin/promtool "$dir/"
    rm -rf "$dir"/package "$dir"/prometheus_*.deb
fi
"$dir/promtool" --version >/dev/null 2>&1 || give_up "promtool does not run here"
touch "$dir/.ready"
