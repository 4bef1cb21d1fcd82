#!/usr/bin/env bash
# Plants the faults of tests/kernels/cases_*.cpp in the CUDA sources, one at a time, and requires that
# the fault's case finds it on the emulated device: only the changed file is compiled again.
# Usage: cmake/mutants.sh BUILD_DIR [TEXT]   (TEXT: only faults whose line holds it, for example rope)
set -euo pipefail
cd "$(dirname "$0")/.."
source_dir=$PWD
build=$(cd "${1:-build}" && pwd)
only=${2:-}
check=$build/bin/graft-kernel-check
work=$build/mutants
rm -rf "$work"
mkdir -p "$work"

# The commands that ninja would run, with the object, the source and the program in other places.
command_of() { ninja -C "$build" -t commands "$1" | tail -n 1; }
link=$(command_of bin/graft-kernel-check)

one() {  # one NUMBER FILE CASE KERNEL FAULT
  local number=$1 file=$2 case=$3 kernel=$4 fault=$5 place=mutants/$1
  mkdir -p "$build/$place"
  "$check" mutate "$number" "$source_dir/kernels/$file" "$build/$place/$file"
  local object=kernels/CMakeFiles/graft_kernels.dir/$file.o compile
  compile=$(command_of "$object")
  compile=${compile//$object/$place/$file.o}
  compile=${compile/-c *kernels\/$file/-c $place/$file}
  local verdict code=0
  if ! (cd "$build" && eval "$compile" && eval "${link/ -o bin\/graft-kernel-check/ -o $place/check $place/$file.o}") \
      > "$build/$place/build.log" 2>&1; then
    verdict="NOT BUILT (see $build/$place/build.log)"
  else
    # In a shell of its own, which says nothing about a mutant that crashes.
    (OMP_NUM_THREADS=1 timeout 300 "$build/$place/check" cases --device emu --first --only "$case"
      exit $?) > "$build/$place/run.log" 2>&1 || code=$?
    [ $code = 0 ] && verdict=SURVIVED || verdict=killed
  fi
  printf '%-8s %s: %s\n' "$verdict" "$kernel" "$fault"
  rm -f "$build/$place/check" "$build/$place/$file.o"
}
export -f one command_of
export build check link source_dir

"$check" mutations | { grep -F -- "$only" || true; } > "$work/list"
[ -s "$work/list" ] || { echo "error: no planted fault holds \"$only\"" >&2; exit 2; }
# A verdict means something only where the sources as they are pass.
cut -f 3 "$work/list" | sort -u | while read -r case; do
  "$check" cases --device emu --first --only "$case" > "$work/unchanged.log" ||
    { cat "$work/unchanged.log" >&2; echo "error: \"$case\" differs without a fault" >&2; exit 2; }
done
tr '\n' '\0' < "$work/list" |
  xargs -0 -P "${JOBS:-$(nproc)}" -I{} bash -c 'IFS=$'"'\\t'"' read -r a b c d e <<< "$1"; one "$a" "$b" "$c" "$d" "$e"' _ {} |
  tee "$work/verdicts"
total=$(wc -l < "$work/list")
killed=$(grep -c '^killed' "$work/verdicts" || true)
echo "mutants: killed $killed of $total"
[ "$killed" = "$total" ]
