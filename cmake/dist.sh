#!/usr/bin/env bash
# dist/graft.tar.gz: programs and the libraries that a bare system lacks, found through $ORIGIN.
# LibTorch is not inside: graft-train finds it by $GRAFT_LIBTORCH, .deps, or python3's torch.
# Usage: cmake/dist.sh BUILD_DIR   (SHARED=1 adds the test data of ../shared)
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build}
stage=dist/graft
rm -rf dist
mkdir -p $stage/bin $stage/lib

# Installing rewrites the run paths to $ORIGIN/../lib.
cmake --install "$build" --prefix "$PWD/$stage" > /dev/null
rm -rf $stage/share
# The tests that have something to do on another machine, with a GPU or other instructions.
for program in test_kernels test_kernel_cases test_gpu; do
  [ ! -x "$build/bin/$program" ] || { mkdir -p $stage/tests; cp "$build/bin/$program" $stage/tests/; }
done
# What `make gpu-check` does, for a machine without a toolchain: tests/gpu_check.sh.
if [ -x "$build/bin/graft-kernel-check" ]; then
  mkdir -p $stage/tests $stage/docs
  cp "$build/bin/graft-kernel-check" tests/kernels/gpu_check.sh $stage/tests/
  cp -r docs/measurements $stage/docs/
fi
[ ! -e "$build/lib/libgraft_cuda.so" ] || cp "$build/lib/libgraft_cuda.so" $stage/lib/

# Everything that ldd names except the C library, the loader, CUDA's driver and LibTorch.
for program in $stage/bin/* $stage/tests/*; do
  [ -x "$program" ] || continue
  ldd "$program" 2>/dev/null | awk '/=> \// {print $3}' |
    grep -vE '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*|libcuda|libtorch[^/]*|libc10[^/]*|libcudart|libcupti)\.so' || true
done | sort -u | while read -r library; do cp -L "$library" $stage/lib/; done

strip --strip-unneeded $stage/bin/* $stage/lib/*.so* 2>/dev/null || true
[ ! -d $stage/tests ] || strip --strip-unneeded $stage/tests/test_* $stage/tests/graft-kernel-check 2>/dev/null || true

# LibTorch's folder is not known before the bundle is unpacked: a small script finds it.
mv $stage/bin/graft-train $stage/bin/graft-train.bin
cat > $stage/bin/graft-train <<'S'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
find_torch() {
  for place in "$GRAFT_LIBTORCH" "$GRAFT_LIBTORCH/torch" "$here/../.deps/libtorch/torch" .deps/libtorch/torch; do
    [ -e "$place/lib/libtorch_cpu.so" ] && { echo "$place/lib"; return; }
  done
  root=$(python3 -c "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')" 2>/dev/null)
  [ -n "$root" ] && [ -e "$root/lib/libtorch_cpu.so" ] && echo "$root/lib"
}
torch=$(find_torch)
if [ -z "$torch" ]; then
  echo "error: LibTorch 2.11 not found in \$GRAFT_LIBTORCH, .deps/libtorch or python3's torch" >&2
  echo "  fix: python3 -m pip install --no-deps --target .deps/libtorch torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85" >&2
  exit 2
fi
LD_LIBRARY_PATH="$here/../lib:$torch${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "$here/graft-train.bin" "$@"
S
chmod +x $stage/bin/graft-train
cat > $stage/bin/graft-env <<'S'
# Sourced by users who run test programs by hand: . bin/graft-env
export LD_LIBRARY_PATH="$(dirname "$(readlink -f "${BASH_SOURCE:-$0}")")/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
S
cp README.md LICENSE $stage/
cp -r configs examples $stage/ 2>/dev/null || true
if [ "${SHARED:-0}" = 1 ] && [ -d ../shared/data ]; then
  mkdir -p $stage/shared/data
  cp -r ../shared/data/nf4_golden.json ../shared/data/models $stage/shared/data/
fi
tar -C dist -czf dist/graft.tar.gz graft
size=$(stat -c %s dist/graft.tar.gz)
echo "dist/graft.tar.gz: $((size / 1048576)) MiB"
[ "${SHARED:-0}" = 1 ] || [ "$size" -le $((32 * 1048576)) ] || { echo "error: the bundle is over 32 MiB" >&2; exit 1; }
