# Runs deploy/stint.service by a service manager of systemd in namespaces of its own:
# a user's instance, run by root, which takes away what the unit says as the system's
# does. Two things differ: it keeps StateDirectory elsewhere (XDG_CONFIG_HOME), and
# what is logged goes to a file.
#
#   systemd.sh UNIT PROGRAM ETC
#
# It prints what the service is (FIELD: VALUE), and ends with all that it started.
set -eu
unit=$1 program=$2 etc=$3

if [ -z "${INSIDE-}" ]; then
  # A cgroup of its own in the two hierarchies that have no controllers.
  group=stint-test-$$
  for h in systemd unified; do
    mkdir "/sys/fs/cgroup/$h/$group"
    echo $$ >"/sys/fs/cgroup/$h/$group/cgroup.procs"
  done
  code=0
  INSIDE=yes timeout -s KILL 120 unshare -m -p -f -u -i -n -C sh "$0" "$@" || code=$?
  for h in systemd unified; do
    echo $$ >"/sys/fs/cgroup/$h/cgroup.procs"
    for _ in 1 2 3 4 5 6 7 8 9 10; do # processes take a moment to go
      find "/sys/fs/cgroup/$h/$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.2
    done
  done
  exit $code
fi

mount --make-rprivate /
ip link set lo up
mount -t proc proc /proc
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified

# Copies of what is to be installed, in layers over the machine's own folders.
mkdir /tmp/under
mount -t tmpfs tmpfs /tmp/under
cp "$program" /tmp/under/stint
cp "$unit" /tmp/under/stint.service
cp -r "$etc" /tmp/under/etc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/layer/upper /run/layer/work /run/user/0/systemd/user/stint.service.d /run/systemd/system /run/systemd/inaccessible
mount -t overlay -o lowerdir=/etc,upperdir=/run/layer/upper,workdir=/run/layer/work overlay /etc
mount -t tmpfs -o mode=755 tmpfs /usr/local
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir /usr/local/bin
install -m 755 /tmp/under/stint /usr/local/bin/stint
cp -r /tmp/under/etc /etc/stint
cp /tmp/under/stint.service /run/user/0/systemd/user/
umount /tmp/under
rmdir /tmp/under

# What the first process of a system makes, for paths that nobody is to see.
cd /run/systemd/inaccessible
mkdir -m 000 dir
install -m 000 /dev/null reg
mkfifo -m 000 fifo
mknod -m 000 chr c 0 0
mknod -m 000 blk b 0 0
cd /

echo stint:x:4242:4242::/nonexistent:/usr/sbin/nologin >>/etc/passwd
echo stint:x:4242: >>/etc/group
install -d -m 700 -o stint -g stint /var/lib/stint
mv /etc/stint/data/* /var/lib/stint/
chown -R stint:stint /var/lib/stint /etc/stint/private
chmod 755 /etc/stint

log=/run/user/0/log
printf '[Service]\nStandardOutput=append:%s\nStandardError=append:%s\n' $log $log >/run/user/0/systemd/user/stint.service.d/log.conf
printf '[Unit]\nDefaultDependencies=no\n' >/run/user/0/systemd/user/nothing.target
export XDG_RUNTIME_DIR=/run/user/0 XDG_CONFIG_HOME=/var/lib XDG_STATE_HOME=/var/lib container=test
/lib/systemd/systemd --user --unit=nothing.target >/dev/null 2>&1 &
for _ in $(seq 100); do
  [ -S /run/user/0/systemd/private ] && break
  sleep 0.1
done

finish() {
  code=$?
  sed 's/^/log: /' $log || true
  exit $code
}
trap finish EXIT
systemctl --user start stint.service
/usr/local/bin/stint ready --wait 30s --config /etc/stint/stint.yaml
pid=$(systemctl --user show stint.service -p MainPID --value)
cat "/proc/$pid/status"
sed 's/^/mount: /' "/proc/$pid/mountinfo"
grep -F "[aio]" "/proc/$pid/maps" | sed "s/^/map: /"
systemctl --user reload stint.service
sleep 1
/usr/local/bin/stint ready --wait 10s --config /etc/stint/stint.yaml
systemctl --user stop stint.service
systemctl --user show stint.service -p Result -p ExecMainStatus
