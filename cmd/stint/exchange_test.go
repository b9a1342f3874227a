package main

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/client/clienttest"
	"github.com/stint-dev/stint/internal/testbed"
)

func TestExchangeFromAShell(t *testing.T) {
	s := openShop(t, postgresOff)
	alice := s.signedIn("alice")
	server, err := client.New(client.Config{Issuer: s.Stint, Resource: s.MCP, ID: "orders-mcp", Secret: client.NewSecret(s.MCPSecret.Reveal())})
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{alice, s.DesktopSecret.Reveal(), s.MCPSecret.Reveal()}

	t.Run("a token comes from where it is named", func(t *testing.T) {
		t.Setenv("ALICE", alice)
		for name, args := range map[string][]string{
			"standard input":  {"--subject-token", "-"},
			"the environment": {"--subject-token", "env:ALICE"},
			"a file":          {"--subject-token", kept(t, t.TempDir(), "alice", alice+"\n")},
			"its type":        {"--subject-token-type", "urn:ietf:params:oauth:token-type:access_token", "--requested-token-type", "access_token"},
			"the details":     {"--details", strings.TrimPrefix(kept(t, t.TempDir(), "d", `[{"type":"mcp_tool_call","tool":"list_orders","arguments":{}}]`), "file:")},
		} {
			out, said, code := typedAt(t, alice+"\n", s.asDesktop(append([]string{"--scope", "orders:read"}, args...)...)...)
			if code != 0 || said != "" {
				t.Errorf("%s: %d: %s", name, code, said)
				continue
			}
			tok, err := server.Verify(t.Context(), strings.TrimSuffix(out, "\n"))
			if err != nil || tok.Subject != s.IdP+"#alice" || !tok.Has("orders:read") {
				t.Errorf("%s: %+v, %v", name, tok, err)
			} else if bound := tok.Tool == "list_orders"; bound != (name == "the details") {
				t.Errorf("%s: for the tool %q", name, tok.Tool)
			}
		}
	})
	t.Run("all of the answer is there as JSON", func(t *testing.T) {
		out, _, _ := typedAt(t, alice, s.asDesktop("--scope", "orders:read", "-o", "json")...)
		var got struct {
			Token   string `json:"access_token"`
			Kind    string `json:"issued_token_type"`
			Type    string `json:"token_type"`
			Seconds int    `json:"expires_in"`
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil || got.Token == "" || got.Kind != client.TypeAccessToken || got.Type != "Bearer" || got.Seconds <= 0 {
			t.Errorf("%v: %+v", err, got)
		}
	})
	t.Run("a refusal says what to do", func(t *testing.T) {
		for name, tc := range map[string]struct {
			stdin string
			args  []string
			code  int
			wants []string
		}{
			"a scope that nobody gets":   {alice, []string{"--scope", "no:such"}, exitRefused, []string{"refused: invalid_scope: ", "stint explain"}},
			"a target that is not there": {alice, []string{"--scope", "orders:read", "--resource", "https://nobody.example/"}, exitRefused, []string{"invalid_target", "--resource"}},
			"a token that is none":       {"no.to.ken", []string{"--scope", "orders:read"}, exitRefused, []string{"invalid_request", "get a new one"}},
			"another type of token":      {alice, []string{"--scope", "orders:read", "--subject-token-type", "id_token"}, exitRefused, []string{"invalid_request"}},
			"another client":             {alice, []string{"--scope", "orders:read", "--client", "orders-mcp"}, exitRefused, []string{"invalid_client", "stint client add"}},
			"a grant type it has not":    {"", []string{"--scope", "orders:read", "--self", "--subject-token", ""}, exitUsage, []string{"self subject-token"}},
			"nobody there":               {alice, []string{"--issuer", "http://" + address(testbed.FreePort(t))}, exitFailed, []string{"not available", "is it running?"}},
			"nothing on standard input":  {"\n", nil, exitFailed, []string{"did the command before this one fail?"}},
			"too much of it":             {strings.Repeat("x", maxInput+1), nil, exitFailed, []string{"more than"}},
		} {
			t.Run(name, func(t *testing.T) {
				out, said, code := typedAt(t, tc.stdin, s.asDesktop(tc.args...)...)
				for _, want := range tc.wants {
					if !strings.Contains(said, want) {
						t.Errorf("%q is not in: %s", want, said)
					}
				}
				if code != tc.code || out != "" {
					t.Errorf("%d: %s", code, out)
				}
				silentOn(t, out+said, secrets...)
			})
		}
	})
	t.Run("a client that may not act for itself", func(t *testing.T) {
		_, said, code := typedAt(t, "", "exchange", "--client", "desktop", "--client-secret", "env:DESKTOP_SECRET", "--self", "--resource", s.MCP, "--scope", "orders:read")
		if code != exitRefused || !strings.Contains(said, "unauthorized_client") || !strings.Contains(said, "client_credentials") {
			t.Errorf("%d: %s", code, said)
		}
	})
	t.Run("what is missing is asked for", func(t *testing.T) { whatIsMissing(t, s) })
}

func whatIsMissing(t *testing.T, s *shop) {
	const literal = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.c2ln"
	all := map[string]string{"issuer": s.Stint, "client": "desktop", "client-secret": "env:DESKTOP_SECRET", "subject-token": "-", "resource": s.MCP}
	for name, tc := range map[string]struct {
		without, with, value string
		code                 int
		wants                string
	}{
		"no issuer":                    {without: "issuer", wants: "--issuer, or STINT_ISSUER"},
		"no client":                    {without: "client", wants: "--client, or STINT_CLIENT"},
		"no secret":                    {without: "client-secret", wants: "--client-key, or STINT_CLIENT_SECRET"},
		"nobody to act for":            {without: "subject-token", wants: "--self"},
		"nothing to ask for":           {without: "resource", wants: "--resource, or --audience"},
		"a token on the command line":  {without: "subject-token", with: "subject-token", value: literal, wants: "not written here, but named"},
		"a secret on the command line": {without: "client-secret", with: "client-secret", value: literal, wants: "not written here, but named"},
		"an actor on the command line": {with: "actor-token", value: literal, wants: "not written here, but named"},
		"two of standard input":        {with: "actor-token", value: "-", wants: "read once"},
		"details that are no array":    {with: "details", value: strings.TrimPrefix(kept(t, t.TempDir(), "d", `{}`), "file:"), wants: "a JSON array is wanted"},
		"details that are not there":   {with: "details", value: "/does/not/exist", code: exitFailed, wants: "no such file"},
		"an id without its key":        {with: "client-key-id", value: "one", wants: "goes with --client-key"},
		"a key that is none":           {without: "client-secret", with: "client-key", value: kept(t, t.TempDir(), "k", literal), wants: "no private key in PEM"},
		"a file that others can write": {without: "subject-token", with: "subject-token", value: writable(t), code: exitFailed, wants: "lets others at it"},
		"an issuer in plain HTTP":      {without: "issuer", with: "issuer", value: "http://stint.example", wants: "needs https"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.code == 0 {
				tc.code = exitUsage
			}
			t.Setenv(envIssuer, "")
			args := []string{"exchange"}
			for flag, value := range all {
				if flag != tc.without {
					args = append(args, "--"+flag, value)
				}
			}
			if tc.with != "" {
				args = append(args, "--"+tc.with, tc.value)
			}
			out, said, code := typedAt(t, "x", args...)
			if code != tc.code || !strings.Contains(said, tc.wants) || out != "" {
				t.Errorf("%d: %s%s", code, out, said)
			}
			silentOn(t, out+said, literal)
		})
	}
}

