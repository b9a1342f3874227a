//go:build e2e

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/internal/sample"
)

const (
	exchangeType = "urn:ietf:params:oauth:grant-type:token-exchange"
	accessType   = "urn:ietf:params:oauth:token-type:access_token"
)

// answer is what an endpoint said.
type answer struct {
	Status     int
	Header     http.Header
	Body       []byte
	Error      string          `json:"error"`
	Token      string          `json:"access_token"`
	Lease      string          `json:"lease_id"`
	Scope      string          `json:"scope"`
	Active     bool            `json:"active"`
	Credential json.RawMessage `json:"credential"`
	Expires    time.Time       `json:"expires_at"`
}

func (a *answer) String() string { return fmt.Sprintf("%d %s", a.Status, a.Body) }

// ask sends a form as a client, and fails the test if there is no answer.
func (w *world) ask(t *testing.T, r *replica, path, as string, form url.Values) *answer {
	t.Helper()
	a, err := w.try(t.Context(), r, path, as, form)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (w *world) try(ctx context.Context, r *replica, path, as string, form url.Values) (*answer, error) {
	sent := make(url.Values, len(form)+2)
	for name, values := range form {
		sent[name] = values
	}
	post := as == "orders-api"
	if post {
		sent.Set("client_id", as)
		sent.Set("client_secret", w.secrets[as])
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.Addr+path, strings.NewReader(sent.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if !post && as != "" {
		req.SetBasicAuth(url.QueryEscape(as), url.QueryEscape(w.secrets[as]))
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	a := &answer{Status: resp.StatusCode, Header: resp.Header}
	if a.Body, err = io.ReadAll(resp.Body); err != nil {
		return nil, err
	}
	if w.seen != nil {
		w.seen(a)
	}
	if len(a.Body) > 0 {
		err = json.Unmarshal(a.Body, a)
	}
	return a, err
}

// exchange asks for a token or a credential: target is a resource, or the name of
// a provider.
func (w *world) exchange(t *testing.T, r *replica, as, subject, target, scope string) *answer {
	t.Helper()
	return w.ask(t, r, "/oauth2/token", as, exchangeForm(subject, target, scope))
}

func exchangeForm(subject, target, scope string) url.Values {
	form := url.Values{"grant_type": {exchangeType}, "subject_token": {subject}, "subject_token_type": {accessType}, "scope": {scope}}
	if strings.Contains(target, "://") {
		form.Set("resource", target)
	} else {
		form.Set("audience", target)
	}
	return form
}

// introspect asks about a token for the MCP server, or for the API.
func (w *world) introspect(t *testing.T, r *replica, token string) *answer {
	t.Helper()
	as := "orders-mcp"
	if claims(t, token)["aud"] == api {
		as = "orders-api"
	}
	return w.ask(t, r, "/oauth2/introspect", as, url.Values{"token": {token}})
}

// want fails the test unless a request was answered in this way.
func (a *answer) want(t *testing.T, status int, word string) *answer {
	t.Helper()
	if a.Status != status || a.Error != word {
		t.Fatalf("got %s, want %d %s", a, status, word)
	}
	if status == http.StatusServiceUnavailable && a.Header.Get("Retry-After") == "" {
		t.Fatalf("503 without Retry-After: %s", a)
	}
	return a
}

// claims are what a token says, unverified.
func claims(t *testing.T, token string) (c map[string]any) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no JWT", token)
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// signIn signs somebody in at the identity provider, in a session of its own.
func (w *world) signIn(t *testing.T, name string) string {
	t.Helper()
	for _, u := range w.idp.Users() {
		if u.Name != name {
			continue
		}
		tokens, err := sample.Agent{}.SignIn(t.Context(), sample.SignIn{Issuer: w.IdP, ClientID: sample.DesktopClient, User: u.Name, Password: u.Password})
		if err != nil {
			t.Fatal(err)
		}
		return tokens.Access.Reveal()
	}
	t.Fatalf("there is no %s", name)
	return ""
}

// alice signs alice in and returns a token for the MCP server with some scopes.
func (w *world) alice(t *testing.T, r *replica, scope string) string {
	t.Helper()
	return w.exchange(t, r, "desktop", w.signIn(t, "alice"), mcp, scope).want(t, http.StatusOK, "").Token
}

const everyScope = "orders:read reports:read stock:read"

// assertion is a private_key_jwt of orders-jwt (RFC 7523).
func (w *world) assertion(t *testing.T) string {
	t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	body, err := json.Marshal(map[string]any{
		"iss": "orders-jwt", "sub": "orders-jwt", "aud": w.Issuer, "jti": rand.Text(), "exp": time.Now().Add(time.Minute).Unix(), "iat": time.Now().Unix(),
	})
	if err != nil {
		t.Fatal(err)
	}
	input := b64([]byte(`{"alg":"ES256","kid":"one","typ":"JWT"}`)) + "." + b64(body)
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, w.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + b64(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// events are the audit record of a replica, as `stint audit tail` shows it.
func (w *world) events(t *testing.T, r *replica) (all []audit.Event) {
	t.Helper()
	for line := range strings.Lines(must(t, "audit", "tail", "-n", "100000", "-o", "json", "--config", r.config)) {
		var e audit.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		all = append(all, e)
	}
	return all
}

// find returns the newest event of either replica of which something is so.
func (w *world) find(t *testing.T, so func(e audit.Event) bool) *audit.Event {
	t.Helper()
	for _, r := range w.replicas() {
		all := w.events(t, r)
		for i := len(all) - 1; i >= 0; i-- {
			if so(all[i]) {
				return &all[i]
			}
		}
	}
	return nil
}

// session is the session of a token of ours, as the record names it.
func (w *world) session(t *testing.T, token string) string {
	t.Helper()
	id := claims(t, token)["jti"].(string)
	e := w.find(t, func(e audit.Event) bool { return e.Kind == audit.KindExchange && e.Token != nil && e.Token.ID == id })
	if e == nil || e.Party.Session == "" {
		t.Fatalf("the record does not have token %s: %+v", id, e)
	}
	return e.Party.Session
}

// receipt is what `stint revoke` says.
type receipt struct {
	Position string    `json:"position"`
	Bound    time.Time `json:"bound"`
}

// revoke takes something back by the command line, at one replica.
func (w *world) revoke(t *testing.T, r *replica, what, id string) (got receipt) {
	t.Helper()
	out := must(t, "revoke", what, id, "--reason", "test", "-o", "json", "--config", r.config)
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Position == "" || got.Bound.IsZero() {
		t.Fatalf("%v: %s", err, out)
	}
	return got
}

// login is a database login that was vended.
type login struct {
	dsn, user, password, lease string
	table                      string // the one that it may read
}

// vend has the MCP server exchange a token for a login: at warehouse by Stint
// itself, at stock by Vault.
func (w *world) vend(t *testing.T, r *replica, token, provider string) *login {
	t.Helper()
	scope := map[string]string{"warehouse": "reports:read", "stock": "stock:read"}[provider]
	return w.login(t, provider, w.exchange(t, r, "orders-mcp", token, provider, scope).want(t, http.StatusOK, ""))
}

func (w *world) login(t *testing.T, provider string, a *answer) *login {
	t.Helper()
	var c struct {
		User, Password, URL string
		Fields              struct{ Username, Password string }
	}
	if err := json.Unmarshal(a.Credential, &c); err != nil || a.Lease == "" {
		t.Fatalf("%v: %d bytes, lease %q", err, len(a.Body), a.Lease)
	}
	if provider == "warehouse" {
		return &login{c.URL, c.User, c.Password, a.Lease, "sales.orders"}
	}
	return &login{w.pg.UserDSN(c.Fields.Username, c.Fields.Password, w.Database), c.Fields.Username, c.Fields.Password, a.Lease, "sales.stock"}
}

// open connects with a login.
func (l *login) open(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return pgx.Connect(ctx, l.dsn)
}

// works returns nil if a login reads its table.
func (l *login) works(ctx context.Context) error {
	c, err := l.open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.Background()) }()
	return l.reads(ctx, c, l.table)
}

func (l *login) reads(ctx context.Context, c *pgx.Conn, table string) error {
	_, err := c.Exec(ctx, "SELECT count(*) FROM "+table)
	return err
}

// forbidden reports whether an error is PostgreSQL's insufficient_privilege.
func forbidden(err error) bool {
	pg := (*pgconn.PgError)(nil)
	return errors.As(err, &pg) && pg.Code == "42501"
}

// gone waits until the roles of logins are no more.
func (w *world) gone(t *testing.T, logins ...*login) {
	t.Helper()
	eventually(t, 30*time.Second, "the logins are gone", func() error {
		for _, l := range logins {
			if left := w.pg.Query(t, w.Database, "SELECT rolname::text FROM pg_roles WHERE rolname = $1", l.user); len(left) > 0 {
				return fmt.Errorf("there is still %q", left)
			}
		}
		return nil
	})
	for _, l := range logins {
		if err := l.works(t.Context()); err == nil {
			t.Errorf("%s logs in", l.user)
		}
	}
}
