package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/testbed"
)

// edit replaces texts in a file; an empty one stands for its end.
func edit(t *testing.T, file string, pairs ...string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for i := 0; i < len(pairs); i += 2 {
		switch {
		case pairs[i] == "":
			text += pairs[i+1]
		case !strings.Contains(text, pairs[i]):
			t.Fatalf("%s has no %q", file, pairs[i])
		default:
			text = strings.Replace(text, pairs[i], pairs[i+1], 1)
		}
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// publicKey returns a JWK set with a key that nobody holds.
func publicKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return fmt.Appendf(nil, `{"keys":[{"kty":"EC","crv":"P-256","kid":"k","alg":"ES256","x":%q,"y":%q}]}`, b64(point[1:33]), b64(point[33:]))
}

// certificateFiles writes a certificate for a name, and its key.
func certificateFiles(t *testing.T, dir, name string, until time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	in := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: until.Add(-time.Hour), NotAfter: until}
	cert, err1 := x509.CreateCertificate(rand.Reader, in, in, &key.PublicKey, key)
	private, err2 := x509.MarshalPKCS8PrivateKey(key)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	for file, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: cert}, "tls.key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	theMapping = "mappings/example.yaml"
	theCedar   = "mappings/example.cedar"
)

// What the check refuses, starting refuses, and each mistake says where it stands.
func TestCheckRefusesWhatStartingRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		file  string
		edits []string
		want  []string // FILE:LINE:COLUMN: TEXT, its beginning
	}{
		"a key that there is not":     {theConfig, []string{"data: data", "dta: data"}, []string{"stint.yaml:6:1: data is missing", `stint.yaml:13:1: no such key: "dta"; did you mean data?`}},
		"an issuer twice":             {theConfig, []string{"https://idp.example\n", "http://localhost:8080\n"}, []string{"stint.yaml:48:5: issuer http://localhost:8080 is there twice, or is our own", "stint.yaml:78:5: identities: no configured issuer"}},
		"keys in a file that is gone": {theConfig, []string{"[RS256, ES256]", "[ES256]\n    jwks_file: keys.json"}, []string{"stint.yaml:48:5: issuer https://idp.example: jwks_file: keys.json: no such file or directory"}},
		"keys of a client that are none": {theConfig, []string{"auth: {", `auth: {method: private_key_jwt, jwks: {keys: [{kty: oct, k: x}]}} # `},
			[]string{"stint.yaml:64:5: client notes-mcp: its keys: key 1: "}},
		"an authority that is gone":                               {theConfig, []string{"", "network: {ca: nowhere.pem}\n"}, []string{":11: network: ca: nowhere.pem: no such file or directory"}},
		"an authority that is none":                               {theConfig, []string{"", "network: {ca: stint.yaml}\n"}, []string{":11: network: ca: stint.yaml holds no certificate"}},
		"one address for both":                                    {theConfig, []string{"127.0.0.1:9464", "localhost:8080"}, []string{"listen: ops: localhost:8080: address listens there already"}},
		"a certificate that is gone":                              {theConfig, []string{"  ops:", "  tls: {certificate: tls.crt, key: tls.key}\n  ops:"}, []string{"stint.yaml:22:9: listen: tls: certificate: open DIR/tls.crt: no such file"}},
		"a kind that there is not":                                {theConfig, []string{"", "providers: [{name: a, kind: oracle, settings: {x: y}}]\n"}, []string{`: provider a: there is no kind of provider "oracle"`}},
		"settings that are wrong":                                 {theConfig, []string{"", "providers:\n  - name: a\n    kind: postgres\n    settings:\n      host: db\n"}, []string{":7: database is missing", ":7: password is missing", ":7: entitlement is missing"}},
		"a provider that lends for longer than anything may live": {theConfig, []string{"[access_token]", "[access_token, id_token]", "", "connect: {sign_in: {issuer: 'https://idp.example', client_id: stint}}\nproviders:\n  - {name: a, kind: google, settings: {flow: user, client_id: c, client_secret: 'env:S', scopes: [drive]}}\n"}, []string{": provider a: it lends for at least 1h0m30s, and lifetimes.credential is 15m"}},
		"Vault's kind without Vault":                              {theConfig, []string{"", "providers:\n  - {name: a, kind: vault, settings: {roles: {r: {mount: database, path: creds/r, policy: stint-r}}}}\n"}, []string{": provider a: "}},
		"accounts that nobody can link": {theConfig, []string{"", "providers:\n  - name: a\n    kind: github\n    settings: {mode: user, apps: [{client_id: x, private_key: 'env:K', client_secret: 'env:S'}]}\n"},
			[]string{": provider a: people link accounts of their own at it, and nothing says how they sign in: add connect.sign_in, or admin"}},
		"a provider called as a page": {theConfig, []string{"[access_token]", "[access_token, id_token]", "", "connect: {sign_in: {issuer: 'https://idp.example', client_id: stint}}\nproviders:\n  - name: cli\n    kind: github\n    settings: {mode: user, apps: [{client_id: x, private_key: 'env:K', client_secret: 'env:S'}]}\n"},
			[]string{": provider cli: a page below /connect has this name"}},
		"no mappings":                                         {theConfig, []string{"mappings: mappings", "mappings: nowhere"}, []string{"stint.yaml:44:1: mappings: nowhere: the folder of the mappings: no such file or directory"}},
		"a mapping that is broken":                            {theMapping, []string{"scopes:\n", "scopes: [\n"}, []string{"mappings/example.yaml:13:1: did not find expected"}},
		"names that there are not":                            {theMapping, []string{"[editors]", "[authors]", "[notes:write]", "[notes:wirte]"}, []string{`mappings/example.yaml:36:13: allow: there is no scope "notes:wirte"`, `mappings/example.yaml:37:19: to: no group of a configured issuer is called "authors"`}},
		"a condition that is none":                            {theMapping, []string{"hour >= 6", `hour >= "six"`}, []string{"mappings/example.yaml:39:5: when: "}},
		"a client that acts for itself and a rule for groups": {theConfig, []string{`["urn:ietf:params:oauth:grant-type:token-exchange"]`, "[client_credentials]"}, []string{"12:3: nobody can get the scope notes:read", "19:3: nobody can get the scope notes:write", "34:5: this rule never matches", "36:5: this rule never matches"}},
		"a client that may ask for nothing":                   {theConfig, []string{`["urn:ietf:params:oauth:grant-type:token-exchange"]`, "[]"}, []string{"12:3: nobody can get the scope notes:read", "19:3: nobody can get the scope notes:write", "34:5: this rule never matches", "36:5: this rule never matches"}},
		"a scope for nobody":                                  {theMapping, []string{"  notes:write:\n", "  notes:delete: {access: admin}\n  notes:write:\n"}, []string{"mappings/example.yaml:19:3: nobody can get the scope notes:delete"}},
		"Cedar that is none":                                  {theCedar, []string{"forbid (", "forbidden ("}, []string{`mappings/example.cedar:6:11: "(": unexpected effect: forbidden`}},
		"Cedar of something else":                             {theCedar, []string{"notes:write", "notes:erase"}, []string{"mappings/example.cedar:6:1: "}},
		"everything at once":                                  {theConfig, []string{"", "providers: [{name: a, kind: oracle, settings: {x: y}}]\nnetwork: {ca: nowhere.pem}\n", "mappings: mappings", "mappings: nowhere"}, []string{"stint.yaml:44:1: mappings: nowhere: the folder", "provider a:", "network: ca:"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := initialised(t)
			file := filepath.Join(dir, theConfig)
			edit(t, filepath.Join(dir, tc.file), tc.edits...)
			r := check(t.Context(), file, checkHere)
			var got []string
			for _, m := range r.Mistakes {
				if m.File == "" || strings.Contains(m.Text, "\n") {
					t.Errorf("%+v stands nowhere, or on several lines", m)
				}
				got = append(got, strings.ReplaceAll(m.String(), dir+"/", ""))
			}
			if len(got) != len(tc.want) || r.OK {
				t.Errorf("got %q", got)
			}
			for i := range min(len(got), len(tc.want)) {
				if !strings.Contains(got[i], strings.ReplaceAll(tc.want[i], "DIR/", "")) {
					t.Errorf("got  %s\nwant %s", got[i], tc.want[i])
				}
			}
			if out, code := stintCLI(t, "check", "-c", file); code != exitRefused || !strings.Contains(out, r.Mistakes[0].String()) {
				t.Errorf("the command: %d: %s", code, out)
			}
			cfg, err := config.Load(file)
			if err != nil {
				return
			}
			s, err := build(t.Context(), cfg, slog.New(slog.DiscardHandler), &telemetry{shutdown: func() {}})
			if err == nil {
				_ = s.Close()
				t.Error("a server would start with it")
			}
		})
	}
}

