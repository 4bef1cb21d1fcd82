#!/usr/bin/env bash
# The logic of gpu_check.sh without a GPU: the emulated device, and a compute-sanitizer that says what
# this test wants. Usage: gpu_check_test.sh BUILD_DIR
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
export GRAFT_BUILD=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# expect CODE TEXT NAME [ARGUMENTS…]: the script's exit code, and a text that its output holds.
expect() {
  local code=$1 text=$2 name=$3 got=0
  shift 3
  "$here/gpu_check.sh" --device emu --only rope --out "$work/now.json" "$@" > "$work/output" 2>&1 || got=$?
  if [ "$got" != "$code" ] || ! grep -qF -- "$text" "$work/output"; then
    echo "$name: exit $got, expected $code and \"$text\":"
    cat "$work/output"
    failed=1
  fi
}

# A sanitizer that runs the program behind its options.
mkdir "$work/bin"
sanitizer() {
  cat > "$work/bin/compute-sanitizer" <<S
#!/bin/sh
shift 2
"\$@" && echo "========= $1"
S
  chmod +x "$work/bin/compute-sanitizer"
}
export PATH=$work/bin:$PATH

sanitizer "ERROR SUMMARY: 0 errors"
expect 0 "synccheck: ERROR SUMMARY: 0 errors" "all passes" --kept "$work/nothing.json"
cp "$work/now.json" "$work/kept.json"
expect 0 "keep $work/now.json as" "nothing kept" --kept "$work/nothing.json"

# Twice the percentage was kept: a regression. A hundredth: none.
sed -E 's/("percent": )[0-9.e+-]+/\11e9/' "$work/kept.json" > "$work/faster.json"
sed -E 's/("percent": )[0-9.e+-]+/\11e-12/' "$work/kept.json" > "$work/slower.json"
expect 1 "rope, bf16:" "a regression" --kept "$work/faster.json"
expect 0 "no kernel is slower" "no regression" --kept "$work/slower.json"

sanitizer "ERROR SUMMARY: 3 errors"
expect 1 "memcheck found errors" "errors of a tool" --kept "$work/nothing.json"

[ $failed = 0 ] && echo "gpu_check.sh: passes, regressions and errors are told apart"
exit $failed
