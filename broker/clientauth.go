package broker

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/stint-dev/stint/scopes"
)

// The methods of authentication beyond secrets.
const (
	methodKeyJWT     = "private_key_jwt"             // RFC 7523 section 2.2
	methodTLS        = "tls_client_auth"             // RFC 8705 section 2.1
	methodSelfSigned = "self_signed_tls_client_auth" // RFC 8705 section 2.2
	methodKubernetes = "kubernetes"                  // RFC 7523, an assertion of the cluster
	methodSPIFFEX509 = "spiffe_x509"                 // draft-ietf-oauth-spiffe-client-auth
	methodSPIFFEJWT  = "spiffe_jwt"
)

// asAssertion is what an issuer's tokens may be accepted as, besides their uses.
const asAssertion = "client_assertion"

// ClientAuth is how a client authenticates (RFC 7591 section 2,
// token_endpoint_auth_method).
type ClientAuth struct {
	// Method is the one method that is accepted: a secret (client_secret_basic,
	// client_secret_post), an assertion (private_key_jwt; kubernetes, of a service
	// account; spiffe_jwt), or a certificate (tls_client_auth,
	// self_signed_tls_client_auth, spiffe_x509), for which listen.tls is needed.
	Method string `yaml:"method" check:"required,oneof=client_secret_basic|client_secret_post|private_key_jwt|tls_client_auth|self_signed_tls_client_auth|kubernetes|spiffe_x509|spiffe_jwt"`
	// SecretHashes are the hashes of its secrets, as `stint clients add` prints
	// them; two while a secret is being replaced.
	SecretHashes []string `yaml:"secret_hashes,omitempty"`
	// JWKS holds its public keys, JWKSFile names a file that does, and JWKSURI a
	// place they are fetched from (private_key_jwt). For self_signed_tls_client_auth
	// the keys have their certificate (x5c); for spiffe_jwt and spiffe_x509 they are
	// the bundle of the trust domain.
	JWKS     *scopes.Raw `yaml:"jwks,omitempty"`
	JWKSFile string      `yaml:"jwks_file,omitempty"`
	JWKSURI  string      `yaml:"jwks_uri,omitempty" check:"https"`
	// CAFile names a file of certificates in PEM: those of the authorities that sign
	// its certificates, and of no others (tls_client_auth, spiffe_x509). Absent for
	// tls_client_auth: listen.tls.client_ca.
	CAFile string `yaml:"ca_file,omitempty"`
	// SubjectDN, SANDNS, SANURI, SANIP and SANEmail are what its certificate says of it
	// (tls_client_auth; RFC 8705 section 2.1.2): one of them, compared letter by letter.
	// SubjectDN is written as in RFC 4514: CN=reports,O=Acme.
	SubjectDN string `yaml:"subject_dn,omitempty"`
	SANDNS    string `yaml:"san_dns,omitempty"`
	SANURI    string `yaml:"san_uri,omitempty"`
	SANIP     string `yaml:"san_ip,omitempty"`
	SANEmail  string `yaml:"san_email,omitempty"`
	// Issuer is the issuer of its service-account tokens, one of issuers, and
	// ServiceAccount is it as the claim sub has it: system:serviceaccount:NAMESPACE:NAME
	// (kubernetes).
	Issuer         string `yaml:"issuer,omitempty" check:"https"`
	ServiceAccount string `yaml:"service_account,omitempty"`
	// SPIFFEID is its whole identity, such as spiffe://acme.example/reports
	// (spiffe_x509, spiffe_jwt).
	SPIFFEID string `yaml:"spiffe_id,omitempty"`
}

// byCertificate reports whether the client shows a certificate.
func (a *ClientAuth) byCertificate() bool {
	return a.Method == methodTLS || a.Method == methodSelfSigned || a.Method == methodSPIFFEX509
}

// ByCertificate reports whether the client authenticates by a certificate.
func (c *Client) ByCertificate() bool { return c.Auth.byCertificate() }

