package api_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/token"
)

// shown are certificates with their keys.
type shown struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

// signedBy makes a certificate that another signed, or, without one, itself. It is good
// on the day of the tests' clock.
func signedBy(t testing.TB, by *shown, change func(*x509.Certificate)) *shown {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<62)))(t), Subject: pkix.Name{CommonName: "reports", Organization: []string{"Acme"}},
		NotBefore: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2030, 1, 4, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	parent, signer := template, key
	if by != nil {
		parent, signer = by.Certificate, by.key
	}
	der := must(x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer))(t)
	return &shown{must(x509.ParseCertificate(der))(t), key}
}

// authority is a change that makes a certificate that of an authority.
func authority(c *x509.Certificate) {
	c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
	c.Subject = pkix.Name{CommonName: "Acme authority"}
}

func (s *shown) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Raw})
}

// jwks is a key set of certificates.
func jwksOf(t testing.TB, use string, all ...*shown) []byte {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, s := range all {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: s.PublicKey, Certificates: []*x509.Certificate{s.Certificate}, Use: use})
	}
	return must(json.Marshal(set))(t)
}

const certificateClients = `
  - id: reports
    auth: {method: tls_client_auth, ca_file: x, subject_dn: "CN=reports,O=Acme"}
    grant_types: ["urn:ietf:params:oauth:grant-type:token-exchange"]
    targets: [https://mcp.test/files, https://stint.test/admin/v1]
    ceiling: "*"
    identities: {"https://idp.test": reports-at-idp}
    certificate_bound_tokens: true
  - {id: by-dns, auth: {method: tls_client_auth, ca_file: x, san_dns: reports.acme.example}, grant_types: [client_credentials], targets: [https://mcp.test/files], ceiling: "*"}
  - {id: by-uri, auth: {method: tls_client_auth, ca_file: x, san_uri: "https://acme.example/reports"}, grant_types: [client_credentials], targets: [https://mcp.test/files], ceiling: "*"}
  - {id: by-ip, auth: {method: tls_client_auth, ca_file: x, san_ip: 10.1.2.3}, grant_types: [client_credentials], targets: [https://mcp.test/files], ceiling: "*"}
  - {id: by-email, auth: {method: tls_client_auth, ca_file: x, san_email: reports@acme.example}, grant_types: [client_credentials], targets: [https://mcp.test/files], ceiling: "*"}
  - id: pinned
    auth: {method: self_signed_tls_client_auth, jwks_file: x}
    grant_types: [client_credentials, "urn:ietf:params:oauth:grant-type:token-exchange"]
    resource: https://pinned.test
    targets: [https://mcp.test/files]
    ceiling: "*"
    identities: {"https://idp.test": pinned-at-idp}
  - {id: svid, auth: {method: spiffe_x509, ca_file: x, spiffe_id: "spiffe://acme.example/reports"}, grant_types: [client_credentials], targets: [https://mcp.test/files], ceiling: "*"}
`

// tlsTarget is a server that asks for certificates, and those that it knows.
type tlsTarget struct {
	*target
	ca, pinned *shown
	roots      *x509.CertPool // of the server's own certificate
	cert       string
}

func newTLSTarget(t testing.TB) *tlsTarget {
	t.Helper()
	w := &tlsTarget{ca: signedBy(t, nil, authority), pinned: signedBy(t, nil, nil)}
	cert, key := certificate(t, t.TempDir(), 1, time.Now())
	w.cert, w.roots = cert, x509.NewCertPool()
	w.roots.AppendCertsFromPEM(must(os.ReadFile(cert))(t))
	w.target = newTarget(t, w.options(t, key))
	return w
}

func (w *tlsTarget) options(t testing.TB, key string) options {
	return options{
		clients: certificateClients,
		tokens: func(cfg *token.Config) {
			cfg.Certificates = map[string]token.ClientKeys{"pinned": {JWKS: jwksOf(t, "", w.pinned), Kind: token.Certificates}}
			for _, id := range []string{"reports", "by-dns", "by-uri", "by-ip", "by-email", "svid"} {
				cfg.Certificates[id] = token.ClientKeys{Authorities: w.ca.pem()}
			}
		},
		listen: func(l *api.Listen) { l.TLS = &api.TLS{Certificate: w.cert, Key: key, AskClients: true} },
	}
}

// by posts a form over a connection of its own with a certificate; nil: without.
func (w *tlsTarget) by(s *shown, path string, form url.Values, chain ...*shown) *answer {
	w.t.Helper()
	cfg := &tls.Config{RootCAs: w.roots}
	if s != nil {
		own := tls.Certificate{Certificate: [][]byte{s.Raw}, PrivateKey: s.key}
		for _, c := range chain {
			own.Certificate = append(own.Certificate, c.Raw)
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	}
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	req := must(http.NewRequest(http.MethodPost, "https://"+w.public+path, strings.NewReader(form.Encode())))(w.t)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return w.doRequest(&http.Client{Transport: transport, Timeout: 10 * time.Second}, req)
}

// asItself is a form by which a client asks for itself. No rule grants it anything: who
// gets as far as that was authenticated.
func asItself(id string) url.Values {
	return url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "resource": {mcp}, "scope": {"files:read"}}
}

