//go:build e2e

package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// canaries are secrets, by what they are. None of them may be found anywhere that
// Stint writes, in any form in which it could have got there.
type canaries map[string]string

func (c canaries) add(name, value string) { c[fmt.Sprintf("%s (%d)", name, len(c))] = value }

// shapes are secrets by their looks, whoever made them: Vault's tokens, also those
// that only Stint knows, JWTs, and private keys.
var shapes = map[string]*regexp.Regexp{
	"a token of Vault": regexp.MustCompile(`hv[sb]\.[A-Za-z0-9_-]{20}`),
	"a JWT":            regexp.MustCompile(`eyJ[A-Za-z0-9_-]+\.eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{20}`),
	"a private key":    regexp.MustCompile(`PRIVATE KEY-`),
	"an age identity":  regexp.MustCompile(`AGE-SECRET-KEY-`),
	"a private JWK":    regexp.MustCompile(`"d":"[A-Za-z0-9_-]{40}`),
}

// forms are how a secret could be written: as it is, encoded, quoted, as a
// password for HTTP, and of a JWT the parts that are worth something.
func (c canaries) forms() map[string]string {
	out := make(map[string]string)
	for name, value := range c {
		add := func(how, text string) { out[text] = name + how }
		for how, text := range map[string]string{
			", in hexadecimal": hex.EncodeToString([]byte(value)), ", for URLs": url.QueryEscape(value), ", quoted": strings.Trim(fmt.Sprintf("%q", value), `"`),
		} {
			add(how, text)
		}
		// Wherever it begins, the middle of what base64 makes of it is one of these.
		for skip := range 3 {
			for how, enc := range map[string]*base64.Encoding{", in base64": base64.RawStdEncoding, ", in base64url": base64.RawURLEncoding} {
				text := enc.EncodeToString([]byte(strings.Repeat("x", skip) + value))
				add(how, text[4:len(text)-4])
			}
		}
		if parts := strings.Split(value, "."); len(parts) == 3 {
			add(", its payload", parts[1])
			add(", its signature", parts[2])
		}
		add("", value)
	}
	return out
}

// sinks are all that is written anywhere, by where.
type sinks map[string][]byte

// leaks finds secrets in sinks.
func (s sinks) leaks(forms map[string]string) (found []string) {
	for where, data := range s {
		text := string(data)
		for form, name := range forms {
			if at := strings.Index(text, form); at >= 0 {
				found = append(found, fmt.Sprintf("%s: %s: ...%q", where, name, text[max(0, at-120):at]))
			}
		}
		for name, shape := range shapes {
			if at := shape.FindStringIndex(text); at != nil {
				found = append(found, fmt.Sprintf("%s: %s: ...%q", where, name, text[max(0, at[0]-120):at[0]]))
			}
		}
	}
	slices.Sort(found)
	return found
}

// collector takes what is exported by OTLP.
type collector struct {
	*httptest.Server
	mu   sync.Mutex
	data []byte
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.data = append(fmt.Appendf(c.data, "%s %v\n", r.URL, r.Header), body...)
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *collector) received() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.data)
}

