#!/usr/bin/env bash
# Installs what graft needs and does not find. Usage: cmake/setup.sh build|test|peers
#
# Says first what it will install, how large that is and how long it takes. A second call installs
# only what is missing. Debian 12 is proven in CI; Ubuntu 22.04 and 24.04 have the same package
# names but nobody has run it there yet.
set -euo pipefail
cd "$(dirname "$0")/.."
goal=${1:-build}

# Package and what it is for; keep in step with cmake/GraftDependencies.cmake.
packages=(
  g++                  # C++20 compiler
  cmake ninja-build    # build
  libhdf5-dev          # token store
  libyaml-cpp-dev      # configs
  libsimdjson-dev      # JSON
  libre2-dev           # phrases and personal data
  libpcre2-dev         # regular expressions of tokenizers
  libutf8proc-dev      # Unicode
  libxxhash-dev        # fast digests
  libssl-dev           # SHA-256
  libboost-context-dev # fibers of the emulated device
  python3 python3-pip  # only to unpack LibTorch's wheels
)
if [ "$goal" = test ]; then packages+=(catch2); fi
if [ "$goal" = peers ]; then
  packages+=(
    python3-venv
    libdnnl-dev # oneDNN, beside graft's matrix product in `graft bench kernels`
  )
fi

stop() { printf 'error: %s\n  fix: %s\n' "$1" "$2" >&2; exit "${3:-2}"; }

missing=()
for package in "${packages[@]}"; do
  case $package in  # a tool that is on PATH already need not come from the distribution
    g++) command -v g++ >/dev/null && continue ;;
    cmake) command -v cmake >/dev/null && continue ;;
    ninja-build) command -v ninja >/dev/null && continue ;;
    python3) command -v python3 >/dev/null && continue ;;
    python3-pip) python3 -m pip --version >/dev/null 2>&1 && continue ;;
    python3-venv) python3 -m venv --help >/dev/null 2>&1 && python3 -c 'import ensurepip' 2>/dev/null && continue ;;
  esac
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
    missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null ||
    stop "this system has no apt-get" "install the packages named in cmake/setup.sh by hand"
  install="apt-get install -y --no-install-recommends ${missing[*]}"
  if [ "$(id -u)" = 0 ]; then
    as_root=""
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo"
  elif command -v sudo >/dev/null && [ -t 0 ]; then
    as_root="sudo"
  else
    stop "${#missing[@]} system packages are missing and this user cannot install them" \
      "run once as root: apt-get update && $install"
  fi
  echo "setup: installing ${#missing[@]} system packages (at most 450 MB, 1 to 3 minutes): ${missing[*]}"
  mkdir -p .deps
  log=.deps/setup.log
  export DEBIAN_FRONTEND=noninteractive
  if ! { $as_root apt-get update && $as_root $install; } >"$log" 2>&1; then
    stop "the package installation failed: $(grep -m1 '^E:' "$log" || echo "see $log")" \
      "offline, or a proxy that apt does not know? correct that and run the same command again ($log)" 74
  fi
fi

has_torch() {
  for place in "${GRAFT_LIBTORCH:-}" "${GRAFT_LIBTORCH:-}/torch" .deps/libtorch/torch; do
    [ -e "$place/lib/libtorch_cpu.so" ] && [ -e "$place/include/ATen/core/Tensor.h" ] && return 0
  done
  root=$(python3 -c "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')" 2>/dev/null)
  [ -n "$root" ] && [ -e "$root/lib/libtorch_cpu.so" ]
}

if ! has_torch; then
  echo "setup: installing LibTorch 2.11 into .deps/libtorch (600 MB to download, 1.2 GB on disk, about 1 minute)"
  rm -rf .deps/libtorch.part
  mkdir -p .deps
  # Three wheels instead of the 4.6 GB that torch asks for: the CPU side needs no more.
  if ! python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
      --no-deps --no-compile --target .deps/libtorch.part \
      torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 >.deps/setup.log 2>&1; then
    stop "the download of LibTorch failed (offline, or a proxy that pip does not know? see .deps/setup.log)" \
      "correct that and run the same command again, or set GRAFT_LIBTORCH to a LibTorch 2.11" 74
  fi
  mv .deps/libtorch.part .deps/libtorch
fi

# Headers only, where CUDA kernels are compiled: cmake/GraftCudnn.cmake.
nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
if [ -x "$nvcc" ] && [ ! -e .deps/cudnn_frontend/include/cudnn_frontend.h ]; then
  echo "setup: installing the headers of cuDNN's frontend into .deps/cudnn_frontend (12 MB to download, 4 MB on disk)"
  part=.deps/cudnn_frontend.part
  rm -rf $part .deps/cudnn_frontend
  if python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
      --no-deps --no-compile --target $part nvidia-cudnn-frontend==1.32.0 >.deps/setup.log 2>&1; then
    mkdir -p .deps/cudnn_frontend
    mv $part/include $part/*.dist-info/licenses .deps/cudnn_frontend/
    rm -rf $part
  else
    echo "setup: that failed (see .deps/setup.log): graft is built without cuDNN's attention, a GPU's steps take longer"
  fi
fi

if [ "$goal" = peers ] && [ ! -e .deps/peers/.complete ]; then
  echo "setup: installing the reference implementations into .deps/peers (about 3 GB to download, 6 GB on disk, 2 to 4 minutes)"
  rm -rf .deps/peers
  python3 -m venv .deps/peers
  if ! .deps/peers/bin/pip install --quiet --disable-pip-version-check \
      -r tests/peers/requirements.txt >.deps/setup.log 2>&1; then
    stop "the download of the reference implementations failed (see .deps/setup.log)" \
      "run the same command again" 74
  fi
  touch .deps/peers/.complete
fi
