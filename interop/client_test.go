package interop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"testing"

	stint "github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/client/clienttest"
)

// The client's own suite, against the real server: what the fake of clienttest
// promises is what there is.
func TestTheClientsSuite(t *testing.T) {
	w := newWorld(t)
	for name, cfg := range map[string]stint.Config{
		"client_secret_basic": {ID: "orders-basic", Secret: stint.NewSecret(w.Secrets["orders-basic"])},
		"private_key_jwt":     {ID: "orders-jwt", Key: w.signer(t), KeyID: "one"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Issuer, cfg.Resource = w.Issuer, mcp
			clienttest.Run(t, clienttest.World{
				Client: cfg, Scope: "orders:read", API: api, Read: "orders:read", Tool: "list_orders", Token: w.callersToken,
				Revoke: func(t testing.TB, raw string) {
					t.Helper()
					w.asDesktop(t, "/oauth2/revoke", url.Values{"token": {raw}})
				},
			})
		})
	}
}

// callersToken is alice's, for the MCP server.
func (w *world) callersToken(t testing.TB, once bool, scopes ...string) string {
	t.Helper()
	form := url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "resource": {mcp}, "scope": scopes,
		"subject_token": {w.Alice}, "subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
	}
	if once {
		form.Set("authorization_details", `[{"type":"mcp_tool_call","tool":"list_orders","arguments":{"id":"7"},"once":true}]`)
	}
	var got struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(w.asDesktop(t, "/oauth2/token", form), &got); err != nil || got.Token == "" {
		t.Fatalf("no token: %v", err)
	}
	return got.Token
}

// asDesktop asks Stint as the agent does, and returns the body of a good answer.
func (w *world) asDesktop(t testing.TB, path string, form url.Values) []byte {
	t.Helper()
	form.Set("client_id", "desktop")
	form.Set("client_secret", w.Secrets["desktop"])
	resp, err := client.PostForm(w.Issuer+path, form)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s %v", path, resp.Status, body, err)
	}
	return body
}

// signer is the private key of orders-jwt.
func (w *world) signer(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	scalar, err := base64.RawURLEncoding.DecodeString(w.Key["d"])
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