func writable(t *testing.T) string {
	t.Helper()
	ref := kept(t, t.TempDir(), "w", "x")
	if err := os.Chmod(strings.TrimPrefix(ref, "file:"), 0o666); err != nil {
		t.Fatal(err)
	}
	return ref
}

// A client that signs assertions; and at the real server, what waits for a person.
func TestExchangeByAKey(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err1 := x509.MarshalECPrivateKey(p256)
	pkcs8, err2 := x509.MarshalPKCS8PrivateKey(edwards)
	point, err3 := p256.PublicKey.Bytes()
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	dir, text := t.TempDir(), base64.RawURLEncoding.EncodeToString
	jwks := fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","kid":"one","x":%q,"y":%q},{"kty":"OKP","crv":"Ed25519","kid":"two","x":%q}]}`,
		text(point[1:33]), text(point[33:]), text(edwards.Public().(ed25519.PublicKey)))
	file := strings.TrimPrefix(kept(t, dir, "jwks.json", jwks), "file:")
	s := openShop(t, postgresOff, `{method: client_secret_basic, secret_hashes: ["HASH"]}`, "{method: private_key_jwt, jwks_file: "+file+"}")
	alice := s.signedIn("alice")
	for name, tc := range map[string]struct{ block, kid, want string }{
		"ECDSA, SEC 1":    {string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})), "one", ""},
		"Ed25519, PKCS 8": {string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), "two", ""},
		"the other's":     {string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), "one", "invalid_client"},
		"encrypted":       {string(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: pkcs8})), "two", "in clear"},
		"damaged":         {string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8[1:]})), "two", "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			out, said, code := typedAt(t, alice, "exchange", "--client", "desktop", "--client-key", kept(t, dir, "key", tc.block), "--client-key-id", tc.kid,
				"--subject-token", "-", "--resource", s.MCP, "--scope", "orders:read")
			if good := code == 0 && len(out) > 100; good != (tc.want == "") || !strings.Contains(said, tc.want) {
				t.Errorf("%d: %s", code, said)
			}
		})
	}
}

