package api_test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

func ips(texts ...string) (out []net.IP) {
	for _, s := range texts {
		ip := net.ParseIP(s)
		if v4 := ip.To4(); v4 != nil {
			ip = v4
		}
		out = append(out, ip)
	}
	return out
}

func uris(t testing.TB, texts ...string) (out []*url.URL) {
	t.Helper()
	for _, s := range texts {
		out = append(out, must(url.Parse(s))(t))
	}
	return out
}

// payload reads the claims of a token.
func payload(t testing.TB, raw string, into any) {
	t.Helper()
	part := strings.Split(raw, ".")
	if len(part) != 3 {
		t.Fatalf("no token: %q", raw)
	}
	if err := json.Unmarshal(must(base64.RawURLEncoding.DecodeString(part[1]))(t), into); err != nil {
		t.Fatal(err)
	}
}

// confirmed is the certificate that a token is bound to.
func confirmed(t testing.TB, raw string) string {
	t.Helper()
	var got struct {
		Confirm map[string]string `json:"cnf"`
	}
	payload(t, raw, &got)
	return got.Confirm["x5t#S256"]
}

func thumbprintHex(t testing.TB, thumbprint string) string {
	t.Helper()
	return hex.EncodeToString(must(base64.RawURLEncoding.DecodeString(thumbprint))(t))
}

// adminClaims are those of an administrator's token that is bound to a certificate.
func (w *tlsTarget) adminClaims(thumbprint string) *broker.Claims {
	now := w.clock.Now().Truncate(time.Second)
	return &broker.Claims{
		Issuer: w.self, Subject: "reports", Audience: w.self + "/admin/v1", ClientID: "reports", ID: "admin-token", IssuedAt: now, Expires: now.Add(time.Minute),
		Scope: []string{"read"}, Certificate: thumbprint,
		Stint: broker.StintClaim{Version: broker.ClaimVersion, Pos: w.b.Status(w.t.Context()).Head.String(), Session: "s"},
	}
}

// getBy gets a path with a token, over a connection with a certificate.
func (w *tlsTarget) getBy(s *shown, path, raw string) *answer {
	w.t.Helper()
	cfg := &tls.Config{RootCAs: w.roots}
	if s != nil {
		cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{s.Raw}, PrivateKey: s.key}}
	}
	transport := &http.Transport{TLSClientConfig: cfg}
	defer transport.CloseIdleConnections()
	req := must(http.NewRequest(http.MethodGet, "https://"+w.public+path, nil))(w.t)
	req.Header.Set("Authorization", "Bearer "+raw)
	return w.doRequest(&http.Client{Transport: transport, Timeout: 10 * time.Second}, req)
}
