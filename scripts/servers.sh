#!/bin/sh
# Installs servers that tests and demonstrations start, if they are missing:
#
#   scripts/servers.sh redis-server postgresql nodejs
#
# With apt, as root or by sudo. Elsewhere it says what is missing. Nothing is left
# running: the services that Debian starts on installation are not started.
set -eu

have() {
  case $1 in
  redis-server) command -v redis-server >/dev/null ;;
  postgresql) command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 ;;
  systemd) command -v systemd-analyze >/dev/null && [ -x /bin/kill ] ;; # which units name
  etcd-server) command -v etcd >/dev/null ;;
  nodejs) command -v node >/dev/null && command -v npm >/dev/null ;; # which may be too old: see node.sh
  *) command -v "$1" >/dev/null ;;
  esac
}

missing=
for name in "$@"; do
  have "$name" || missing="$missing $name"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "missing:$missing; install them and put them on the PATH" >&2
  exit 1
fi
sudo=
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "missing:$missing; run as root: apt-get install$missing" >&2; exit 1; }
  sudo=sudo
fi
case $missing in *nodejs*) missing="$missing npm" ;; esac
case $missing in *systemd*) missing="$missing procps" ;; esac
echo "installing$missing"
$sudo apt-get update -qq
# Tests start servers of their own; Debian's need not run (policy-rc.d, 101: do not).
rc=/usr/sbin/policy-rc.d
if [ ! -e $rc ]; then
  printf '#!/bin/sh\nexit 101\n' | $sudo tee $rc >/dev/null
  $sudo chmod +x $rc
  trap '$sudo rm -f $rc' EXIT
fi
# shellcheck disable=SC2086
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
