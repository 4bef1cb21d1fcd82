#!/usr/bin/env bash
# Format, layer rules and clang-tidy on what changed against origin or the last commit.
# Usage: cmake/check.sh BUILD_DIR   (needs clang-format and clang-tidy 14)
set -uo pipefail
cd "$(dirname "$0")/.."
build=${1:-build}
failed=0
complain() { echo "$1"; failed=1; }

sources=$(git ls-files --cached --others --exclude-standard '*.h' '*.cpp' '*.cu')

if command -v clang-format >/dev/null; then
  # shellcheck disable=SC2086
  bad=$(clang-format --dry-run $sources 2>&1 | grep -oE '^[^:]+' | sort -u)
  [ -z "$bad" ] || complain "format: run \`make format\` for
$bad"
else
  complain "format: clang-format is missing (apt-get install clang-format)"
fi

# A folder includes only what stands below it (docs/architecture.md).
layer() {  # layer FOLDER PATTERN_OF_FORBIDDEN_INCLUDES
  found=$(git grep -nE "^ *# *include *[<\"]($2)" -- "$1/*.h" "$1/*.cpp" "$1/*.cu")
  [ -z "$found" ] || complain "layers: $1 includes what stands above it
$found"
}
torch='ATen|c10|torch'
layer core "$torch|kernels/|data/|adapters/|train/"
layer kernels "$torch|core/|data/|adapters/|train/"
layer data "$torch|kernels/|adapters/|train/"
layer adapters "$torch|train/"

unfinished=$(git grep -nIwE 'TODO|FIXME|XXX' -- '*.h' '*.cpp' '*.cu' '*.sh' ':!cmake/check.sh' ':!tests' ':!examples' ':!data/curate')
[ -z "$unfinished" ] || complain "unfinished:
$unfinished"

if command -v clang-tidy >/dev/null && [ -f "$build/compile_commands.json" ]; then
  changed=$( (git diff --name-only HEAD; git diff --name-only HEAD~1 2>/dev/null) | grep -E '^(core|data|adapters|train)/.*\.cpp$' | sort -u)
  for file in $changed; do
    [ -f "$file" ] || continue
    # It ends with 1 where a finding is an error, so its findings decide, not its status.
    found=$(clang-tidy -p "$build" --quiet "$file" 2>/dev/null | grep -E 'warning:|error:')
    [ -z "$found" ] || complain "$found"
  done
fi

[ $failed = 0 ] && echo "check: format, layers and tidy are clean"
exit $failed