func TestCheckInJSON(t *testing.T) {
	dir := initialised(t)
	file := filepath.Join(dir, theConfig)
	parse := func(want int) (r checkReport) {
		t.Helper()
		out, code, _ := command(t, "check", "-c", file, "-o", "json")
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != want {
			t.Fatalf("%d, %v: %s", code, err, out)
		}
		return r
	}
	if r := parse(0); !r.OK || *r.Summary != (summary{Issuers: 1, Clients: 1, Agents: 1, Resources: 1, Scopes: 2, Policy: r.Summary.Policy}) || len(r.Summary.Policy) != 16 {
		t.Errorf("got %+v, %+v", r, r.Summary)
	}
	edit(t, file, "version: 1", "version: 3")
	if r := parse(exitRefused); r.OK || r.Summary != nil || len(r.Mistakes) != 1 || r.Mistakes[0] != (mistake{file, 6, 10, "version: 3 is out of bounds: max is 1"}) {
		t.Errorf("got %+v", r)
	}
}

func TestWarnings(t *testing.T) {
	for name, tc := range map[string]struct {
		edits []string
		want  string
	}{
		"software that nobody knows":       {[]string{`{"https://idp.example": desktop-app}`, "{}"}, "48:5: issuer https://idp.example: no agent and no client has an identity there"},
		"a proxy that is not believed":     {[]string{"  ops:", "  behind_proxy: true\n  ops:"}, "22:3: listen: behind_proxy: without limits.trusted_proxies"},
		"a proxy that is":                  {[]string{"  ops:", "  behind_proxy: true\n  ops:", "", "limits: {trusted_proxies: [10.0.0.1/32]}\n"}, ""},
		"a target that there is not":       {[]string{"targets: [https://api.example/notes]", "targets: [https://api.example/notes, https://api.example/note]"}, `71:42: client notes-mcp: its target "https://api.example/note" is no resource`},
		"a provider that nothing vends of": {[]string{"targets: [", "targets: [db, ", "", "providers: [{name: db, kind: postgres, settings: {host: h, database: d, password: 'env:P', entitlement: none}}]\n"}, `client notes-mcp: no mapping is of its resource "https://mcp.example/notes"`},
		"headers in clear":                 {[]string{"", "telemetry: {endpoint: 'http://otel.example', headers: {a: 'env:STINT_TEST_HEADER'}}\n"}, "telemetry: endpoint: plain http shows the headers"},
		"another port than the issuer's":   {[]string{"127.0.0.1:8080", "127.0.0.1:8081"}, "18:3: listen: address: the issuer is http://localhost:8080, and this is another port"},
		"another port by a proxy":          {[]string{"127.0.0.1:8080", "127.0.0.1:8081", "  ops:", "  behind_proxy: true\n  ops:", "", "limits: {trusted_proxies: [127.0.0.1/32]}\n"}, ""},
		"https without a certificate":      {[]string{"http://localhost:8080", "https://stint.example"}, "18:3: listen: address: the issuer is https, and this address speaks plain HTTP"},
		"https by a proxy":                 {[]string{"http://localhost:8080", "https://stint.example", "  ops:", "  behind_proxy: true\n  ops:", "", "limits: {trusted_proxies: [127.0.0.1/32]}\n"}, ""},
		"a certificate of another name":    {[]string{"http://localhost:8080", "https://stint.example", "  ops:", "  tls: {certificate: tls.crt, key: tls.key}\n  ops:"}, "listen: tls: certificate: x509: certificate is valid for localhost, not stint.example"},
		"a certificate of ours":            {[]string{"  ops:", "  tls: {certificate: tls.crt, key: tls.key}\n  ops:"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := initialised(t)
			certificateFiles(t, dir, "localhost", time.Now().Add(time.Minute))
			t.Setenv("STINT_TEST_HEADER", "x")
			file := filepath.Join(dir, theConfig)
			if strings.Contains(name, "software") {
				// Without an identity an agent is none.
				edit(t, file, "agents:\n  - name: desktop\n    identities: {\"https://idp.example\": desktop-app}\n    ceiling: \"*\"\n", "")
				edit(t, filepath.Join(dir, theMapping), ", agents: [desktop]", "")
			} else {
				edit(t, file, tc.edits...)
			}
			r := check(t.Context(), file, checkHere)
			switch {
			case !r.OK:
				t.Errorf("refused: %v", r.Mistakes)
			case tc.want == "" && len(r.Warnings) == 0:
			case tc.want == "" || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0].String(), tc.want) || r.Warnings[0].Line == 0:
				t.Errorf("got %v", r.Warnings)
			}
			if out, code := stintCLI(t, "check", "-c", file); code != 0 || strings.Contains(out, ": warning: ") != (tc.want != "") {
				t.Errorf("the command: %d: %s", code, out)
			}
		})
	}
}

