#!/usr/bin/env bash
# Installs SkyRL and JAX for CPUs from PyPI into .tools/skyrl (SKYRL_ENV names another directory; five GB), and trains
# on a running server of it through its Tinker API: engines/fleet_skyrl.py says what is checked, and --help its options.
# Needs Python 3.12 or newer; PYTHON names one.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/engines/environment.sh
directory=${SKYRL_ENV:-.tools/skyrl}

if [ ! -e "$directory/.ready" ]; then
  make_environment "$directory" 12
  # aiohttp is imported by its server, and is not among the packages that it asks for.
  # shellcheck disable=SC2086
  install "$directory" "skyrl[jax,tinker]==0.4.0" torch==2.13.0 aiohttp $CONVERTER
  touch "$directory/.ready"
fi
exec python3 scripts/engines/fleet_skyrl.py --python "$directory/bin/python" "$@"