// What Stint is entrusted with is found nowhere that it writes: neither when all
// goes well, nor when a client errs or a server is down.
func TestNoSecretIsFoundAnywhere(t *testing.T) {
	found := newCollector(t)
	w := newWorld(t, options{level: "debug", collector: found.URL, prepare: func(w *world) {
		w.b.TokenFile, w.passwords["token"] = w.vaultToken(t, "b", "stint")
	}})
	var mu sync.Mutex
	answers := []byte{}
	w.seen = func(a *answer) {
		mu.Lock()
		defer mu.Unlock()
		if a.Status != http.StatusOK {
			answers = fmt.Appendf(answers, "%d %v %s\n", a.Status, a.Header, a.Body)
		}
	}
	alone := w.embedded(t)
	secrets := make(canaries)
	for name, password := range w.passwords {
		secrets.add("the password "+name, password)
	}
	secrets.add("alice's address", "alice@example.com")
	secrets.add("alice", w.IdP+"#alice")
	markers := w.useAll(t, secrets)
	markers = append(markers, alone.useAll(t, secrets)...)
	w.misuse(t, secrets)
	w.fail(t, secrets)
	for _, of := range []*world{w, alone} {
		for client, word := range of.secrets {
			secrets.add("the secret of "+client, word)
			secrets.add("the credentials of "+client, base64.StdEncoding.EncodeToString([]byte(client+":"+word)))
		}
	}
	s := w.gather(t, alone)
	mu.Lock()
	s["error answers"] = answers
	mu.Unlock()
	s["OTLP"] = found.received()
	forms := secrets.forms()
	for _, leak := range s.leaks(forms) {
		t.Error(leak)
	}
	s.control(t, markers, forms)
}

