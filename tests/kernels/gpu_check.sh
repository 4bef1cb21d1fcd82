#!/usr/bin/env bash
# What has to hold on a GPU: every operator's results, attention of the libraries, compute-sanitizer's
# four tools, and speed.
# Runs from a build (`make gpu-check`) and from the bundle of `make dist`, which needs no toolchain.
# Usage: gpu_check.sh [--device cuda|emu] [--only CASE] [--out FILE] [--kept FILE]
#   --device emu  rehearses the script where there is no GPU; the speed is then of tiny shapes
#   --out         the JSON to write (default gpu.json); keep it as docs/measurements/gpu-NAME.json
#   --kept        the JSON to compare with (default: that of this device in docs/measurements)
# Exit 0: all passed. 1: a result differs, a tool found an error, a kernel lost more than 8 % of its
# kept percentage. 4: no GPU.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
device=cuda only=() out=gpu.json kept=
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2 ;;
    --only) only=(--only "$2") ;;
    --out) out=$2 ;;
    --kept) kept=$2 ;;
    *) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
for place in "$here" "$here/../../build/bin" "${GRAFT_BUILD:-build}/bin"; do
  [ -x "$place/graft-kernel-check" ] && check=$place/graft-kernel-check
done
[ -n "${check:-}" ] || { echo "error: graft-kernel-check not found beside $here" >&2; exit 2; }
for place in "$here/../lib" "$here/../../docs" "$here/../docs"; do
  [ -d "$place/measurements" ] && measurements=$place/measurements
done
export LD_LIBRARY_PATH="$here/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
quick=()
[ "$device" = cuda ] || quick=(--quick)
failed=0
complain() { echo "FAILED: $1"; failed=1; }

echo "== results"
code=0
"$check" cases --device "$device" "${quick[@]}" "${only[@]}" || code=$?
[ $code = 4 ] && { echo "gpu-check: NOT RUN, there is no GPU"; exit 4; }
[ $code = 0 ] || complain "results (exit $code)"

if [ "$device" = cuda ] && [ ${#only[@]} = 0 ]; then
  echo "== attention of cuDNN and LibTorch"
  tests=$(dirname "$check")/test_gpu
  if [ ! -x "$tests" ] || ldd "$tests" | grep -q 'not found'; then
    echo "NOT RUN: test_gpu needs LibTorch's lib folder in LD_LIBRARY_PATH"
  else
    "$tests" || complain "attention (exit $?)"
  fi
fi

echo "== compute-sanitizer"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1 || true)
if [ -z "$sanitizer" ]; then
  echo "NOT RUN: no compute-sanitizer in PATH or /usr/local/cuda"
else
  for tool in memcheck racecheck initcheck synccheck; do
    log=$(mktemp)
    "$sanitizer" --tool "$tool" "$check" cases --device "$device" --quick "${only[@]}" > "$log" 2>&1 ||
      complain "$tool (exit $?)"
    grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | sed "s/^=* */$tool: /" || echo "$tool: no summary"
    grep -qE '(ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)' "$log" || complain "$tool found errors (see $log)"
  done
fi

echo "== speed"
"$check" bench --device "$device" "${quick[@]}" "${only[@]}" --out "$out" || complain "bench (exit $?)"
if [ -z "$kept" ] && [ -n "${measurements:-}" ]; then
  name=$(sed -n 's/^ *"device": "\(.*\)",$/\1/p' "$out" | tr 'A-Z ' 'a-z-')
  kept=$measurements/gpu-$name.json
fi
if [ -e "$kept" ]; then
  "$check" compare "$out" "$kept" || complain "speed against $kept"
else
  echo "nothing is kept for this device: keep $out as ${kept:-docs/measurements/gpu-NAME.json}"
fi
[ $failed = 0 ] && echo "gpu-check: passed" || echo "gpu-check: FAILED"
exit $failed
