#!/usr/bin/env bash
# All cells of the reference run, in an order in which tables are useful early; the tables are made by
# `python -m reference.tables` at any time. Finished cells are not run again and a stopped one goes on, so the same
# command continues. Flags are those of reference.cell:
#   bash reference/run.sh --eegmat DIR --eegmmidb DIR [--data DIR] [--output DIR] [--size gpu]
# Folders that are not absolute are taken from the project's folder, wherever this is called.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
plan=$("$python" -m reference.cell --plan "$@") || exit
failed=0
while read -r name seed _; do
  "$python" -m reference.cell "$name" --seed "$seed" "$@" </dev/null
  code=$?
  if [ "$code" = 130 ] || [ "$code" = 143 ]; then exit "$code"; fi
  if [ "$code" != 0 ] && [ "$name" = data ]; then exit "$code"; fi
  if [ "$code" != 0 ]; then failed=1; fi # what does not need this cell can still be run
done <<<"$plan"
exit "$failed"
