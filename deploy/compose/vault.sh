#!/bin/sh
# Gives Stint its place in the Vault of deploy/compose.yaml, inside the container, and
# prints the secret_id by which Stint logs in. Needs VAULT_TOKEN. It may be run again.
set -eu
here=$(dirname "$0")
vault secrets list -format=json | grep -q '"secret/"' || vault secrets enable -path=secret -version=2 kv >&2
sh "$here/../vault/setup.sh" >&2
# The name by which it logs in is no secret, and stint.yaml can know it beforehand.
vault write auth/approle/role/stint/role-id role_id=stint-compose >&2
# A new mount takes a moment until it can be written.
for _ in 1 2 3 4 5 6 7 8 9 10; do
  vault kv put -mount=secret stint/redis password="$(cat /run/secrets/redis-password)" >&2 && break
  sleep 1
done
vault kv put -mount=secret stint/warehouse password="$(cat /run/secrets/warehouse-password)" >&2
vault write -f -field=secret_id auth/approle/role/stint/secret-id
