#!/bin/sh
# Makes what deploy/compose.yaml needs and nobody should share: passwords, an authority
# of this installation with a certificate for each server, and the users of Redis. It
# goes to deploy/compose/made. What is there already is kept.
#
#   sudo deploy/compose/prepare.sh
#
# As root, because each file belongs to the user of one container, by number. Needs
# openssl. Certificates are for a year: remove made/*.pem, run it again, and restart.
set -eu
umask 077
cd "$(dirname "$0")"
[ "$(id -u)" = 0 ] || { echo "run it as root: files are given to the users of containers" >&2; exit 1; }
mkdir -p made
chmod 755 made # Compose reads the names; each file has its owner
cd made
printf '*\n' >.gitignore

# The users of the images, as compose.yaml has them.
stint=65532:65532 redis=999:999 vault=100:1000 postgres=999:999

key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null ||
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

[ -e ca.key ] || key ca.key
[ -e ca.pem ] || {
  openssl req -x509 -new -key ca.key -days 3650 -subj "/CN=Stint compose authority" -out ca.pem \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign"
  chmod 644 ca.pem
}
for name in stint redis vault postgres; do
  [ -e $name.key ] || key $name.key
  [ -e $name.pem ] || {
    openssl req -new -key $name.key -subj "/CN=$name" -out $name.csr
    printf 'subjectAltName=DNS:%s,DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n' $name >$name.ext
    openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -extfile $name.ext -out $name.pem 2>/dev/null
    rm $name.csr $name.ext
    chmod 644 $name.pem
  }
  eval chown "\$$name" $name.key
done

for name in redis postgres warehouse; do
  [ -e $name-password ] || openssl rand -hex 24 >$name-password
done
# Once for Redis, as a digest; the password itself goes into Vault.
sum=$(tr -d '\n' <redis-password | sha256sum | cut -d ' ' -f 1)
sed "s/STINT_PASSWORD_SHA256/$sum/" ../../redis.acl >redis.acl
chown $redis redis.acl
chown $vault redis-password
chown $postgres postgres-password
# Read by Stint as it installs itself in the database, and by Vault's setup.
cp postgres-password admin-password
cp warehouse-password broker-password
chown $stint admin-password broker-password
chown $vault warehouse-password

# By this Stint logs in to Vault; vault.sh prints it.
[ -e secret-id ] || : >secret-id
chown $stint secret-id
