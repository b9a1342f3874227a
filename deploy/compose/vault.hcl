# Vault for deploy/compose.yaml: one node, its data in a volume, TLS.
listener "tcp" {
  address       = "0.0.0.0:8200"
  tls_cert_file = "/run/secrets/vault.pem"
  tls_key_file  = "/run/secrets/vault.key"
}
storage "raft" {
  path    = "/vault/file"
  node_id = "one"
}
api_addr     = "https://vault:8200"
cluster_addr = "https://127.0.0.1:8201"
# A container without capabilities cannot lock memory. Have no swap, or encrypt it.
disable_mlock = true
ui            = false
