#!/usr/bin/env bash
# The whole way: raw instructions in, a proven adapter out. Usage: demo.sh path/to/graft
#
# Every step is a command that you can run on your own data; each is printed before it runs.
# Starts in a fresh out/demo.
set -euo pipefail
graft=$(realpath "$1")
cd "$(dirname "$0")/../.."
quickstart=examples/quickstart
out=out/demo
started=$SECONDS
bold() { if [ -t 1 ]; then printf '\033[1m%s\033[0m\n' "$1"; else printf '%s\n' "$1"; fi; }
step() { echo; bold "== $1"; }
run() { echo "\$ graft ${*}"; "$graft" "$@"; }

rm -rf "$out"
mkdir -p "$out"
bold "graft demo: teach a small base model the house format of a support desk (about 2 minutes)"

step "1. clean the raw instructions"
run data clean $quickstart/raw.jsonl --out $out/clean
step "2. no held-out question may be in the training data"
run data check $quickstart/eval.jsonl --against $out/clean/clean.jsonl
step "3. what the base can do: triage fresh messages in its own plain format"
run eval --model $quickstart/base --data $quickstart/base_check.jsonl --generate --max-new-tokens 40 \
  --predictions $out/base_plain.jsonl
step "4. the held-out questions before training: the base does not know the house format"
run eval --model $quickstart/base --load-in-4bit --data $quickstart/eval.jsonl --generate \
  --max-new-tokens 40 --predictions $out/before.jsonl
step "5. train an adapter on the 4-bit base"
run train $quickstart/qlora.yaml
step "6. the same held-out questions with the adapter"
run eval --model $quickstart/base --load-in-4bit --adapter $out/run/adapter \
  --data $quickstart/eval.jsonl --generate --max-new-tokens 40 --predictions $out/after.jsonl
step "7. what is in the adapter"
run adapter inspect $out/run/adapter

echo
bold "done in $((SECONDS - started)) s"
echo "reports    $out/clean/report.html"
echo "           $out/run/report.html"
echo "adapter    $out/run/adapter (PEFT files; any PEFT server loads them)"
echo "try next   graft generate --model $quickstart/base --load-in-4bit --adapter $out/run/adapter --chat $quickstart/chat.json"
echo "           graft adapter merge --model $quickstart/base --adapter $out/run/adapter --out $out/merged"
echo "           your own data: set base_model, datasets and output_dir in $quickstart/qlora.yaml"
