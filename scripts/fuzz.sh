#!/bin/sh
# Runs every fuzz target for some time each: scripts/fuzz.sh 20s
set -eu
time=${1:-20s}
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do
  grep -ho '^func Fuzz[A-Za-z0-9]*' "$dir"/*_test.go | sed 's/^func //' | while read -r name; do
    echo "$dir $name"
    go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$dir" </dev/null
  done
done
