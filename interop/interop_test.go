package interop

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/oauthex"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google/externalaccount"
)

const accessToken = "urn:ietf:params:oauth:token-type:access_token"

// oidc-provider signed alice in; by its metadata and keys Stint knows her.
func TestOIDCProvider(t *testing.T) {
	w := newWorld(t)
	ask := func(token, kind string) (int, map[string]any) {
		return w.post(t, "orders-basic", "/oauth2/token", url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "resource": {api}, "scope": {"orders:read"},
			"subject_token": {token}, "subject_token_type": {kind},
		})
	}
	status, got := ask(w.Alice, accessToken)
	if status != http.StatusOK || got["token_type"] != "Bearer" || got["issued_token_type"] != accessToken {
		t.Fatalf("%d %v", status, got)
	}
	w.isAlices(t, got["access_token"].(string), "orders-basic")

	parts := strings.Split(w.Alice, ".")
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	promoted := bytes.ReplaceAll(claims, []byte(`"engineering"`), []byte(`"engineering","maintainers"`))
	for name, token := range map[string]string{
		"without its signature":       parts[0] + "." + parts[1] + ".",
		"with one more group":         parts[0] + "." + base64.RawURLEncoding.EncodeToString(promoted) + "." + parts[2],
		"an ID token for another":     w.idToken,
		"one for the provider itself": w.signIn(t, "").AccessToken,
	} {
		t.Run(name, func(t *testing.T) {
			if status, got := ask(token, "urn:ietf:params:oauth:token-type:jwt"); status != http.StatusBadRequest || got["error"] != "invalid_request" {
				t.Errorf("%d %v", status, got)
			}
		})
	}
}

// openid-client gets and takes back what it asks for, and understands refusals.
func TestOpenIDClient(t *testing.T) { newWorld(t).script(t, "openid-client.mjs") }

// jose verifies what Stint signs, over changes of the key.
func TestJOSE(t *testing.T) { newWorld(t).script(t, "jose.mjs") }

// The SDK of MCP exchanges an ID token, as an agent on a desktop does.
func TestMCPSDK(t *testing.T) {
	w := newWorld(t)
	req := oauthex.TokenExchangeRequest{
		RequestedTokenType: accessToken, Audience: mcp, Resource: mcp, Scope: []string{"orders:read"},
		SubjectToken: w.idToken, SubjectTokenType: oauthex.TokenTypeIDToken,
	}
	creds := &oauthex.ClientCredentials{ClientID: "desktop", ClientSecretAuth: &oauthex.ClientSecretAuth{ClientSecret: w.Secrets["desktop"]}}
	got, err := oauthex.ExchangeToken(t.Context(), w.Issuer+"/oauth2/token", &req, creds, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Type() != "Bearer" || got.Extra("issued_token_type") != accessToken || !fresh(got.Expiry) {
		t.Errorf("%s, %v, expires %s", got.Type(), got.Extra("issued_token_type"), got.Expiry)
	}
	// The MCP server goes on with it.
	status, next := w.post(t, "orders-basic", "/oauth2/token", url.Values{
		"grant_type": {oauthex.GrantTypeTokenExchange}, "resource": {api}, "scope": {"orders:read"},
		"subject_token": {got.AccessToken}, "subject_token_type": {accessToken},
	})
	if status != http.StatusOK {
		t.Fatalf("%d %v", status, next)
	}
	w.isAlices(t, next["access_token"].(string), "orders-basic")

	req.RequestedTokenType = oauthex.TokenTypeIDJAG
	refused := (*oauth2.RetrieveError)(nil)
	if _, err := oauthex.ExchangeToken(t.Context(), w.Issuer+"/oauth2/token", &req, creds, nil); !errors.As(err, &refused) || refused.ErrorCode != "invalid_request" {
		t.Errorf("a type that Stint does not issue: %v", err)
	}
}

// supplier hands out a subject token.
type supplier string

func (s supplier) SubjectToken(context.Context, externalaccount.SupplierOptions) (string, error) {
	return string(s), nil
}

// Google's client for workload identity federation takes Stint for its token
// service.
func TestExternalAccount(t *testing.T) {
	w := newWorld(t)
	conf := externalaccount.Config{
		TokenURL: w.Issuer + "/oauth2/token", Audience: api, Scopes: []string{"orders:read"},
		SubjectTokenType: "urn:ietf:params:oauth:token-type:jwt", SubjectTokenSupplier: supplier(w.Alice),
		ClientID: "orders-basic", ClientSecret: w.Secrets["orders-basic"],
	}
	source, err := externalaccount.NewTokenSource(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	got, err := source.Token()
	if err != nil {
		t.Fatal(err)
	}
	if got.Type() != "Bearer" || !fresh(got.Expiry) {
		t.Errorf("%s, expires %s", got.Type(), got.Expiry)
	}
	w.isAlices(t, got.AccessToken, "orders-basic")

	conf.Scopes = []string{"orders:write"}
	if source, err = externalaccount.NewTokenSource(t.Context(), conf); err != nil {
		t.Fatal(err)
	}
	if _, err := source.Token(); err == nil || !strings.Contains(err.Error(), `"invalid_scope"`) {
		t.Errorf("a scope that no rule gives: %v", err)
	}
}