// control shows that what was found clean was looked at, and that each of the
// secrets would have been found there.
func (s sinks) control(t *testing.T, markers []string, forms map[string]string) {
	t.Helper()
	holds := func(where, text string) {
		t.Helper()
		if !strings.Contains(string(s[where]), text) {
			t.Errorf("%s does not hold %q: it is not what it should be, or it was not read", where, text)
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		holds("log of "+name, `"msg":"request"`)
		holds("metrics of "+name, "stint_")
		holds("record of "+name, `"granted"`)
	}
	holds("error answers", "invalid_client")
	holds("OTLP", "provider.mint")
	for _, lease := range markers[:2] {
		holds("Redis", lease)
		holds("Redis' files", lease)
		holds("data of a", lease)
	}
	holds("data of c", markers[len(markers)-1])
	if len(s) < 25 || len(forms) < 200 {
		t.Errorf("%d sinks, %d forms of secrets", len(s), len(forms))
	}
	// Every form of every secret is found, and in every sink.
	small := s["configuration of a"]
	for form, name := range forms {
		if len(plant(small, form).leaks(forms)) == 0 {
			t.Errorf("%s would not be found", name)
		}
	}
	for where, data := range s {
		if len(plant(data, "canary").leaks(map[string]string{"canary": "one"})) == 0 {
			t.Errorf("nothing would be found in %s", where)
		}
	}
}

// plant puts a secret into the middle of a sink.
func plant(data []byte, secret string) sinks {
	return sinks{"planted": slices.Concat(data[:len(data)/2], []byte(secret), data[len(data)/2:])}
}

// vaultToken makes a token for Vault, and returns the file that holds it.
func (w *world) vaultToken(t *testing.T, name string, policies ...string) (file, token string) {
	t.Helper()
	made := w.vault.Call(t, http.MethodPost, "auth/token/create", map[string]any{"policies": policies, "no_default_policy": true, "ttl": "1h"})
	token = made["auth"].(map[string]any)["client_token"].(string)
	return w.write(t, "vault-token-"+name, token), token
}

// embedded is another installation beside w: one replica, with a file for state.
func (w *world) embedded(t *testing.T) *world {
	t.Helper()
	policy, err := os.ReadFile("../deploy/vault/stint.hcl")
	if err != nil {
		t.Fatal(err)
	}
	w.vault.Call(t, http.MethodPut, "sys/policies/acl/alone", map[string]any{
		"policy": strings.NewReplacer("/data/stint/", "/data/alone/", "/metadata/stint/", "/metadata/alone/").Replace(string(policy)),
	})
	alone := *w
	alone.secrets, alone.Clients, alone.b = make(map[string]string), "", nil
	r := w.replica(t, "c")
	r.Embedded, r.Prefix = true, "alone"
	r.TokenFile, w.passwords["token of c"] = w.vaultToken(t, "c", "alone")
	w.vault.Call(t, http.MethodPost, "secret/data/alone/warehouse", map[string]any{"data": map[string]string{"password": w.passwords["warehouse"]}})
	alone.a = r
	alone.configure(t)
	r.start(t)
	return &alone
}

// useAll does what is done every day, and adds every secret that comes up. It
// returns the ids of leases, which have to be found where leases are kept.
func (w *world) useAll(t *testing.T, secrets canaries) (leases []string) {
	t.Helper()
	for _, r := range w.replicas() {
		signIn := w.signIn(t, "alice")
		token := w.exchange(t, r, "desktop", signIn, mcp, everyScope).want(t, http.StatusOK, "").Token
		down := w.exchange(t, r, "orders-mcp", token, api, "orders:read").want(t, http.StatusOK, "").Token
		form := w.assertionForm(t, token)
		w.ask(t, r, "/oauth2/token", "", form).want(t, http.StatusOK, "")
		w.ask(t, r, "/oauth2/token", "", form).want(t, http.StatusUnauthorized, "invalid_client")
		secrets.add("alice's sign-in", signIn)
		secrets.add("a token of ours", token)
		secrets.add("a token of ours", down)
		secrets.add("a client's assertion", form.Get("client_assertion"))
		w.introspect(t, r, token)
		w.introspect(t, r, down)
		var logins []*login
		for _, provider := range []string{"warehouse", "stock"} {
			for range 2 {
				l := w.vend(t, r, token, provider)
				secrets.add("a password that was vended", l.password)
				logins = append(logins, l)
				leases = append(leases, l.lease)
			}
		}
		w.revoke(t, r, "--lease", logins[0].lease)
		w.revoke(t, r, "--lease", logins[2].lease)
		w.gone(t, logins[0], logins[2])
	}
	return leases
}

// misuse sends secrets where they do not belong, as people do whose programs are
// not done yet. What they send is theirs to keep: it must not stay with us.
func (w *world) misuse(t *testing.T, secrets canaries) {
	t.Helper()
	token := w.alice(t, w.a, "orders:read")
	secrets.add("a misplaced token", token)
	send := func(method, path, body string, header ...string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+w.a.Addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		data, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode == http.StatusOK {
			t.Fatalf("%s %.60s: %s %v", method, path, resp.Status, err)
		}
		w.seen(&answer{Status: resp.StatusCode, Header: resp.Header, Body: data})
	}
	send("GET", "/oauth2/introspect?token="+token, "")
	send("POST", "/oauth2/token?subject_token="+token, "grant_type="+url.QueryEscape(exchangeType))
	send("POST", "/oauth2/token/"+token, "")
	send("POST", "/oauth2/introspect", "token="+token, "Authorization", "Bearer "+token)
	send("POST", "/oauth2/token", `{"subject_token":"`+token+`"}`, "Content-Type", "application/json")
	send("POST", "/oauth2/token", "x", "X-Request-Id", token, "Cookie", "session="+token, "User-Agent", token)
	for name := range exchangeForm("", "warehouse", "") {
		form := exchangeForm(token, api, "orders:read")
		form.Set(name, token)
		a := w.ask(t, w.a, "/oauth2/token", "orders-mcp", form)
		if name != "subject_token" && a.Status == http.StatusOK {
			t.Errorf("with a token as %s: %s", name, a)
		}
	}
	for name, value := range map[string]string{"authorization_details": `[{"type":"` + token + `"}]`, "actor_token": token, "requested_token_type": token, "client_id": token} {
		form := exchangeForm(token, api, "orders:read")
		form.Set(name, value)
		w.ask(t, w.a, "/oauth2/token", "orders-mcp", form)
	}
	// Another client's secret, and one with its last letter gone.
	mistyped := w.secrets["desktop"][:42]
	secrets.add("a mistyped secret", mistyped)
	for _, word := range []string{w.secrets["orders-api"], mistyped} {
		other := *w
		other.secrets = map[string]string{"desktop": word}
		other.exchange(t, w.a, "desktop", token, mcp, "orders:read").want(t, http.StatusUnauthorized, "invalid_client")
	}
}

// fail has everything that Stint depends on fail once, so that what it says then is
// there to be read.
func (w *world) fail(t *testing.T, secrets canaries) {
	t.Helper()
	token := w.alice(t, w.a, everyScope)
	secrets.add("a token of ours", token)
	w.vault.Seal(t)
	w.exchange(t, w.a, "orders-mcp", token, "stock", "stock:read").want(t, http.StatusServiceUnavailable, "temporarily_unavailable")
	w.vault.Unseal(t)
	w.pg.Exec(t, w.Database, "ALTER ROLE stint_broker NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'stint_broker'")
	w.exchange(t, w.a, "orders-mcp", token, "warehouse", "reports:read").want(t, http.StatusServiceUnavailable, "temporarily_unavailable")
	w.pg.Exec(t, w.Database, "ALTER ROLE stint_broker LOGIN")
	w.redis.Do("ACL", "SETUSER", "stint", "off")
	w.redis.Do("CLIENT", "KILL", "USER", "stint")
	w.ask(t, w.a, "/oauth2/revoke", "desktop", url.Values{"token": {token}}).want(t, http.StatusServiceUnavailable, "temporarily_unavailable")
	w.redis.Do("ACL", "SETUSER", "stint", "on")
	w.serves(t, token)
}

// gather reads everything that was written anywhere.
func (w *world) gather(t *testing.T, alone *world) sinks {
	t.Helper()
	out := make(sinks)
	for _, r := range []*replica{w.a, w.b, alone.a} {
		for _, path := range []string{"/metrics", "/readyz"} {
			out[strings.TrimPrefix(path, "/")+" of "+r.Name] = get(t, "http://"+r.Ops+path)
		}
		for _, name := range []string{"cmdline", "environ"} {
			data, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(r.cmd.Process.Pid), name))
			if err != nil {
				t.Fatal(err)
			}
			out[name+" of "+r.Name] = data
		}
		out["record of "+r.Name] = []byte(must(t, "audit", "tail", "-n", "100000", "-o", "json", "--config", r.config) + must(t, "audit", "tail", "-n", "100000", "--config", r.config))
		checked, text, _ := stint(t, "check", "--live", "--config", r.config)
		out["check of "+r.Name] = []byte(checked + text)
		config, err := os.ReadFile(r.config)
		if err != nil {
			t.Fatal(err)
		}
		out["configuration of "+r.Name] = config
	}
	out["Redis"] = w.everyKey()
	for _, r := range []*replica{w.a, w.b, alone.a} {
		r.stop(t) // the last spans are sent, the last bytes written
		out["log of "+r.Name] = []byte(r.log(t, 0))
		out["data of "+r.Name] = readTree(t, r.data)
	}
	out["Redis' files"] = readTree(t, w.redisFiles())
	return out
}

func get(t *testing.T, url string) []byte {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// everyKey is all that Redis holds.
func (w *world) everyKey() (data []byte) {
	read := map[string][]string{
		"string": {"GET"}, "hash": {"HGETALL"}, "zset": {"ZRANGE", "0", "-1", "WITHSCORES"}, "stream": {"XRANGE", "-", "+"},
		"set": {"SMEMBERS"}, "list": {"LRANGE", "0", "-1"},
	}
	for key := range strings.SplitSeq(w.redis.Do("KEYS", "*"), "\n") {
		kind := w.redis.Do("TYPE", key)
		command, known := read[kind]
		if !known { // it expired meanwhile
			continue
		}
		data = fmt.Appendf(data, "%s %s\n", key, w.redis.Do(append([]string{command[0], key}, command[1:]...)...))
	}
	return data
}

func readTree(t *testing.T, dir string) (data []byte) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		data = append(fmt.Appendf(data, "\n%s\n", d.Name()), text...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}