func TestCertificatesThatClientsWouldRefuse(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	certificateFiles(t, dir, "stint.example", now)
	file := filepath.Join(dir, "tls.crt")
	for name, tc := range map[string]struct {
		now  time.Time
		want string
	}{
		"in its time": {now.Add(-time.Minute), "<nil>"},
		"after it":    {now.Add(time.Minute), "it expired on 2026-11-20 12:00:00"},
		"before it":   {now.Add(-2 * time.Hour), "it is good only from 2026-11-20 11:00:00 on"},
	} {
		if err := certificateFor(file, "https://stint.example:8443/x", tc.now); fmt.Sprint(err) != tc.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := certificateFor(filepath.Join(dir, "none"), "https://stint.example", now); err == nil {
		t.Error("a file that is gone")
	}
}

// tree lists what is in a folder, files with digests.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			fmt.Fprintf(&out, "%s\n", path)
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&out, "%s %x\n", path, sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// publishing starts an issuer that publishes its keys.
func publishing(t *testing.T) string {
	t.Helper()
	keys := publicKey(t)
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, "openid-configuration") {
			_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, s.URL, s.URL+"/keys")
			return
		}
		_, _ = w.Write(keys)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// states returns the states of a report's dependencies.
func states(r *checkReport) map[string]string {
	out := make(map[string]string)
	for _, d := range r.Dependencies {
		out[d.Name] = d.State
		if d.Detail != "" {
			out[d.Name] += ": " + d.Detail
		}
	}
	return out
}