// given are the names of settings that are there, but for method.
func (a *ClientAuth) given() (names []string) {
	for _, s := range [...]struct {
		name  string
		there bool
	}{
		{"secret_hashes", len(a.SecretHashes) > 0}, {"jwks", a.JWKS != nil}, {"jwks_file", a.JWKSFile != ""}, {"jwks_uri", a.JWKSURI != ""},
		{"ca_file", a.CAFile != ""}, {"subject_dn", a.SubjectDN != ""}, {"san_dns", a.SANDNS != ""}, {"san_uri", a.SANURI != ""},
		{"san_ip", a.SANIP != ""}, {"san_email", a.SANEmail != ""}, {"issuer", a.Issuer != ""}, {"service_account", a.ServiceAccount != ""},
		{"spiffe_id", a.SPIFFEID != ""},
	} {
		if s.there {
			names = append(names, s.name)
		}
	}
	return names
}

// wanted says which settings a method has: of each group one.
var wanted = map[string][][]string{
	"client_secret_basic": {{"secret_hashes"}},
	"client_secret_post":  {{"secret_hashes"}},
	methodKeyJWT:          {keySettings},
	methodTLS:             {{"subject_dn", "san_dns", "san_uri", "san_ip", "san_email"}},
	methodSelfSigned:      {keySettings},
	methodKubernetes:      {{"issuer"}, {"service_account"}},
	methodSPIFFEX509:      {{"spiffe_id"}, append([]string{"ca_file"}, keySettings...)},
	methodSPIFFEJWT:       {{"spiffe_id"}, keySettings},
}

var keySettings = []string{"jwks", "jwks_file", "jwks_uri"}

// check says what is wrong with how a client authenticates.
func (a *ClientAuth) check() error {
	given := a.given()
	if a.Method == methodTLS { // besides what it wants
		given = slices.DeleteFunc(given, func(s string) bool { return s == "ca_file" })
	}
	right := true
	var words []string
	for _, group := range wanted[a.Method] {
		n := len(given)
		given = slices.DeleteFunc(given, func(s string) bool { return slices.Contains(group, s) })
		right = right && n == len(given)+1
		words = append(words, oneOf(group))
	}
	switch {
	case len(a.SecretHashes) > 4:
		return errors.New("more than four secret_hashes")
	case !right || len(given) > 0:
		return fmt.Errorf("%s needs %s, and nothing else; `stint clients add` makes an entry", a.Method, strings.Join(words, " and "))
	}
	for _, h := range a.SecretHashes {
		if _, err := parseSecretHash(h); err != nil {
			return fmt.Errorf("secret_hashes: %w", err)
		}
	}
	return a.checkNames()
}

func oneOf(group []string) string {
	if len(group) == 1 {
		return group[0]
	}
	return "one of " + strings.Join(group, ", ")
}

// checkNames refuses names that no certificate and no token could have.
func (a *ClientAuth) checkNames() error {
	if err := CheckDN(a.SubjectDN); a.SubjectDN != "" && err != nil {
		return fmt.Errorf("subject_dn: %w", err)
	}
	for _, n := range [...]struct{ name, value string }{{"san_dns", a.SANDNS}, {"san_uri", a.SANURI}, {"san_email", a.SANEmail}} {
		if len(n.value) > maxName || strings.ContainsFunc(n.value, func(r rune) bool { return r <= ' ' || r > '~' || r == '*' }) {
			return fmt.Errorf("%s: %q is no one name in ASCII", n.name, n.value)
		}
	}
	if ip, err := netip.ParseAddr(a.SANIP); a.SANIP != "" && (err != nil || ip.Zone() != "" || ip.Is4In6() || ip.String() != a.SANIP) {
		return fmt.Errorf("san_ip: %q is no address in its short form", a.SANIP)
	}
	if err := checkServiceAccount(a.ServiceAccount); a.ServiceAccount != "" && err != nil {
		return fmt.Errorf("service_account: %w", err)
	}
	if err := checkSPIFFEID(a.SPIFFEID); a.SPIFFEID != "" && err != nil {
		return fmt.Errorf("spiffe_id: %w", err)
	}
	return nil
}

