#!/usr/bin/env bash
# Every line that the README shows of `make demo` must be in the demo's output, to the letter; lines
# with timings are compared without their numbers. Usage: cmake/readme_check.sh DEMO_LOG
set -euo pipefail
cd "$(dirname "$0")/.."
log=$1
failed=0
# A duration reads "15.0 s", "1 min 17 s" or "1 h 02 min" (core/progress.cpp).
plain() { sed -E 's/([0-9]+ h [0-9]+ min|([0-9]+ min )?[0-9.]+ s) |[0-9,]+ tok\/s/# /g; s/ +$//'; }
while IFS= read -r line; do
  case $line in '' | '```' | '…' | '# '*) continue ;; esac
  grep -qxF -- "$(plain <<< "$line")" <(plain < "$log") || { echo "not in the demo's output: $line"; failed=1; }
done < <(sed -n '/^## What `make demo` prints/,/^## A run is one file/p' README.md | sed -n '/^```$/,/^```$/p')
[ $failed = 0 ] && echo "README: what it shows of the demo is what the demo prints"
exit $failed
