package api_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/stint-dev/stint/internal/token"
)

// A certificate counts that an authority of the client signed, for authenticating
// clients, at this time, under the client's name letter by letter.
func TestAttackCertificates(t *testing.T) {
	t.Parallel()
	w := newTLSTarget(t)
	stranger := signedBy(t, nil, authority) // of the same name as the true one
	named := func(by *shown, change func(*x509.Certificate)) *shown {
		return signedBy(t, by, func(c *x509.Certificate) {
			c.DNSNames, c.EmailAddresses = []string{"reports.acme.example"}, []string{"reports@acme.example"}
			c.IPAddresses, c.URIs = ips("10.1.2.3"), uris(t, "https://acme.example/reports")
			if change != nil {
				change(c)
			}
		})
	}
	leaf := named(w.ca, nil)
	authenticated(t, "nothing is wrong with it", w.by(leaf, "/oauth2/token", asItself("by-dns")))
	raw := func(tag int, name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.DNSNames, c.EmailAddresses, c.IPAddresses, c.URIs = nil, nil, nil, nil
			value := must(asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(name)}}))(t)
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}}
		}
	}
	pkixName := func(n pkix.Name) func(*x509.Certificate) { return func(c *x509.Certificate) { c.Subject = n } }
	const dns, uri, ip, email, dn = "by-dns", "by-uri", "by-ip", "by-email", "reports"
	for name, c := range map[string]struct {
		id     string
		by     *shown
		reason string
	}{
		"no certificate":                             {dns, nil, "by tls_client_auth, not"},
		"of an authority of the same name":           {dns, named(stranger, nil), "unknown authority"},
		"signed by itself":                           {dns, named(nil, nil), "unknown authority"},
		"signed by another client's certificate":     {dns, named(leaf, nil), "unknown authority"},
		"expired":                                    {dns, named(w.ca, func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Hour) }), "expired on"},
		"not good yet":                               {dns, named(w.ca, func(c *x509.Certificate) { c.NotBefore = c.NotAfter.Add(-time.Hour) }), "good only from"},
		"for servers":                                {dns, named(w.ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "usage"},
		"an authority's own":                         {dns, named(w.ca, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }), "of an authority"},
		"of another name":                            {dns, named(w.ca, func(c *x509.Certificate) { c.DNSNames = []string{"other.acme.example"} }), "alternative names"},
		"with a star":                                {dns, named(w.ca, func(c *x509.Certificate) { c.DNSNames = []string{"*.acme.example"} }), "alternative names"},
		"in capitals":                                {dns, named(w.ca, func(c *x509.Certificate) { c.DNSNames = []string{"Reports.acme.example"} }), "alternative names"},
		"with a dot at the end":                      {dns, named(w.ca, func(c *x509.Certificate) { c.DNSNames = []string{"reports.acme.example."} }), "alternative names"},
		"a name under it":                            {dns, named(w.ca, func(c *x509.Certificate) { c.DNSNames = []string{"x.reports.acme.example"} }), "alternative names"},
		"two names in one":                           {dns, named(w.ca, raw(2, "reports.acme.example other.example")), "alternative names"},
		"the name as the common name":                {dns, named(w.ca, func(c *x509.Certificate) { c.DNSNames, c.Subject = nil, pkix.Name{CommonName: "reports.acme.example"} }), "alternative names"},
		"the name as a URI":                          {dns, named(w.ca, raw(6, "reports.acme.example")), "alternative names"},
		"the DNS name as an address of mail":         {dns, named(w.ca, raw(1, "reports.acme.example")), "alternative names"},
		"a URI with an escape":                       {uri, named(w.ca, func(c *x509.Certificate) { c.URIs = uris(t, "https://acme.example/%72eports") }), "alternative names"},
		"a URI in other capitals":                    {uri, named(w.ca, raw(6, "https://ACME.example/reports")), "alternative names"},
		"a URI with more":                            {uri, named(w.ca, func(c *x509.Certificate) { c.URIs = uris(t, "https://acme.example/reports/") }), "alternative names"},
		"another address":                            {ip, named(w.ca, func(c *x509.Certificate) { c.IPAddresses = ips("10.1.2.4") }), "alternative names"},
		"an address as sixteen bytes":                {ip, named(w.ca, raw(7, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x01\x02\x03")), "alternative names"},
		"an address as a name":                       {ip, named(w.ca, raw(2, "10.1.2.3")), "alternative names"},
		"mail in capitals":                           {email, named(w.ca, func(c *x509.Certificate) { c.EmailAddresses = []string{"Reports@acme.example"} }), "alternative names"},
		"another subject":                            {dn, named(w.ca, pkixName(pkix.Name{CommonName: "other", Organization: []string{"Acme"}})), "its subject"},
		"a subject with more":                        {dn, named(w.ca, pkixName(pkix.Name{CommonName: "reports", Organization: []string{"Acme"}, Country: []string{"DE"}})), "its subject"},
		"a comma in the common name":                 {dn, named(w.ca, pkixName(pkix.Name{CommonName: "reports,O=Acme"})), "its subject"},
		"a subject in capitals":                      {dn, named(w.ca, pkixName(pkix.Name{CommonName: "Reports", Organization: []string{"Acme"}})), "its subject"},
		"a space at the end":                         {dn, named(w.ca, pkixName(pkix.Name{CommonName: "reports ", Organization: []string{"Acme"}})), "its subject"},
		"the subject of who is registered, strange":  {dn, named(stranger, nil), "unknown authority"},
		"a certificate of the authority, not pinned": {"pinned", leaf, "none of the certificates"},
		"the pinned names, with another key":         {"pinned", signedBy(t, nil, nil), "none of the certificates"},
		"a client with a secret":                     {"files-mcp", leaf, "no client files-mcp that authenticates by a certificate"},
		"a client with an assertion":                 {"gateway", leaf, "no client gateway that authenticates by a certificate"},
		"the client by which people sign in":         {"stint-admin", leaf, "no client stint-admin that authenticates by a certificate"},
		"nobody":                                     {"nobody", leaf, "no client nobody that authenticates by a certificate"},
	} {
		want := badLogin(c.reason)
		w.refused(t, name, w.by(c.by, "/oauth2/token", asItself(c.id)), want)
	}
	w.reg.Clients[dns].Disabled = true
	w.refused(t, "a disabled client", w.by(leaf, "/oauth2/token", asItself(dns)), badLogin("disabled"))
}

// Where a certificate is registered nothing less does, and nothing beside it.
func TestAttackDowngradesOfCertificates(t *testing.T) {
	t.Parallel()
	w := newTLSTarget(t)
	leaf := signedBy(t, w.ca, func(c *x509.Certificate) { c.DNSNames = []string{"reports.acme.example"} })
	with := func(more ...string) url.Values {
		form := asItself("by-dns")
		for i := 0; i < len(more); i += 2 {
			form.Set(more[i], more[i+1])
		}
		return form
	}
	for name, c := range map[string]struct {
		by   *shown
		form url.Values
	}{
		"a secret in place of the certificate":     {nil, with("client_secret", w.secret.Reveal())},
		"a secret beside the certificate":          {leaf, with("client_secret", w.secret.Reveal())},
		"an assertion in place of the certificate": {nil, with("client_assertion_type", assertionType, "client_assertion", w.assertion(nil))},
		"an assertion beside the certificate":      {leaf, with("client_assertion_type", assertionType, "client_assertion", w.assertion(nil))},
		"its name alone":                           {nil, with()},
	} {
		w.refused(t, name, w.by(c.by, "/oauth2/token", c.form), badLogin("by-dns"))
	}
	// A certificate that somebody says to have seen is nobody's.
	header := func(name, value string) *answer {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots}}
		defer transport.CloseIdleConnections()
		req := must(http.NewRequest(http.MethodPost, "https://"+w.public+"/oauth2/token", strings.NewReader(asItself("by-dns").Encode())))(t)
		req.Header.Set("Content-Type", formType)
		req.Header.Set(name, value)
		return w.doRequest(&http.Client{Transport: transport}, req)
	}
	pem := url.QueryEscape(string(leaf.pem()))
	for _, name := range []string{"X-Client-Cert", "X-Forwarded-Client-Cert", "Client-Cert", "X-SSL-Client-Cert", "X-Amzn-Mtls-Clientcert"} {
		w.refused(t, name, header(name, pem), badLogin("by-dns"))
	}
}

