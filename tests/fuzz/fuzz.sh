#!/usr/bin/env bash
# Fuzzes every target of targets.h with libFuzzer and prints edge coverage and corpus size at half
# time and at the end. Usage: fuzz.sh [--update] [SECONDS each, 120] [TARGET…]
#
# Starts from the committed corpora (tests/fuzz/corpus) and the golden files. --update merges what
# was found back into the corpora. A finding is written to build/fuzz/findings and ends with exit
# code 1. Needs clang 14 or newer with its compiler-rt (Debian: clang libclang-rt-dev).
set -euo pipefail
cd "$(dirname "$0")/../.."
update=no
if [ "${1:-}" = --update ]; then update=yes; shift; fi
seconds=${1:-120}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(chat_template gguf tokenizer_json tokenizer_model)

compiler=$(command -v clang++ || command -v clang++-14) || {
  echo "error: clang++ is missing
  fix: apt-get install clang libclang-rt-dev" >&2
  exit 2
}
build=build/fuzz
flags="-g -O1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all"
mkdir -p $build
cmake -S . -B $build -G Ninja -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_CXX_FLAGS="$flags" \
  -DCMAKE_BUILD_TYPE=None -DGRAFT_FUZZ=ON -DGRAFT_TESTS=OFF -DGRAFT_TORCH=OFF -DGRAFT_CUDA=off \
  > $build/configure.log 2>&1 || { tail -n 15 $build/configure.log; exit 2; }
# shellcheck disable=SC2086
cmake --build $build -j "$(nproc)" --target fuzz_corpus ${targets[*]/#/fuzz_} > $build/build.log 2>&1 ||
  { tail -n 30 $build/build.log; exit 2; }

tool=$build/bin/fuzz_corpus
mkdir -p $build/findings tests/fuzz/corpus
# run TARGET SECONDS: prints "edges corpus executions" of libFuzzer's last line.
run() {
  local log=$build/$1.log dictionary=()
  [ ! -f tests/fuzz/$1.dict ] || dictionary=(-dict=tests/fuzz/$1.dict)
  if ! $build/bin/fuzz_$1 "${dictionary[@]}" -max_total_time="$2" -timeout=60 -report_slow_units=60 -rss_limit_mb=1024 \
      -max_len=16384 -artifact_prefix=$build/findings/$1- -print_final_stats=1 \
      $build/corpus/$1 > "$log" 2>&1; then
    grep -m1 -E 'ERROR|broken promise|runtime error' "$log" >&2 || tail -n 5 "$log" >&2
    echo "finding of $1, see $log and $build/findings" >&2
    return 1
  fi
  awk '/ cov: / { for (i = 1; i < NF; ++i) { if ($i == "cov:") c = $(i + 1); if ($i == "corp:") n = $(i + 1) } }
       /number_of_executed_units/ { e = $2 } END { sub("/.*", "", n); print c, n, e }' "$log"
}

failed=0
printf '%-16s %12s %12s %12s %12s %12s\n' target 'edges, half' 'edges, end' 'inputs, half' 'inputs, end' executions
for target in "${targets[@]}"; do
  rm -rf $build/corpus/$target
  $tool seeds $target $build/corpus/$target
  [ ! -f tests/fuzz/corpus/$target ] || $tool unpack tests/fuzz/corpus/$target $build/corpus/$target
  if half=$(run $target $((seconds / 2))) && whole=$(run $target $((seconds - seconds / 2))); then
    read -r edges inputs executed <<< "$half"
    read -r edges2 inputs2 executed2 <<< "$whole"
    printf '%-16s %12s %12s %12s %12s %12s\n' $target $edges $edges2 $inputs $inputs2 $((executed + executed2))
  else
    failed=1
  fi
  if [ $update = yes ]; then
    rm -rf $build/merged && mkdir -p $build/merged
    $build/bin/fuzz_$target -merge=1 -max_len=16384 $build/merged $build/corpus/$target > $build/$target.merge.log 2>&1
    $tool pack $build/merged tests/fuzz/corpus/$target
  fi
done
exit $failed
