package client_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/client/clienttest"
)

// A token that is bound to a certificate is accepted with that, and with nothing else.
func TestBoundTokensAreHeldToTheirCertificate(t *testing.T) {
	b := broker(t)
	c := new(t, b, nil)
	mine, other := &x509.Certificate{Raw: []byte("mine")}, &x509.Certificate{Raw: []byte("other")}
	sum := sha256.Sum256(mine.Raw)
	thumbprint := base64.RawURLEncoding.EncodeToString(sum[:])
	bound := func(cnf any) string {
		return b.Forge(clienttest.TokenOptions{}, nil, map[string]any{"cnf": cnf})
	}
	good := bound(map[string]any{"x5t#S256": thumbprint})
	over := func(certs ...*x509.Certificate) *tls.ConnectionState {
		return &tls.ConnectionState{PeerCertificates: certs}
	}
	for name, tc := range map[string]struct {
		raw      string
		state    *tls.ConnectionState
		accepted bool
	}{
		"over its connection":              {good, over(mine), true},
		"over another's":                   {good, over(other), false},
		"over another's, with its own too": {good, over(other, mine), false},
		"over one without a certificate":   {good, over(), false},
		"over none":                        {good, nil, false},
		"free, over none":                  {b.Token(clienttest.TokenOptions{}), nil, true},
		"free, over any":                   {b.Token(clienttest.TokenOptions{}), over(other), true},
		"bound to a key":                   {bound(map[string]any{"jkt": thumbprint}), over(mine), false},
		"bound to two things":              {bound(map[string]any{"x5t#S256": thumbprint, "jkt": "x"}), over(mine), false},
		"bound to nothing":                 {bound(map[string]any{}), over(mine), false},
		"bound to an empty text":           {bound(map[string]any{"x5t#S256": ""}), over(), false},
		"bound to no object":               {bound("x"), over(mine), false},
	} {
		t.Run(name, func(t *testing.T) {
			tok, err := c.Verify(client.WithConnection(t.Context(), tc.state), tc.raw)
			if bad := (*client.InvalidToken)(nil); (err == nil) != tc.accepted || err != nil && !errors.As(err, &bad) {
				t.Fatal(err)
			}
			if err == nil && tc.raw == good && tok.Certificate != thumbprint {
				t.Errorf("certificate %q", tok.Certificate)
			}
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.TLS = tc.state
			r.Header.Set("Authorization", "Bearer "+tc.raw)
			w := httptest.NewRecorder()
			c.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
			if want := map[bool]int{true: 200, false: 401}[tc.accepted]; w.Code != want {
				t.Errorf("protected: %d", w.Code)
			}
		})
	}
}