// Certificates are bounded before they are looked at, and every connection proves its
// key anew.
func TestAttackHandshakes(t *testing.T) {
	t.Parallel()
	w := newTLSTarget(t)
	leaf := signedBy(t, w.ca, func(c *x509.Certificate) { c.DNSNames = []string{"reports.acme.example"} })
	cfg := &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS12}
	own := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: leaf.key}
	works := func(chain [][]byte) bool {
		own.Certificate = chain
		mine := cfg.Clone()
		mine.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
		conn := must(tls.Dial("tcp", w.public, mine))(t)
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = conn.Write([]byte("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
		n, _ := conn.Read(make([]byte, 64))
		return n > 0
	}
	if !works([][]byte{leaf.Raw}) {
		t.Fatal("one certificate is refused")
	}
	many := [][]byte{leaf.Raw}
	for range 6 {
		many = append(many, w.ca.Raw)
	}
	if works(many) {
		t.Error("seven certificates are looked at")
	}
	large := signedBy(t, w.ca, func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: make([]byte, 25<<10)}}
	})
	if works([][]byte{leaf.Raw, large.Raw}) {
		t.Error("25 KB of certificates are looked at")
	}
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for range 2 { // a ticket comes with the first answer
		conn := must(tls.Dial("tcp", w.public, cfg))(t)
		_, _ = conn.Write([]byte("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
		_, _ = conn.Read(make([]byte, 64))
		if conn.ConnectionState().DidResume {
			t.Error("a session is taken up again")
		}
		_ = conn.Close()
	}
	cfg.ClientSessionCache = nil
	own.PrivateKey = w.pinned.key // the certificate of one, the key of another
	if works([][]byte{leaf.Raw}) {
		t.Error("a certificate counts without its key")
	}
}

const workloadIssuers = `
  - issuer: https://cluster.test
    accept: [client_assertion]
    max_subject_age: 1h
    scopes: identity-only
`

const workloadClients = `
  - {id: svid, auth: {method: spiffe_jwt, jwks_file: x, spiffe_id: "spiffe://acme.example/reports"}, grant_types: [client_credentials], targets: [https://mcp.test/files], ceiling: "*"}
  - {id: other-svid, auth: {method: spiffe_jwt, jwks_file: x, spiffe_id: "spiffe://acme.example/other"}, grant_types: [client_credentials], targets: [https://mcp.test/files], ceiling: "*"}
  - id: pod
    auth: {method: kubernetes, issuer: "https://cluster.test", service_account: "system:serviceaccount:acme:reports"}
    grant_types: [client_credentials]
    targets: [https://mcp.test/files]
    ceiling: "*"
`

// trustDomain is a trust domain as go-spiffe has it.
type trustDomain struct {
	domain spiffeid.TrustDomain
	key    *rsa.PrivateKey
	bundle []byte
	keys   *jwtbundle.Bundle
}

func newTrustDomain(t testing.TB) *trustDomain {
	t.Helper()
	d := &trustDomain{domain: spiffeid.RequireTrustDomainFromString("acme.example"), key: must(rsa.GenerateKey(rand.Reader, 2048))(t)}
	bundle := spiffebundle.New(d.domain)
	if err := bundle.AddJWTAuthority("k1", d.key.Public()); err != nil {
		t.Fatal(err)
	}
	bundle.AddX509Authority(signedBy(t, nil, authority).Certificate)
	bundle.SetRefreshHint(5 * time.Minute)
	d.bundle, d.keys = must(bundle.Marshal())(t), bundle.JWTBundle()
	return d
}

// svid signs a JWT-SVID.
func (d *trustDomain) svid(t testing.TB, kid string, claims map[string]any) string {
	t.Helper()
	return d.typed(t, "JWT", kid, claims)
}

func (d *trustDomain) typed(t testing.TB, typ jose.ContentType, kid string, claims map[string]any) string {
	t.Helper()
	signer := must(jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: d.key, KeyID: kid}}, (&jose.SignerOptions{}).WithType(typ)))(t)
	return must(jwt.Signed(signer).Claims(claims).Serialize())(t)
}