// wantStates holds dependencies against beginnings of what they should say.
func wantStates(t *testing.T, r *checkReport, want map[string]string) {
	t.Helper()
	got := states(r)
	if len(got) != len(want) || len(r.Mistakes) > 0 {
		t.Errorf("got %q, %v", got, r.Mistakes)
	}
	for name, text := range want {
		if !strings.HasPrefix(got[name], text) || text == stateReady && got[name] != text {
			t.Errorf("%s: got %q, want %q", name, got[name], text)
		}
	}
}

func TestLiveCheckReachesEverything(t *testing.T) {
	issuer := publishing(t)
	dir := initialised(t, "--trust", issuer)
	file := filepath.Join(dir, theConfig)
	edit(t, file, "127.0.0.1:8080", "127.0.0.1:0", "127.0.0.1:9464", "127.0.0.1:0")
	before := tree(t, dir)
	wantStates(t, check(t.Context(), file, checkLive), map[string]string{
		"secrets": stateReady, "store": "ready: is made at the first start", "issuer " + issuer: stateReady, "listen.address": stateReady, "listen.ops": stateReady,
		"data": stateReady, "journal": "ready: is made at the first start",
	})
	if tree(t, dir) != before {
		t.Errorf("the check left something behind:\n%s", tree(t, dir))
	}
	if out, code := stintCLI(t, "check", "--live", "-c", file); code != 0 || !strings.Contains(out, "ready") {
		t.Errorf("the command: %d: %s", code, out)
	}
	// Without --live nothing is asked of anybody.
	if r := check(t.Context(), file, checkHere); len(r.Dependencies) > 0 {
		t.Errorf("got %v", r.Dependencies)
	}
}

