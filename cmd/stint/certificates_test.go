package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/testbed"
)

// opensslIn runs it in a folder.
func opensslIn(t *testing.T, dir string, args ...string) {
	t.Helper()
	c := exec.Command(testbed.Find(t, "apt-get install openssl", "openssl"), args...)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("openssl %q: %v\n%s", args, err, out)
	}
}

// What is configured for a client with a certificate is what is served: curl shows one,
// and the metadata says that it may.
func TestAClientWithACertificateIsServed(t *testing.T) {
	curl := testbed.Find(t, "apt-get install curl", "curl")
	dir := initialised(t)
	file := filepath.Join(dir, theConfig)
	shortSocket(t, file)
	opensslIn(t, dir, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "tls.key", "-out", "tls.crt", "-days", "2", "-subj", "/CN=server", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
	opensslIn(t, dir, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority")
	opensslIn(t, dir, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "batch.key", "-out", "batch.csr", "-subj", "/O=Acme/CN=batch")
	opensslIn(t, dir, "x509", "-req", "-in", "batch.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "batch.pem", "-days", "2")
	edit(t, file, "  ops:", "  tls: {certificate: tls.crt, key: tls.key}\n  ops:")
	text, code := stintCLI(t, "client", "add", "batch", "--target", theTarget, "--client-credentials", "--method", "tls_client_auth",
		"--auth", "subject_dn=CN=batch,O=Acme", "--auth", "ca_file=ca.pem", "-c", file)
	if code != 0 {
		t.Fatalf("%d: %s", code, text)
	}
	clientEntryIn(t, file, text)
	address := serving(t, file)
	ask := func(path string, more ...string) (out struct {
		Error   string   `json:"error"`
		Methods []string `json:"token_endpoint_auth_methods_supported"`
	}) {
		t.Helper()
		c := exec.Command(curl, append([]string{"-sS", "--cacert", "tls.crt", "https://" + address + path}, more...)...)
		c.Dir = dir
		body, err := c.CombinedOutput()
		if err != nil || json.Unmarshal(body, &out) != nil {
			t.Fatalf("curl: %v: %s", err, body)
		}
		return out
	}
	form := []string{"-d", "grant_type=client_credentials", "-d", "client_id=batch", "-d", "scope=x", "--data-urlencode", "resource=" + theTarget}
	if got := ask("/oauth2/token", form...); got.Error != "invalid_client" {
		t.Errorf("without a certificate: %q", got.Error)
	}
	if got := ask("/oauth2/token", append(form, "--cert", "batch.pem", "--key", "batch.key")...); got.Error != "invalid_scope" {
		t.Errorf("with it: %q, which is not about what it asked for", got.Error)
	}
	if got := ask("/.well-known/oauth-authorization-server"); !strings.Contains(strings.Join(got.Methods, " "), "tls_client_auth") {
		t.Errorf("the metadata: %q", got.Methods)
	}
}

// What cannot be served is refused, and authorities that are of no use are warned of.
func TestConfigurationsOfCertificates(t *testing.T) {
	entry := func(auth string) string {
		return "  - {id: batch, auth: {" + auth + "}, grant_types: [client_credentials], targets: [" + theTarget + "], ceiling: \"*\"}"
	}
	const ours = "  tls: {certificate: tls.crt, key: tls.key}\n  ops:"
	for name, tc := range map[string]struct {
		listen, auth, mistake, warning string
	}{
		"plain HTTP":                  {"  ops:", "method: tls_client_auth, ca_file: ca.pem, san_dns: x", "needs listen.tls", ""},
		"behind a proxy":              {"  behind_proxy: true\n  ops:", "method: tls_client_auth, ca_file: ca.pem, san_dns: x", "needs listen.tls", ""},
		"TLS 1.2":                     {strings.Replace(ours, "}", ", min_version: '1.2'}", 1), "method: tls_client_auth, ca_file: ca.pem, san_dns: x", "TLS 1.3 alone", ""},
		"no authority":                {ours, "method: tls_client_auth, san_dns: x", "no authority is named", ""},
		"the listener's authority":    {strings.Replace(ours, "}", ", client_ca: ca.pem}", 1), "method: tls_client_auth, san_dns: x", "", ""},
		"an authority that is none":   {ours, "method: tls_client_auth, ca_file: leaf.pem, san_dns: x", "is no authority", ""},
		"a file that is none":         {ours, "method: tls_client_auth, ca_file: tls.key, san_dns: x", "where certificates belong", ""},
		"a file that is not there":    {ours, "method: tls_client_auth, ca_file: none.pem, san_dns: x", "none.pem: no such file", ""},
		"an authority that expired":   {ours, "method: tls_client_auth, ca_file: old.pem, san_dns: x", "", "it expired on"},
		"two names":                   {ours, "method: tls_client_auth, ca_file: ca.pem, san_dns: x, san_uri: 'https://x'", "needs one of", ""},
		"a name that could be many":   {ours, "method: tls_client_auth, ca_file: ca.pem, san_dns: '*.x'", "no one name", ""},
		"a subject in other words":    {ours, "method: tls_client_auth, ca_file: ca.pem, subject_dn: 'cn=batch, o=Acme'", "TYPE=VALUE", ""},
		"a subject that needs escape": {ours, `method: tls_client_auth, ca_file: ca.pem, subject_dn: 'CN=a\,b,O=Acme'`, "", ""},
		"no issuer of assertions":     {ours, "method: kubernetes, issuer: 'https://idp.example', service_account: 'system:serviceaccount:a:b'", "accepts client_assertion", ""},
		"no service account":          {ours, "method: kubernetes, issuer: 'https://idp.example', service_account: 'system:serviceaccount:a:*'", "NAMESPACE:NAME", ""},
		"a trust domain alone":        {ours, "method: spiffe_x509, ca_file: ca.pem, spiffe_id: 'spiffe://acme.example'", "TRUST-DOMAIN/PATH", ""},
		"a path that goes up":         {ours, "method: spiffe_x509, ca_file: ca.pem, spiffe_id: 'spiffe://acme.example/a/../b'", "TRUST-DOMAIN/PATH", ""},
		"a slash at the end":          {ours, "method: spiffe_x509, ca_file: ca.pem, spiffe_id: 'spiffe://acme.example/a/'", "TRUST-DOMAIN/PATH", ""},
		"capitals in a trust domain":  {ours, "method: spiffe_x509, ca_file: ca.pem, spiffe_id: 'spiffe://Acme.example/a'", "TRUST-DOMAIN/PATH", ""},
		"an SVID of an authority":     {ours, "method: spiffe_x509, ca_file: ca.pem, spiffe_id: 'spiffe://acme.example/a'", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := initialised(t)
			certificateFiles(t, dir, "localhost", time.Now().Add(time.Hour))
			opensslIn(t, dir, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority")
			opensslIn(t, dir, "req", "-new", "-key", "ca.key", "-out", "leaf.csr", "-subj", "/CN=leaf")
			opensslIn(t, dir, "x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "leaf.pem", "-days", "2")
			if tc.warning != "" {
				old, err := os.ReadFile("testdata/expired-authority.pem")
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, "old.pem"), old, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			file := filepath.Join(dir, theConfig)
			edit(t, file, "  ops:", tc.listen, "clients:\n", "clients:\n"+entry(tc.auth)+"\n")
			r := check(t.Context(), file, checkAway)
			if tc.mistake == "" && len(r.Mistakes) > 0 || tc.mistake != "" && (len(r.Mistakes) != 1 || !strings.Contains(r.Mistakes[0].String(), tc.mistake)) {
				t.Errorf("mistakes: %v", r.Mistakes)
			}
			found := ""
			for _, w := range r.Warnings {
				found += w.String()
			}
			if tc.mistake == "" && (tc.warning == "") != !strings.Contains(found, "authority") || !strings.Contains(found, tc.warning) {
				t.Errorf("warnings: %s", found)
			}
		})
	}
}