func (w *target) workload(id, kind, assertion string) *answer {
	w.t.Helper()
	form := asItself(id)
	form.Set("client_assertion_type", kind)
	form.Set("client_assertion", assertion)
	return w.send("/oauth2/token", formType, form.Encode(), func(r *http.Request) { r.Header.Del("Authorization") })
}

const svidType = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"

func newWorkloads(t testing.TB) (*target, *trustDomain, *issuer) {
	t.Helper()
	d, cluster := newTrustDomain(t), newIssuer(t, "https://cluster.test")
	w := newTarget(t, options{issuers: workloadIssuers, clients: workloadClients, tokens: func(cfg *token.Config) {
		cfg.Clients["spiffe://acme.example/reports"] = token.ClientKeys{JWKS: d.bundle, Kind: token.JWTBundle}
		cfg.Clients["spiffe://acme.example/other"] = token.ClientKeys{JWKS: d.bundle, Kind: token.JWTBundle}
		cfg.Issuers = append(cfg.Issuers, token.Issuer{ID: "https://cluster.test", Algorithms: []string{"ES256"}, Types: map[string][]string{"jwt": {"JWT"}}})
		cfg.IssuerKeys["https://cluster.test"] = cluster.jwks(t)
	}})
	return w, d, cluster
}

// SVIDs and bundles are those of go-spiffe, which takes them for good as well.
func TestAttackSVIDs(t *testing.T) {
	t.Parallel()
	w, d, _ := newWorkloads(t)
	claims := func(change map[string]any) map[string]any {
		return w.changed(map[string]any{"sub": "spiffe://acme.example/reports", "aud": []string{self}, "iat": "-1m", "exp": "+4m"}, change)
	}
	good := d.svid(t, "k1", claims(nil))
	for what, id := range map[string]string{"by its id": "svid", "by its SPIFFE ID": "spiffe://acme.example/reports", "by nothing but it": "", "again": "svid"} {
		authenticated(t, what, w.workload(id, svidType, good))
	}
	now := time.Now() // its clock is the machine's
	today := d.svid(t, "k1", map[string]any{"sub": "spiffe://acme.example/reports", "aud": []string{self}, "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()})
	if parsed, err := jwtsvid.ParseAndValidate(today, d.keys, []string{self}); err != nil || parsed.ID.String() != "spiffe://acme.example/reports" {
		t.Errorf("go-spiffe: %v", err)
	}
	svid := func(change map[string]any) string { return d.svid(t, "k1", claims(change)) }
	stranger := newTrustDomain(t)
	for name, c := range map[string]struct{ id, kind, svid, reason string }{
		"for somebody else":              {"svid", svidType, svid(map[string]any{"aud": []string{"https://other.test"}}), "not for"},
		"for somebody else as well":      {"svid", svidType, svid(map[string]any{"aud": []string{self, "https://other.test"}}), "not for"},
		"for the token endpoint":         {"svid", svidType, svid(map[string]any{"aud": self + "/oauth2/token"}), "not for"},
		"for nobody":                     {"svid", svidType, svid(map[string]any{"aud": nil}), "not for"},
		"another workload's":             {"svid", svidType, svid(map[string]any{"sub": "spiffe://acme.example/other"}), "not of client"},
		"another's, by its own name":     {"other-svid", svidType, good, "not of client"},
		"with a slash at the end":        {"svid", svidType, svid(map[string]any{"sub": "spiffe://acme.example/reports/"}), "not of client"},
		"with a slash more":              {"svid", svidType, svid(map[string]any{"sub": "spiffe://acme.example//reports"}), "not of client"},
		"a path under it":                {"svid", svidType, svid(map[string]any{"sub": "spiffe://acme.example/reports/x"}), "not of client"},
		"a path to it":                   {"", svidType, svid(map[string]any{"sub": "spiffe://acme.example/x/../reports"}), "no keys"},
		"an escape":                      {"", svidType, svid(map[string]any{"sub": "spiffe://acme.example/%72eports"}), "no keys"},
		"in capitals":                    {"", svidType, svid(map[string]any{"sub": "spiffe://ACME.example/reports"}), "no keys"},
		"a trust domain that begins so":  {"", svidType, svid(map[string]any{"sub": "spiffe://acme.example.evil/reports"}), "no keys"},
		"a port":                         {"", svidType, svid(map[string]any{"sub": "spiffe://acme.example:443/reports"}), "no keys"},
		"the id as the client's":         {"", svidType, svid(map[string]any{"sub": "svid"}), "no keys"},
		"expired":                        {"svid", svidType, svid(map[string]any{"exp": "-1m"}), "expired"},
		"without an end":                 {"svid", svidType, svid(map[string]any{"exp": nil}), "no claim exp"},
		"for a day":                      {"svid", svidType, svid(map[string]any{"exp": "+24h"}), "valid for more than"},
		"without a key's id":             {"svid", svidType, d.svid(t, "", claims(nil)), "without the id of a key"},
		"of another key's id":            {"svid", svidType, d.svid(t, "k2", claims(nil)), "has no key"},
		"of another type":                {"svid", svidType, d.typed(t, "at+jwt", "k1", claims(nil)), "of type"},
		"signed by a stranger":           {"svid", svidType, stranger.svid(t, "k1", claims(nil)), "does not verify"},
		"as an assertion of RFC 7523":    {"svid", assertionType, good, "no client svid that authenticates by private_key_jwt"},
		"as one, by nothing but it":      {"", assertionType, good, "authenticates by private_key_jwt"},
		"a client's own assertion as it": {"gateway", svidType, w.assertion(nil), "no client gateway that authenticates by spiffe_jwt"},
		"one by nothing but it":          {"", svidType, w.assertion(nil), "no client is gateway"},
	} {
		w.refused(t, name, w.workload(c.id, c.kind, c.svid), badLogin(c.reason))
	}
	w.reg.Clients["svid"].Disabled = true
	w.refused(t, "a disabled client", w.workload("", svidType, good), badLogin("disabled"))
}

// X.509-SVIDs have one URI, the whole SPIFFE ID, and are leaves for signatures.
func TestAttackX509SVIDs(t *testing.T) {
	t.Parallel()
	w := newTLSTarget(t)
	svid := func(change func(*x509.Certificate)) *shown {
		return signedBy(t, w.ca, func(c *x509.Certificate) {
			c.URIs = uris(t, "spiffe://acme.example/reports")
			if change != nil {
				change(c)
			}
		})
	}
	good := svid(nil)
	authenticated(t, "nothing is wrong with it", w.by(good, "/oauth2/token", asItself("svid")))
	if id, err := x509svid.IDFromCert(good.Certificate); err != nil || id.String() != "spiffe://acme.example/reports" {
		t.Errorf("go-spiffe: %v", err)
	}
	named := func(all ...string) *shown { return svid(func(c *x509.Certificate) { c.URIs = uris(t, all...) }) }
	for name, c := range map[string]struct {
		by     *shown
		reason string
	}{
		"another workload":       {named("spiffe://acme.example/other"), "it is of"},
		"another trust domain":   {named("spiffe://evil.example/reports"), "it is of"},
		"a path under it":        {named("spiffe://acme.example/reports/x"), "it is of"},
		"a slash at the end":     {named("spiffe://acme.example/reports/"), "it is of"},
		"an escape":              {named("spiffe://acme.example/%72eports"), "it is of"},
		"two identities":         {named("spiffe://acme.example/reports", "spiffe://acme.example/other"), "it is of"},
		"the same one twice":     {named("spiffe://acme.example/reports", "spiffe://acme.example/reports"), "it is of"},
		"a URI beside it":        {named("spiffe://acme.example/reports", "https://acme.example"), "it is of"},
		"none":                   {named(), "it is of"},
		"as a DNS name":          {svid(func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"spiffe://acme.example/reports"} }), "it is of"},
		"that signs others":      {svid(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), "no leaf"},
		"not for signatures":     {svid(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), "no leaf"},
		"of an authority":        {svid(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }), "of an authority"},
		"of another authority":   {signedBy(t, signedBy(t, nil, authority), func(c *x509.Certificate) { c.URIs = uris(t, "spiffe://acme.example/reports") }), "unknown authority"},
		"one that signed itself": {signedBy(t, nil, func(c *x509.Certificate) { c.URIs = uris(t, "spiffe://acme.example/reports") }), "unknown authority"},
	} {
		w.refused(t, name, w.by(c.by, "/oauth2/token", asItself("svid")), badLogin(c.reason))
	}
}