// authenticated fails the test unless the client was: it got an answer about its request.
func authenticated(t testing.TB, what string, a *answer) {
	t.Helper()
	if name, _, _ := errorOf(t, a); a.status == 401 || name != "invalid_scope" {
		t.Errorf("%s: %d %s", what, a.status, a.body)
	}
}

// openssl runs it in a folder.
func openssl(t testing.TB, dir string, args ...string) []byte {
	t.Helper()
	c := exec.Command(testbed.Find(t, "apt-get install openssl", "openssl"), args...)
	c.Dir = dir
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		t.Fatalf("openssl %q: %v\n%s", args, err, errs.String())
	}
	return out
}

// Certificates that OpenSSL made and curl shows authenticate a client, whose token is
// bound to the certificate: x5t#S256 is the digest that OpenSSL has of it.
func TestCertificatesOfOpenSSLByCurl(t *testing.T) {
	t.Parallel()
	curl := testbed.Find(t, "apt-get install curl", "curl")
	dir := t.TempDir()
	openssl(t, dir, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "3650", "-subj", "/CN=OpenSSL authority")
	openssl(t, dir, "req", "-newkey", "rsa:2048", "-nodes", "-keyout", "client.key", "-out", "client.csr", "-subj", "/O=Acme/CN=reports")
	openssl(t, dir, "x509", "-req", "-in", "client.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "client.pem", "-days", "3650")
	if dn := string(openssl(t, dir, "x509", "-in", "client.pem", "-noout", "-subject", "-nameopt", "RFC2253")); dn != "subject=CN=reports,O=Acme\n" {
		t.Fatalf("OpenSSL writes %q", dn)
	}
	openssl(t, dir, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "server.key", "-out", "server.pem", "-days", "2", "-subj", "/CN=server", "-addext", "subjectAltName=IP:127.0.0.1")
	cert, key := filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
	w := newTarget(t, options{
		clients: certificateClients,
		tokens: func(cfg *token.Config) {
			cfg.Certificates = map[string]token.ClientKeys{"reports": {Authorities: must(os.ReadFile(filepath.Join(dir, "ca.pem")))(t)}}
		},
		listen: func(l *api.Listen) { l.TLS = &api.TLS{Certificate: cert, Key: key, AskClients: true} },
	})
	form := url.Values{
		"grant_type": {exchange}, "subject_token": {w.token("idp", "at+jwt", map[string]any{"client_id": "reports-at-idp"})}, "subject_token_type": {access},
		"resource": {mcp}, "scope": {"files:read"}, "client_id": {"reports"},
	}
	run := func(extra ...string) []byte {
		args := append([]string{"-sS", "--cacert", cert, "--tlsv1.3", "-d", form.Encode(), "https://" + w.public + "/oauth2/token"}, extra...)
		c := exec.Command(curl, args...)
		c.Dir = dir
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("curl: %v: %s", err, out)
		}
		return out
	}
	made := issued(t, &answer{status: 200, body: run("--cert", "client.pem", "--key", "client.key")})
	digest := openssl(t, dir, "x509", "-in", "client.pem", "-outform", "DER")
	leaf := must(x509.ParseCertificate(digest))(t)
	var got struct {
		Confirm map[string]string `json:"cnf"`
	}
	payload(t, made, &got)
	if len(got.Confirm) != 1 || got.Confirm["x5t#S256"] != broker.Thumbprint(leaf) {
		t.Errorf("cnf %v", got.Confirm)
	}
	hex := string(openssl(t, dir, "x509", "-in", "client.pem", "-noout", "-fingerprint", "-sha256"))
	_, hex, _ = strings.Cut(strings.TrimSpace(hex), "=")
	if want := strings.ToLower(strings.ReplaceAll(hex, ":", "")); want != thumbprintHex(t, got.Confirm["x5t#S256"]) {
		t.Errorf("OpenSSL's fingerprint is %s", want)
	}
	if body := string(run()); !strings.Contains(body, "invalid_client") {
		t.Errorf("without a certificate: %s", body)
	}
}