func TestLiveCheckSaysWhatIsMissing(t *testing.T) {
	taken := testbed.FreePort(t)
	busy := httptest.NewServer(http.NotFoundHandler())
	defer busy.Close()
	dir := initialised(t, "--trust", fmt.Sprintf("http://127.0.0.1:%d", taken), "--redis", fmt.Sprintf("127.0.0.1:%d", taken))
	file := filepath.Join(dir, theConfig)
	password := filepath.Join(dir, "redis-password")
	if err := os.WriteFile(password, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	edit(t, file, "file:/run/secrets/stint-redis", "file:"+password, "127.0.0.1:8080", strings.TrimPrefix(busy.URL, "http://"), "127.0.0.1:9464", "127.0.0.1:0",
		"auth: {", "auth: {method: private_key_jwt, jwks_uri: '"+busy.URL+"/keys'} # ",
		"", fmt.Sprintf("providers: [{name: db, kind: postgres, settings: {host: 127.0.0.1, port: %d, database: d, password: 'vault:db#password', entitlement: none}}]\n", taken))
	wantStates(t, check(t.Context(), file, checkLive), map[string]string{
		"secrets": stateReady, "store": "missing: redis: ", fmt.Sprintf("issuer http://127.0.0.1:%d", taken): "missing: fetch: ",
		"keys of client notes-mcp": "missing: fetch " + busy.URL, "provider db": "missing: ", "data": stateReady, "journal": "ready: is made",
		"listen.address": "missing: listen tcp ", "listen.ops": stateReady,
	})
	out, code := stintCLI(t, "check", "--live", "-c", file)
	if code != exitFailed || !strings.Contains(out, "the configuration is in order; not usable at the moment: issuer http://127.0.0.1:") {
		t.Errorf("the command: %d: %s", code, out)
	}
	// What the exit code says, the JSON says too.
	var r checkReport
	out, code, _ = command(t, "check", "--live", "-c", file, "-o", "json")
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitFailed || r.OK || r.Summary == nil || len(r.Mistakes) > 0 {
		t.Errorf("the command in JSON: %d, %v: %s", code, err, out)
	}
}

func TestLiveCheckOfAVaultThatIsNotThere(t *testing.T) {
	issuer := publishing(t)
	address := fmt.Sprintf("http://127.0.0.1:%d", testbed.FreePort(t))
	dir := initialised(t, "--trust", issuer, "--vault", address)
	file, id := filepath.Join(dir, theConfig), filepath.Join(dir, "secret-id")
	if err := os.WriteFile(id, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	edit(t, file, "file:/run/secrets/stint-secret-id", "file:"+id, "127.0.0.1:8080", "127.0.0.1:0", "127.0.0.1:9464", "127.0.0.1:0",
		"jwks_uri: https://mcp.example/notes/jwks.json", "jwks_uri: "+issuer+"/keys")
	wantStates(t, check(t.Context(), file, checkLive), map[string]string{
		"secrets": "missing: ", "store": "ready: is made", "issuer " + issuer: stateReady, "keys of client notes-mcp": stateReady,
		"listen.address": stateReady, "listen.ops": stateReady, "data": stateReady, "journal": "ready: is made",
	})
	edit(t, file, "    prefix: stint\n", "    prefix: stint\n    ca: nowhere.pem\n")
	if r := check(t.Context(), file, checkHere); r.OK || !strings.Contains(r.Mistakes[0].String(), "secrets: vault: ca: ") || r.Mistakes[0].Line == 0 {
		t.Errorf("an authority that is gone: %v", r.Mistakes)
	}
}

// A check beside the running server, as before a restart.
func TestLiveCheckBesideTheRunningServer(t *testing.T) {
	issuer := publishing(t)
	dir := initialised(t, "--trust", issuer)
	file := filepath.Join(dir, theConfig)
	shortSocket(t, file)
	serving(t, file)
	want := map[string]string{
		"secrets": stateReady, "store": "in use: by the server that runs here; it was not touched", "issuer " + issuer: stateReady,
		"listen.address": stateInUse, "listen.ops": stateInUse, "data": stateReady, "journal": stateReady,
	}
	wantStates(t, check(t.Context(), file, checkLive), want)
	if out, code := stintCLI(t, "check", "--live", "-c", file); code != 0 || !strings.Contains(out, "is in order") {
		t.Errorf("the command: %d: %s", code, out)
	}
	// A provider's secrets are read for it as well.
	edit(t, file, "", "providers: [{name: db, kind: postgres, settings: {host: 127.0.0.1, port: 1, database: d, password: 'vault:keys/client-secrets#key', entitlement: none}}]\n")
	want["provider db"] = "missing: unavailable: the database cannot be reached"
	wantStates(t, check(t.Context(), file, checkLive), want)
}
