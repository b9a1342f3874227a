// Package adminapi is the admin API as openapi.yaml describes it: its documents, and
// the interface that a server of it implements. All but this comment is generated, by
// `make generate`.
package adminapi
