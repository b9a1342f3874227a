# Runs commands as root of a machine that can be written, and is dropped: this one, in a
# layer of its own, in the network of another process.
#
#   installed.sh BASE NETNS DIR VAULT SCRIPT
set -eu
if [ -z "${INSIDE-}" ]; then
  INSIDE=yes exec nsenter --net="/proc/$2/ns/net" unshare -m sh "$0" "$@"
fi
unset INSIDE
base=$1 dir=$3 vault=$4 script=$5
mount --make-rprivate /
mkdir -p "$base"
mount -t tmpfs -o mode=755 tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$base/root"
mount -t proc proc "$base/root/proc"
mount --rbind /dev "$base/root/dev"
mount --bind "$dir" "$base/root$dir"
cp "$vault" "$base/root/usr/local/bin/vault"
exec chroot "$base/root" sh -c 'cd "$0" && exec sh -eu "$1"' "$dir" "$script"
