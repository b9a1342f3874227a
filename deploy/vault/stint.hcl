# What Stint may do in Vault: everything that it needs, and no more.
#
# KV version 2 is taken to be mounted at secret/, and Stint to have its place
# under stint/ there. If yours differ, change them here, in setup.sh, and in
# stint.yaml (mount, prefix). With a namespace, all of this is inside it.

# The secrets that an administrator keeps here and stint.yaml names, as in
# vault:github/app#private_key. Stint reads them, and cannot change them.
path "secret/data/stint/*" {
  capabilities = ["read"]
}

path "secret/metadata/stint/*" {
  capabilities = ["list"]
}

# The keys that Stint makes for itself, on first use and by `stint` when they are
# rotated. It cannot delete them: with them, all that they sealed would be lost.
path "secret/data/stint/keys/*" {
  capabilities = ["create", "read", "update"]
}

# Where the revocation feed was last seen, so that a store which lost some of it
# is found out.
path "secret/data/stint/feed/*" {
  capabilities = ["create", "read", "update"]
}

# Its own token: is it alive, renew it, hand it back. With these the login role
# needs no default policy.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# From here on: for credentials that Vault itself makes (database, pki, ...). Who
# does not use that can leave it out, and the token role too.
#
# Vault ends what it leased when the token that asked for it ends. So Stint asks
# for each credential with a token of its own, which it makes by the token role
# stint (see setup.sh). The role says which policies such a token can have,
# stint-* and nothing else, whatever the asker has itself: that is what keeps
# this line from being a way to any policy. Stint's own policy is called stint,
# which stint-* does not match.
path "auth/token/create/stint" {
  capabilities = ["update"]
}

# Ending them. The first takes any accessor and the third any lease, but neither
# can be guessed, and without sudo Vault lists neither. To bind it further, name
# the engines:
#
#   path "sys/leases/revoke" {
#     capabilities       = ["update"]
#     allowed_parameters = { "lease_id" = ["database/creds/*"], "sync" = [] }
#   }
path "auth/token/revoke-accessor" {
  capabilities = ["update"]
}

path "auth/token/lookup-accessor" {
  capabilities = ["update"]
}

path "sys/leases/revoke" {
  capabilities = ["update"]
}

path "sys/leases/lookup" {
  capabilities = ["update"]
}

# Signing by keys that never leave Vault, such as those of GitHub Apps (transit_key). Only
# needed where one is configured; name the keys to bind it further.
path "transit/sign/+/sha2-256" {
  capabilities = ["update"]
}