// checkServiceAccount reports a name that is not of one service account.
func checkServiceAccount(name string) error {
	part := strings.Split(name, ":")
	label := func(s string) bool {
		return s != "" && len(s) <= 253 && !strings.ContainsFunc(s, func(r rune) bool { return r != '-' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') })
	}
	if len(part) != 4 || part[0] != "system" || part[1] != "serviceaccount" || !label(part[2]) || !label(part[3]) {
		return fmt.Errorf("%q is not system:serviceaccount:NAMESPACE:NAME", name)
	}
	return nil
}

// checkSPIFFEID reports what is no SPIFFE ID of a workload (SPIFFE-ID section 2): the
// scheme, a trust domain in small letters, and a path of whole segments.
func checkSPIFFEID(id string) error {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	domain, path, found := strings.Cut(rest, "/")
	among := func(s, extra string) bool {
		return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
			return (r < '0' || r > '9') && (r < 'a' || r > 'z') && !strings.ContainsRune(extra, r)
		})
	}
	ok = ok && found && len(id) <= maxName && len(domain) <= 255 && among(domain, ".-_")
	for segment := range strings.SplitSeq(path, "/") {
		ok = ok && among(strings.ToLower(segment), ".-_") && segment == strings.Map(ascii, segment) && segment != "." && segment != ".."
	}
	if !ok {
		return fmt.Errorf("%q is not spiffe://TRUST-DOMAIN/PATH", id)
	}
	return nil
}

// ascii drops what is not ASCII: some letters become ASCII in small.
func ascii(r rune) rune {
	if r > '~' {
		return -1
	}
	return r
}

// workload is whom the issuer of a client's assertions calls it; ok is false for
// clients that have no such name.
func (a *ClientAuth) workload() (key [2]string, ok bool) {
	switch a.Method {
	case methodKubernetes:
		return [2]string{a.Issuer, a.ServiceAccount}, true
	case methodSPIFFEJWT, methodSPIFFEX509:
		return [2]string{a.Method, a.SPIFFEID}, true
	}
	return key, false
}

// addWorkload files a client under the name that it authenticates as.
func (r *Registry) addWorkload(c *Client, failf func(at scopes.Pos, format string, args ...any)) {
	key, ok := c.Auth.workload()
	if !ok {
		return
	}
	if i := r.Issuers[c.Auth.Issuer]; c.Auth.Method == methodKubernetes && (i == nil || !slices.Contains(i.Accept, asAssertion)) {
		failf(c.Pos, "client %s: auth: no issuer %q is configured that accepts client_assertion", c.ID, c.Auth.Issuer)
	}
	if other := r.workloads[key]; other != "" {
		failf(c.Pos, "client %s: auth: %s is client %s already", c.ID, key[1], other)
	}
	r.workloads[key] = c.ID
}

// AuthMethods are the methods of authentication that clients can use here (RFC 8414
// section 2): those that need nothing but a client, and of the others those that one is
// registered for. What a service account presents is on the wire a private_key_jwt.
func (r *Registry) AuthMethods() []string {
	out := []string{"client_secret_basic", "client_secret_post", methodKeyJWT}
	for _, m := range []string{methodTLS, methodSelfSigned, methodSPIFFEX509, methodSPIFFEJWT} {
		for _, c := range r.Clients {
			if c.Auth.Method == m {
				out = append(out, m)
				break
			}
		}
	}
	return out
}

// BindsTokens reports whether a client is given tokens that are bound to its
// certificate.
func (r *Registry) BindsTokens() bool {
	for _, c := range r.Clients {
		if c.BoundTokens {
			return true
		}
	}
	return false
}
