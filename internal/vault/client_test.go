package vault_test

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/vault"
)

// hostile stands in for what a real Vault never does: it answers all that is
// asked of it, after the login, as the test says.
func hostile(t *testing.T, answer http.HandlerFunc) (vault.Store, *vault.Engine, *deps) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/v1/auth/token/lookup-self":
			_, _ = io.WriteString(w, `{"data":{"ttl":0,"renewable":false}}`)
		default:
			answer(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return open(t, vault.Config{Kind: vault.KindVault, Vault: &vault.ServerConfig{
		Address: server.URL, Namespace: "team/a", Timeout: vault.Duration(300 * time.Millisecond),
		Auth: vault.AuthConfig{Method: "token", TokenFile: write(t, "token", "hvs.c4nary")},
	}})
}

func TestAnswersThatAreNotVaults(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/elsewhere", http.StatusTemporaryRedirect)
		},
		"a page":            func(w http.ResponseWriter, _ *http.Request) { page(w, http.StatusOK) },
		"a page not found":  func(w http.ResponseWriter, _ *http.Request) { page(w, http.StatusNotFound) },
		"a bad gateway":     func(w http.ResponseWriter, _ *http.Request) { page(w, http.StatusBadGateway) },
		"a gateway in JSON": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) },
		"half an answer":    func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"data":{"da`) },
		"two answers":       func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"data":{}}{"data":{}}`) },
		"one name twice":    func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"data":{},"data":{}}`) },
		"an endless one":    func(w http.ResponseWriter, _ *http.Request) { endless(w, `{"data":"`) },
		"an endless refusal": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			endless(w, `{"errors":["`)
		},
		"silence": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		},
		"an end without an answer": func(http.ResponseWriter, *http.Request) {
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, e, _ := hostile(t, answer)
			_, _, err1 := s.Read(t.Context(), "a")
			_, err2 := s.Write(t.Context(), "a", fields("x", "y"), 0)
			_, err3 := s.List(t.Context(), "a")
			_, _, _, err4 := e.Generate(within(t, 300*time.Millisecond), secret.New("hvs.child"), "db/creds/x", nil)
			for i, err := range []error{err1, err2, err3, s.Delete(t.Context(), "a"), e.RevokeLease(within(t, 300*time.Millisecond), "x"), err4} {
				if err == nil || broker.CodeOf(err) != broker.Unavailable {
					t.Errorf("%d: %v", i, err)
				}
			}
		})
	}
}

func page(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, "<html>")
}

func endless(w http.ResponseWriter, begin string) {
	_, _ = io.WriteString(w, begin)
	for range 64 {
		if _, err := io.WriteString(w, strings.Repeat("x", 1<<16)); err != nil {
			return
		}
	}
	_, _ = io.WriteString(w, `"}`)
}

func TestAnAnswerWithoutWhatWasAskedForIsAnError(t *testing.T) {
	for name, text := range map[string]string{
		"nothing": ``, "an empty object": `{}`, "no data": `{"data":null}`, "other data": `{"data":{"x":1}}`, "data of another kind": `{"data":[]}`,
		"another version": `{"data":{"version":7,"data":{},"metadata":{"version":0}}}`,
	} {
		s, _, _ := hostile(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
		if _, _, err := s.Read(t.Context(), "a"); err == nil {
			t.Errorf("%s: read", name)
		}
		if _, err := s.Write(t.Context(), "a", fields("x", "y"), 0); err == nil {
			t.Errorf("%s: written", name)
		}
	}
}

func TestWhatIsConfiguredIsSentAndNothingFromTheEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"VAULT_TOKEN": "hvs.environment", "VAULT_NAMESPACE": "environment", "VAULT_HEADERS": `{"X-Environment":"1"}`,
		"VAULT_WRAP_TTL": "5m", "VAULT_ADDR": "http://127.0.0.1:1", "VAULT_AGENT_ADDR": "http://127.0.0.1:1",
		"VAULT_PROXY_ADDR": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1", "VAULT_MAX_RETRIES": "9",
	} {
		t.Setenv(name, value)
	}
	var mu sync.Mutex
	var seen []http.Header
	s, _, _ := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Header.Clone())
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `{"errors":["Vault is sealed"]}`)
	})
	_, _, err := s.Read(t.Context(), "a")
	wantText(t, err, "Vault is sealed")
	if len(seen) != 1 {
		t.Fatalf("asked %d times", len(seen))
	}
	for name, want := range map[string]string{
		"X-Vault-Namespace": "team/a", "X-Vault-Token": "hvs.c4nary", "X-Vault-Request": "true", "X-Environment": "", "X-Vault-Wrap-Ttl": "",
	} {
		if got := seen[0].Get(name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
}

func TestTLSOlderThanOneTwoIsRefused(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{MaxVersion: tls.VersionTLS11}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	s, _, _ := open(t, vault.Config{Kind: vault.KindVault, Vault: &vault.ServerConfig{
		Address: server.URL, CA: write(t, "ca", ca), Auth: vault.AuthConfig{Method: "token", TokenFile: write(t, "token", "hvs.x")},
	}})
	err := s.Ready(t.Context())
	wantCode(t, err, broker.Unavailable)
	wantText(t, err, "version")
}

func TestAnErrorThatRepeatsWhatWasSentIsCleaned(t *testing.T) {
	s, e, d := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var sent struct{ Data map[string]string }
		_ = json.Unmarshal(body, &sent)
		said := []string{"you sent " + r.Header.Get("X-Vault-Token"), sent.Data["x"], string(body) + strings.Repeat(" long", 500)}
		text, _ := json.Marshal(map[string][]string{"errors": said})
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write(text)
	})
	_, _, err1 := s.Read(t.Context(), "a")
	_, err2 := s.Write(t.Context(), "a", fields("x", "v4lue \"quoted\"\n", "y", "other-v4lue"), 0)
	_, _, _, err3 := e.Generate(t.Context(), secret.New("hvs.ch1ld"), "db/creds/x", map[string]any{})
	for _, err := range []error{err1, err2, err3} {
		wantText(t, err, "you sent [secret]")
		for _, canary := range []string{"c4nary", "v4lue", "ch1ld", "\n"} {
			if strings.Contains(err.Error(), canary) {
				t.Errorf("%q is in %v", canary, err)
			}
		}
		if len(err.Error()) > 500 {
			t.Errorf("%d bytes", len(err.Error()))
		}
	}
	if text := d.log.String(); strings.Contains(text, "c4nary") || strings.Contains(text, "v4lue") {
		t.Error(text)
	}
}

