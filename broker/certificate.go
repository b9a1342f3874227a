package broker

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Thumbprint is how a token names the certificate that it is bound to: x5t#S256 (RFC
// 8705 section 3.1), the SHA-256 of the certificate in base64url.
func Thumbprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Shown is the thumbprint of the certificate that a connection was made with; empty
// without one.
func Shown(c *tls.ConnectionState) string {
	if c == nil || len(c.PeerCertificates) == 0 {
		return ""
	}
	return Thumbprint(c.PeerCertificates[0])
}

// names checks that a certificate, which has been verified, is of this client: RFC 8705
// section 2.1.2, SPIFFE X509-SVID section 2.
func (a *ClientAuth) names(c *x509.Certificate) error {
	switch {
	case a.Method == methodSPIFFEX509:
		return isSVID(c, a.SPIFFEID)
	case a.SubjectDN != "":
		if dn, err := subjectDN(c); err != nil || dn != a.SubjectDN {
			return fmt.Errorf("its subject is %q, not %q", printable(dn), a.SubjectDN)
		}
		return nil
	}
	tag, want := a.san()
	all, err := alternativeNames(c)
	if err != nil {
		return err
	}
	if want == "" || !slices.Contains(all[tag], want) {
		return fmt.Errorf("among its alternative names %q there is no %q", printable(strings.Join(all[tag], " ")), want)
	}
	return nil
}

// Tags of alternative names (RFC 5280 section 4.2.1.6).
const (
	tagEmail = 1
	tagDNS   = 2
	tagURI   = 6
	tagIP    = 7
)

// san is the alternative name that a client's certificate has to have, in the bytes
// that stand in it.
func (a *ClientAuth) san() (tag int, want string) {
	switch {
	case a.SANDNS != "":
		return tagDNS, a.SANDNS
	case a.SANURI != "":
		return tagURI, a.SANURI
	case a.SANEmail != "":
		return tagEmail, a.SANEmail
	}
	ip, err := netip.ParseAddr(a.SANIP)
	if err != nil {
		return tagIP, ""
	}
	return tagIP, string(ip.AsSlice())
}

var (
	oidAlternativeNames = asn1.ObjectIdentifier{2, 5, 29, 17}
	errNames            = errors.New("its alternative names cannot be read")
)

// alternativeNames returns the names by their tag, byte by byte: a URL that was taken
// apart and put together again is another text.
func alternativeNames(c *x509.Certificate) (map[int][]string, error) {
	out := make(map[int][]string)
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidAlternativeNames) {
			continue
		}
		var all asn1.RawValue
		rest, err := asn1.Unmarshal(e.Value, &all)
		if err != nil || len(rest) > 0 || !all.IsCompound || all.Tag != asn1.TagSequence || len(out) > 0 {
			return nil, errNames
		}
		for rest = all.Bytes; len(rest) > 0; {
			var name asn1.RawValue
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				return nil, errNames
			}
			if name.Class == asn1.ClassContextSpecific {
				out[name.Tag] = append(out[name.Tag], string(name.Bytes))
			}
		}
	}
	return out, nil
}

// isSVID checks that a certificate is the SVID of a workload: a leaf that may sign, with
// one URI and no other, which is its SPIFFE ID.
func isSVID(c *x509.Certificate, id string) error {
	all, err := alternativeNames(c)
	switch {
	case err != nil:
		return err
	case c.IsCA || c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 || c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("it is no leaf for signatures")
	case len(all[tagURI]) != 1 || all[tagURI][0] != id:
		return fmt.Errorf("it is of %q, not of %s alone", printable(strings.Join(all[tagURI], " ")), id)
	}
	return nil
}

// attributes are the names of the types in distinguished names (RFC 4514 section 3).
var attributes = map[string]string{
	"2.5.4.3": "CN", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.6": "C", "2.5.4.9": "STREET",
	"0.9.2342.19200300.100.1.25": "DC", "0.9.2342.19200300.100.1.1": "UID",
}

// subjectDN writes a certificate's subject as RFC 4514 section 2 says: the last part
// first, each value as text. One that is no text has no such form here.
func subjectDN(c *x509.Certificate) (string, error) {
	var seq pkix.RDNSequence
	if rest, err := asn1.Unmarshal(c.RawSubject, &seq); err != nil || len(rest) > 0 {
		return "", errors.New("its subject cannot be read")
	}
	parts := make([]string, 0, len(seq))
	for _, rdn := range slices.Backward(seq) {
		var pairs []string
		for _, a := range rdn {
			name := attributes[a.Type.String()]
			if name == "" {
				name = a.Type.String()
			}
			value, ok := a.Value.(string)
			if !ok || !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
				return "", fmt.Errorf("%s of its subject is no text", name)
			}
			pairs = append(pairs, name+"="+escapeDN(value))
		}
		parts = append(parts, strings.Join(pairs, "+"))
	}
	return strings.Join(parts, ","), nil
}

// escapeDN escapes a value (RFC 4514 section 2.4).
func escapeDN(s string) string {
	var b strings.Builder
	for i, r := range s {
		if strings.ContainsRune(`"+,;<>\`, r) || i == 0 && (r == ' ' || r == '#') || i == len(s)-1 && r == ' ' {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// CheckDN reports a distinguished name that is not written as those of certificates are
// compared, so that it would never match: RFC 4514, the names of types in capitals, no
// spaces around commas, nothing escaped that need not be.
func CheckDN(dn string) error {
	if len(dn) > 2*maxName || !utf8.ValidString(dn) || strings.ContainsFunc(dn, unicode.IsControl) {
		return errors.New("it is no text, or too long")
	}
	for _, part := range splitDN(dn) {
		name, value, ok := strings.Cut(part, "=")
		known := strings.Contains(name, ".") && !strings.ContainsFunc(name, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }) && attributes[name] == ""
		for _, short := range attributes {
			known = known || name == short
		}
		if !ok || !known {
			return fmt.Errorf("%q: write TYPE=VALUE,TYPE=VALUE without spaces between, the last part of the subject first; TYPE is CN, L, ST, O, OU, C, STREET, DC, UID or a number", printable(part))
		}
		if plain := unescapeDN(value); plain == "" || escapeDN(plain) != value {
			return fmt.Errorf("%q: its value is compared as %q", printable(part), escapeDN(plain))
		}
	}
	return nil
}

// splitDN cuts a name at commas and plus signs that are not escaped.
func splitDN(dn string) (parts []string) {
	begin, escaped := 0, false
	for i, r := range dn {
		if !escaped && (r == ',' || r == '+') {
			parts = append(parts, dn[begin:i])
			begin = i + 1
		}
		escaped = !escaped && r == '\\'
	}
	return append(parts, dn[begin:])
}

func unescapeDN(s string) string {
	var b strings.Builder
	escaped := false
	for _, r := range s {
		if escaped = !escaped && r == '\\'; !escaped {
			b.WriteRune(r)
		}
	}
	return b.String()
}