// A token of a service account is its client's, whole and for us alone.
func TestAttackServiceAccounts(t *testing.T) {
	t.Parallel()
	w, _, cluster := newWorkloads(t)
	made := func(i *issuer, change map[string]any) string {
		return i.sign(t, "", w.changed(map[string]any{
			"iss": "https://cluster.test", "sub": "system:serviceaccount:acme:reports", "aud": []string{self}, "jti": "one", "iat": "-1m", "nbf": "-1m", "exp": "+1h",
			"kubernetes.io": map[string]any{"namespace": "acme", "serviceaccount": map[string]any{"name": "reports", "uid": "u"}},
		}, change))
	}
	account := func(change map[string]any) string { return made(cluster, change) }
	good := account(nil)
	for what, id := range map[string]string{"by its id": "pod", "by nothing but it": "", "again": "pod"} {
		authenticated(t, what, w.workload(id, assertionType, good))
	}
	for name, c := range map[string]struct{ id, kind, assertion, reason string }{
		"for the API server":             {"pod", assertionType, account(map[string]any{"aud": []string{"https://kubernetes.default.svc"}}), "not for"},
		"for the API server as well":     {"pod", assertionType, account(map[string]any{"aud": []string{self, "https://kubernetes.default.svc"}}), "not for"},
		"another account":                {"pod", assertionType, account(map[string]any{"sub": "system:serviceaccount:acme:other"}), "no client is"},
		"another namespace":              {"pod", assertionType, account(map[string]any{"sub": "system:serviceaccount:other:reports"}), "no client is"},
		"an account that begins so":      {"pod", assertionType, account(map[string]any{"sub": "system:serviceaccount:acme:reports-2"}), "no client is"},
		"in capitals":                    {"pod", assertionType, account(map[string]any{"sub": "system:serviceaccount:acme:Reports"}), "no client is"},
		"a user of the same name":        {"pod", assertionType, account(map[string]any{"sub": "acme:reports"}), "no client is"},
		"of another cluster":             {"pod", assertionType, w.token("idp", "at+jwt", map[string]any{"sub": "system:serviceaccount:acme:reports"}), "no client is"},
		"signed by a stranger":           {"pod", assertionType, made(newIssuer(t, "https://cluster.test"), nil), "does not verify"},
		"expired":                        {"pod", assertionType, account(map[string]any{"exp": "-1m"}), "expired"},
		"not good yet":                   {"pod", assertionType, account(map[string]any{"nbf": "+1m"}), "not valid yet"},
		"too old":                        {"pod", assertionType, account(map[string]any{"iat": "-2h", "nbf": "-2h"}), "max_subject_age"},
		"as another client":              {"gateway", assertionType, good, "does not verify"},
		"as an SVID":                     {"pod", svidType, good, "no client pod that authenticates by spiffe_jwt"},
		"a client's own assertion as it": {"pod", assertionType, w.assertion(nil), "is not trusted"},
		"a token of ours":                {"pod", assertionType, w.granted(t, "a token of ours", w.itself()), "no client is"},
	} {
		w.refused(t, name, w.workload(c.id, c.kind, c.assertion), badLogin(c.reason))
	}
	w.refused(t, "as a subject", w.exchangeAs("files-mcp", good, "jwt", nil), badSubject("is not accepted"))
	w.reg.Issuers["https://cluster.test"].Disabled = true
	w.refused(t, "of a cluster that was turned off", w.workload("pod", assertionType, good), badLogin("disabled"))
	w.reg.Issuers["https://cluster.test"].Disabled = false
	w.reg.Issuers["https://cluster.test"].Accept = []string{"jwt"}
	w.refused(t, "of a cluster that is no issuer of assertions", w.workload("pod", assertionType, good), badLogin("no assertions"))
}
