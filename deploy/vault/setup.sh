#!/bin/sh
# Prepares a Vault for Stint. It may be run again: it makes what is not there and
# sets the rest to what stands here. Needs the vault command, VAULT_ADDR, and a
# token that may do all this.
#
#   setup.sh
#       The policy, the token role, and AppRole for Stint to log in with.
#
#   setup.sh lease NAME PATH [CAPABILITY]
#       A policy stint-NAME for one credential that Vault makes, such as
#
#         setup.sh lease database-readonly database/creds/readonly
#         setup.sh lease pki-web pki/issue/web update
#
#       It is what `policy: stint-database-readonly` names in stint.yaml. A token
#       that has it can read that path (or write it, with update), and nothing
#       else; one policy for each engine and role, so that a token for one is no
#       token for another.
#
#       Two things about the engine's own role. Give it a max_ttl that is not much
#       more than max_lifetime in stint.yaml: it is what ends a credential if all
#       else fails. And have revocation_statements of a database end sessions too,
#       which Vault's own leave open; for PostgreSQL:
#
#         ALTER ROLE "{{name}}" NOLOGIN;
#         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{{name}}';
#         DROP OWNED BY "{{name}}";
#         DROP ROLE "{{name}}";
set -eu
here=$(dirname "$0")

if [ "${1-}" = lease ]; then
  name=$2 path=$3 capability=${4-read}
  vault policy write "stint-$name" - <<POLICY
path "$path" {
  capabilities = ["$capability"]
}
POLICY
  exit
fi

vault policy write stint "$here/stint.hcl"

# Tokens for single credentials.
#
# allowed_policies_glob  all that such a token can be; Stint always names one
# orphan                 it outlives the login that made it: credentials end when
#                        they should, not when a replica stops or logs in again.
#                        An orphan has no entity either, whose policies it would
#                        have besides
# renewable              no: it ends when it was said to end
# token_explicit_max_ttl the longest life of a credential
#
# No token_num_uses: Stint says that itself.
vault write auth/token/roles/stint \
  allowed_policies_glob="stint-*" \
  orphan=true \
  renewable=false \
  token_no_default_policy=true \
  token_type=service \
  token_explicit_max_ttl=12h

# Logging in. AppRole suits a machine; the secret id goes into a file that Stint
# reads (auth.secret_id: file:/run/secrets/stint-secret-id), and bind it to where
# Stint runs with token_bound_cidrs and secret_id_bound_cidrs.
vault auth list -format=json | grep -q '"approle/"' || vault auth enable approle
vault write auth/approle/role/stint \
  token_policies=stint \
  token_no_default_policy=true \
  token_type=service \
  token_ttl=20m \
  token_max_ttl=24h

# In Kubernetes nothing needs to be handed over:
#
#   vault auth enable kubernetes
#   vault write auth/kubernetes/config kubernetes_host=https://kubernetes.default.svc
#   vault write auth/kubernetes/role/stint \
#     bound_service_account_names=stint bound_service_account_namespaces=stint audience=vault \
#     token_policies=stint token_no_default_policy=true token_type=service token_ttl=20m token_max_ttl=24h
#
# Elsewhere, where the platform gives out JWTs, the jwt method is the same with a
# role of its own.

echo "role_id: $(vault read -field=role_id auth/approle/role/stint/role-id)"
echo "for the secret_id: vault write -f -field=secret_id auth/approle/role/stint/secret-id"
