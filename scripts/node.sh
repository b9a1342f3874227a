#!/bin/sh
# Installs the clients that others wrote (interop/), and, where the machine's Node.js
# is too old for them, a newer one beside them, which the tests find first.
set -eu
cd "$(dirname "$0")/../interop"
new='const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 22 || a === 22 && b >= 15 ? 0 : 1)'

if [ ! -d node_modules ] || [ package-lock.json -nt node_modules ]; then
  npm ci --no-audit --no-fund --silent
  touch node_modules
fi
if ! node -e "$new" && [ ! -x node_modules/.newer/node ]; then
  case $(uname -m) in x86_64) arch=x64 ;; aarch64) arch=arm64 ;; *) echo "install Node.js 22.15 or newer" >&2; exit 1 ;; esac
  package=node-$(uname -s | tr A-Z a-z)-$arch@22.23.3
  echo "installing $package, because $(node --version) is too old"
  npm install --no-save --no-audit --no-fund --silent --prefix node_modules/.newer "$package"
  ln -sf "node_modules/${package%@*}/bin/node" node_modules/.newer/node
fi
