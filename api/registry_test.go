package api_test

// Who and what there is. HASH is the hash of goodSecret.
const (
	self     = "https://stint.test"
	mcp      = "https://mcp.test/files"
	exchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	access   = "urn:ietf:params:oauth:token-type:access_token"
)

const registryYAML = `
issuers:
  - issuer: https://idp.test
    accept: [access_token, id_token]
    audiences: [https://stint.test]
    max_subject_age: 1h
    scopes: identity-only
    groups: [engineering, maintainers]
    delegates: [gateway]
    may_act: true
    actors: {robot: helper}
  - issuer: https://ci.test
    accept: [jwt]
    audiences: [https://stint.test]
    max_subject_age: 10m
    scopes: {mapped: {"ci:read": {"https://mcp.test/files": [files:read]}}}
    delegates: [files-mcp]
    any_agent: true
  - issuer: https://down.test
    accept: [access_token]
    audiences: [https://stint.test]
    max_subject_age: 1h
    scopes: identity-only
    delegates: [desktop]
agents:
  - {name: helper, identities: {"https://idp.test": helper-at-idp}, ceiling: {access: read, scopes: "*", vend: "*"}}
clients:
  - id: desktop
    auth: {method: client_secret_basic, secret_hashes: [HASH]}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"]
    targets: [https://mcp.test/files]
    ceiling: "*"
    identities: {"https://idp.test": desktop-at-idp}
  - id: files-mcp
    auth: {method: client_secret_post, secret_hashes: [HASH]}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange", client_credentials]
    resource: https://mcp.test/files
    targets: [https://api.test/files, code, db, https://mcp.test/files]
    ceiling: "*"
  - id: gateway
    auth: {method: private_key_jwt, jwks_file: keys.json}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"]
    targets: [https://mcp.test/files]
    ceiling: "*"
    impersonation: true
    accept_less: true
  - id: files-api
    auth: {method: client_secret_basic, secret_hashes: [HASH]}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"]
    resource: https://api.test/files
    targets: []
    ceiling: "*"
  - id: off
    auth: {method: client_secret_basic, secret_hashes: [HASH]}
    grant_types: [client_credentials]
    targets: [https://mcp.test/files]
    ceiling: "*"
    disabled: true
`

const filesYAML = `
resource: https://mcp.test/files
max_lifetime: 4m
scopes:
  files:read:
    access: read
    forward: {"https://api.test/files": [read]}
    vend:
      code: {repositories: [web, docs], permissions: {contents: read}}
      db: {repositories: [web], permissions: {contents: read}}
  files:write:
    access: write
    forward: {"https://api.test/files": [read, write]}
    vend: {code: {repositories: [web], permissions: {contents: write}}}
  files:mine:
    access: read
    vend: {code: {repositories: ["{args.repo}"], permissions: {contents: read}}}
  files:list:
    access: read
    vend: {code: {repositories: [web], permissions: {issues: read}}}
tools:
  read_file: {scopes: [files:read]}
  my_repo: {scopes: [files:mine]}
  write_file: {scopes: [files:write]}
rules:
  - allow: ["*"]
    to: {groups: [engineering]}
  - allow: [files:write]
    to: {groups: [maintainers]}
  - allow: [files:read]
    to: {claims: {iss: "https://ci.test", repository: acme/web}}
  - allow: [files:read]
    to: {clients: [files-mcp], claims: {iss: "https://stint.test", sub: files-mcp}}
  - allow: [files:list]
    to: {groups: [maintainers]}
    approval: required
`

const apiYAML = `
resource: https://api.test/files
scopes:
  read: {access: read}
  write: {access: write}
rules:
  - allow: [read, write]
    to: {groups: [engineering, maintainers]}
`

// adminYAML is who administers: SELF is the issuer.
const connectYAML = `
resource: SELF/connect
max_lifetime: 15m
scopes:
  accounts: {access: write}
  other: {access: read}
rules:
  - allow: [accounts, other]
    to: {clients: [stint-admin], claims: {iss: "https://idp.test"}}
`

const adminYAML = `
resource: SELF/admin/v1
scopes:
  read: {access: read}
  operate: {access: write}
  administer: {access: admin}
  approve: {access: write}
rules:
  - allow: [read, operate, administer, approve]
    to: {subjects: ["https://idp.test#root"], clients: [stint-admin]}
  - allow: [read]
    to: {groups: [engineering], clients: [stint-admin]}
  - allow: [operate]
    to: {groups: [maintainers], clients: [stint-admin]}
`
