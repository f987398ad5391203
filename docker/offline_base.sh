#!/bin/sh
# Make a base image with Debian packages alone, where no image registry can be reached:
#
#     docker/offline_base.sh [TAG] [MIRROR]
#
# Needs root and debootstrap. The mirror defaults to the one that this machine's apt uses. Afterwards:
#
#     docker build -f docker/Dockerfile --build-arg BASE_IMAGE=TAG -t pacbench .
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # `su` leaves root a user's

tag=${1:-pacbench-base:bookworm}
suite=bookworm
mirror=${2:-$(sed -n 's/^URIs: *//p; s/^deb \(http[^ ]*\).*/\1/p' \
    /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null | head -n 1)}
mirror=${mirror:-http://deb.debian.org/debian}
packages=python3,python3-venv,iproute2,iputils-ping,ca-certificates

fail() {
    echo "offline_base.sh: $1" >&2
    exit 2
}

[ "$(id -u)" = 0 ] || fail "debootstrap needs root: run it by sudo"
command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
docker info >/dev/null 2>&1 || fail "the container engine does not answer: start it (pacbench doctor says more)"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT INT TERM
debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" >"$root.log" 2>&1 ||
    fail "debootstrap failed: $(tail -n 1 "$root.log") (all of it: $root.log)"
rm -f "$root.log"

# What a container never reads: it is 40 % of the image.
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* \
    "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/usr/share/info/*
tar -C "$root" -c . | docker import -c 'CMD ["/bin/bash"]' - "$tag"
