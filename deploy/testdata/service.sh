# Runs a command as an engine would run it in a service of deploy/compose.yaml: with the
# mounts and the user of the service, without capabilities, in the network of another
# process. The root is this machine's, for want of images, in a layer that is dropped.
#
#   service.sh BASE NETNS USER ro|rw [MODE FROM TO]... [tmpfs OPTIONS TO]... -- ENV... COMMAND...
set -eu
base=$1 net=$2 user=$3 root=$4
shift 4
if [ -z "${INSIDE-}" ]; then
  INSIDE=yes exec nsenter --net="/proc/$net/ns/net" unshare -m sh "$0" "$base" "$net" "$user" "$root" "$@"
fi
unset INSIDE
mount --make-rprivate /
mkdir -p "$base"
mount -t tmpfs -o mode=755 tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$base/root"
mount -t proc proc "$base/root/proc"
mount --rbind /dev "$base/root/dev"
mount -t tmpfs -o mode=755 tmpfs "$base/root/run"
echo "127.0.0.1 localhost redis vault postgres stint" >"$base/root/etc/hosts"
uid=${user%:*} gid=${user#*:}
getent passwd "$uid" >/dev/null || echo "service:x:$uid:$gid::/tmp:/bin/sh" >>"$base/root/etc/passwd"
while [ "$1" != -- ]; do
  case $3 in
  /var/run/*) to=$base/root/run/${3#/var/run/} ;; # a link that would lead out of here
  *) to=$base/root$3 ;;
  esac
  if [ "$1" = tmpfs ]; then
    mkdir -p "$to"
    mount -t tmpfs -o "$2" tmpfs "$to"
  else
    if [ -d "$2" ]; then mkdir -p "$to"; else
      mkdir -p "$(dirname "$to")"
      [ -e "$to" ] || : >"$to"
    fi
    mount --bind "$2" "$to"
    mount -o "remount,bind,$1" "$to"
  fi
  shift 3
done
shift
mount -o "remount,$root" "$base/root"
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
