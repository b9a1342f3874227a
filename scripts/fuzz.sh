#!/bin/sh
# Runs every fuzz target for some time each: scripts/fuzz.sh 20s
set -eu
time=${1:-20s}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do
  grep -ho '^func Fuzz[A-Za-z0-9]*' "$dir"/*_test.go | sed 's/^func //' | while read -r name; do
    echo "$dir $name"
    if ! go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$dir" </dev/null >"$log" 2>&1; then
      tail -n 40 "$log"
      # Now and then the time runs out while an input is tried, and is called a
      # failure. An input that fails is written down.
      if grep -q 'Failing input' "$log" || ! grep -q '^ *context deadline exceeded' "$log"; then exit 1; fi
    else
      tail -n 2 "$log"
    fi
  done
done