// Each name that a certificate can have lets in the client that is registered by it.
func TestNamesOfCertificates(t *testing.T) {
	t.Parallel()
	w := newTLSTarget(t)
	all := signedBy(t, w.ca, func(c *x509.Certificate) {
		c.DNSNames, c.EmailAddresses = []string{"other.example", "reports.acme.example"}, []string{"reports@acme.example"}
		c.IPAddresses, c.URIs = ips("10.1.2.3"), uris(t, "https://acme.example/reports")
	})
	for _, id := range []string{"by-dns", "by-uri", "by-ip", "by-email"} {
		authenticated(t, id, w.by(all, "/oauth2/token", asItself(id)))
	}
	authenticated(t, "pinned", w.by(w.pinned, "/oauth2/token", asItself("pinned")))
	svid := signedBy(t, w.ca, func(c *x509.Certificate) { c.URIs = uris(t, "spiffe://acme.example/reports") })
	authenticated(t, "by its id", w.by(svid, "/oauth2/token", asItself("svid")))
	authenticated(t, "by its SPIFFE ID", w.by(svid, "/oauth2/token", asItself("spiffe://acme.example/reports")))
	between := signedBy(t, w.ca, authority)
	far := signedBy(t, between, func(c *x509.Certificate) { c.DNSNames = []string{"reports.acme.example"} })
	authenticated(t, "with an authority between", w.by(far, "/oauth2/token", asItself("by-dns"), between))
}

// What is bound to a certificate is good with that alone, here and for the resource.
func TestBoundTokens(t *testing.T) {
	t.Parallel()
	w := newTLSTarget(t)
	mine, second := signedBy(t, w.ca, nil), signedBy(t, w.ca, nil)
	form := func(subject string) url.Values {
		return url.Values{
			"grant_type": {exchange}, "subject_token": {subject}, "subject_token_type": {access}, "resource": {mcp}, "scope": {"files:read"}, "client_id": {"reports"},
		}
	}
	hers := w.token("idp", "at+jwt", map[string]any{"client_id": "reports-at-idp"})
	made := w.granted(t, "a bound token", w.by(mine, "/oauth2/token", form(hers)))
	next := w.granted(t, "exchanged with the certificate", w.by(mine, "/oauth2/token", form(made)))
	if confirmed(t, next) != broker.Thumbprint(mine.Certificate) {
		t.Error("what came of it is bound to another")
	}
	w.refused(t, "exchanged with another of the same client", w.by(second, "/oauth2/token", form(made)), badSubject("bound to another certificate"))
	asServer := form(made)
	asServer.Set("client_id", "files-mcp")
	asServer.Set("client_secret", w.secret.Reveal())
	asServer.Set("resource", "https://api.test/files")
	asServer.Set("scope", "read")
	w.refused(t, "by the resource, which checks nothing", w.by(nil, "/oauth2/token", asServer), badSubject("bound to another certificate"))
	w.refused(t, "by the resource with a certificate of its own", w.by(w.pinned, "/oauth2/token", asServer), badSubject("bound to another certificate"))
	w.reg.Clients["files-mcp"].AcceptBound = true
	free := w.granted(t, "by the resource, which has checked it", w.by(nil, "/oauth2/token", asServer))
	if confirmed(t, free) != "" {
		t.Error("a token of a client without certificate is bound")
	}
	ask := url.Values{"token": {made}, "client_id": {"files-mcp"}, "client_secret": {w.secret.Reveal()}}
	var told struct {
		Active  bool              `json:"active"`
		Confirm map[string]string `json:"cnf"`
	}
	if a := w.by(nil, "/oauth2/introspect", ask); json.Unmarshal(a.body, &told) != nil || !told.Active || told.Confirm["x5t#S256"] != broker.Thumbprint(mine.Certificate) {
		t.Errorf("introspected: %s", a.body)
	}
}

// A token of an administrator that is bound is good over its connection alone.
func TestBoundTokensOfAdministrators(t *testing.T) {
	t.Parallel()
	w := newTLSTarget(t)
	mine, other := signedBy(t, w.ca, nil), signedBy(t, w.ca, nil)
	w.reg.Clients["stint-admin"].BoundTokens = false
	raw := must(w.tokens.Sign(t.Context(), w.adminClaims(broker.Thumbprint(mine.Certificate))))(t)
	for _, c := range []struct {
		by     *shown
		status int
	}{{mine, 200}, {other, 401}, {nil, 401}} {
		if a := w.getBy(c.by, "/admin/v1/clients", raw.Reveal()); a.status != c.status {
			t.Errorf("%d %s, not %d", a.status, a.body, c.status)
		}
	}
}

// The metadata tells of what there is.
func TestMetadataOfCertificates(t *testing.T) {
	t.Parallel()
	w := newTLSTarget(t)
	methods := fmt.Sprint(w.reg.AuthMethods())
	if want := "[client_secret_basic client_secret_post private_key_jwt tls_client_auth self_signed_tls_client_auth spiffe_x509]"; methods != want {
		t.Errorf("%s", methods)
	}
	if !w.reg.BindsTokens() {
		t.Error("no client has bound tokens")
	}
}
