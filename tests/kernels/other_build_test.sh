#!/usr/bin/env bash
# A program refuses the libgraft_cuda.so of another build, and says so. Usage: other_build_test.sh CHECK LIBRARY
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/bin" "$folder/lib"
cp "$1" "$folder/bin/graft-kernel-check"
cp "$2" "$folder/lib/libgraft_cuda.so"
code=0
"$folder/bin/graft-kernel-check" cases --device cuda > "$folder/out" 2>&1 || code=$?
cat "$folder/out"
[ $code = 4 ] || { echo "exit $code instead of 4"; exit 1; }
grep -q 'libgraft_cuda.so belongs to another build of graft' "$folder/out"