// testCanary looks for every secret in all that a store says about itself.
func testCanary(t *testing.T, p place) {
	s, e, d := open(t, p.config)
	var said []string
	note := func(v any) { said = append(said, fmt.Sprintf("%v %+v %#v %s", v, v, v, v)) }
	mustWrite(t, s, "a", fields("x", "c4nary-value"), 0)
	f, _, err := s.Read(t.Context(), "a")
	note(f)
	note(err)
	key, err := vault.Key(t.Context(), s, vault.PathAuditIndex)
	note(key)
	note(err)
	box := sealer(t, s, time.Now)
	sealed := seal(t, box, "c4nary-text", "context")
	_, err = box.Open(sealed, "other")
	note(err)
	_, err = s.Write(t.Context(), "a", fields("x", "c4nary-more"), 7)
	note(err)
	_, err = s.Write(t.Context(), "a", fields("x", "c4nary-\xff"), 1)
	note(err)
	_, err = vault.Resolver{Store: s}.Resolve(t.Context(), "c4nary-literal")
	note(err)
	note(s)
	note(e)
	note(box)
	note(vault.NewAnchor(s))
	note(vault.Resolver{Store: s})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	note(s.Ready(t.Context()))
	ring := shown(f)
	if !strings.Contains(ring, "c4nary-value") {
		t.Fatal("the canary is not where it belongs")
	}
	hidden := []string{"c4nary", key.Reveal(), "root\n", "AGE-SECRET", fmt.Sprint([]byte(key.Reveal()))}
	for _, text := range append(said, d.log.String()) {
		for _, canary := range hidden {
			if strings.Contains(text, canary) {
				t.Errorf("%q is in %s", canary, text)
			}
		}
	}
}

func TestTheLogInTokenIsNowhere(t *testing.T) {
	t.Parallel()
	v := testbed.StartVault(t, testbed.VaultSetup{IfCached: true, TLS: true})
	setUp(t, v)
	cfg := asStint(t, v)
	s, e, d := open(t, cfg)
	id, err := vault.Resolver{}.Resolve(t.Context(), cfg.Vault.Auth.SecretID)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	said := []string{fmt.Sprintf("%v %+v %#v", s, s, s), fmt.Sprintf("%v %+v %#v", e, e, e)}
	_, err = s.Write(t.Context(), "denied", fields("x", "c4nary"), 0)
	said = append(said, err.Error())
	endTokens(t, v)
	d.clock.Move(2 * time.Second)
	v.Call(t, http.MethodPut, "auth/approle/role/stint/secret-id/destroy", map[string]any{"secret_id": id.Reveal()})
	err = s.Ready(t.Context())
	wantCode(t, err, broker.Unavailable)
	v.Seal(t)
	said = append(said, err.Error(), s.Ready(t.Context()).Error())
	v.Stop()
	d.clock.Move(time.Minute)
	said = append(said, s.Ready(t.Context()).Error(), d.log.String())
	if n := strings.Count(d.log.String(), "log in to vault"); n < 2 {
		t.Errorf("only %d lines about failing: %s", n, d.log.String())
	}
	for _, text := range said {
		for _, canary := range []string{"c4nary", "hvs.", id.Reveal(), v.RootToken} {
			if strings.Contains(text, canary) {
				t.Errorf("%q is in %s", canary, text)
			}
		}
	}
}
