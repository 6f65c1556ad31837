# Sourced by fleet-vllm.sh and fleet-skyrl.sh: a Python environment with a package from PyPI. Several GB.

# The first Python of at least 3.VERSION.
find_python() {
  for python in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if "$python" -c "import sys; sys.exit(sys.version_info < (3, $1))" 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "no Python of at least 3.$1 was found; set PYTHON" >&2
  return 1
}

# make_environment DIRECTORY MINOR: an empty environment with uv, unless it is there.
make_environment() {
  if [ ! -x "$1/bin/uv" ]; then
    "$(find_python "$2")" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check "uv>=0.9"
  fi
}

# install DIRECTORY PACKAGES...
install() {
  local directory=$1
  shift
  "$directory/bin/uv" pip install --quiet --python "$directory/bin/python" "$@"
}

# What makes a directory of safetensors of a GGUF file (gguf_to_hf.py) needs these, besides torch and transformers.
CONVERTER="gguf accelerate"