// The real server asks nobody for an approval yet, so that the URL is of the fake one.
func TestWhatWaitsForAPersonSaysWhere(t *testing.T) {
	const api = "https://api.test/orders"
	b := clienttest.Start(t, clienttest.Config{Scopes: map[string][]string{api: {"orders:read"}}})
	t.Setenv(envIssuer, b.Client().Issuer)
	t.Setenv(envClient, b.Client().ID)
	t.Setenv(envSecret, b.Client().Secret.Reveal())
	for name, tc := range map[string]struct {
		fail   error
		code   int
		want   string
		absent string
	}{
		"an approval":              {&client.NeedsApproval{URL: "https://stint.test/approve/1", Description: "ask"}, exitPerson, "approve it, and then try again: https://stint.test/approve/1", ""},
		"a link":                   {&client.NeedsLink{URL: "https://stint.test/connect/github"}, exitPerson, "link an account, and then try again: https://stint.test/connect/github", ""},
		"a URL that is a script":   {&client.NeedsLink{URL: "javascript:alert(1)"}, exitPerson, "link an account, and then try again", "javascript"},
		"what a terminal obeys":    {&client.NeedsApproval{URL: "https://stint.test/\x1b[2J", Description: "\x1b[31mask"}, exitPerson, "?[31mask", "\x1b"},
		"another error, with such": {&client.Refused{Code: "invalid_scope", Description: "\x1b]0;x\a"}, exitRefused, "?]0;x?", "\x1b"},
		"a server that is busy":    {&client.Unavailable{RetryAfter: time.Minute}, exitFailed, "try again in 1m0s", ""},
	} {
		t.Run(name, func(t *testing.T) {
			b.Fail(tc.fail)
			out, said, code := typedAt(t, b.Token(clienttest.TokenOptions{}), "exchange", "--subject-token", "-", "--resource", api, "--scope", "orders:read")
			if code != tc.code || !strings.Contains(said, tc.want) || tc.absent != "" && strings.Contains(said, tc.absent) || out != "" {
				t.Errorf("%d: %q", code, said)
			}
		})
	}
}

func TestAnActorHasATokenOfItsOwn(t *testing.T) {
	s := openShop(t, postgresOff)
	// The API's own client gets none, and alice's own is not an actor's.
	out, said, code := typedAt(t, s.signedIn("alice"), s.asDesktop("--scope", "orders:read", "--actor-token", kept(t, t.TempDir(), "a", s.signedIn("bob")))...)
	if code != exitRefused || !strings.Contains(said, "actor token") || out != "" {
		t.Errorf("%d: %s", code, said)
	}
}
