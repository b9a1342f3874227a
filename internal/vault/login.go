package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

const (
	lookupSelf = "auth/token/lookup-self"
	// maxToken bounds a token, or a JWT to log in with, in bytes.
	maxToken = 16 << 10
	// backoffLeast and backoffMost bound the wait after a login that failed.
	backoffLeast = 500 * time.Millisecond
	backoffMost  = 30 * time.Second
	// youngest is how old a token is before it can be taken for dead: one that
	// Vault refuses right after the login is not mended by another login.
	youngest = time.Second
	// farewell bounds the time for handing the token back.
	farewell = 2 * time.Second
)

// login keeps a token of Vault alive: it logs in when there is none, renews it
// at two thirds of its life, and logs in again when that does not help. Requests
// wait for a login under way, but no longer than their contexts; while logins
// fail they are refused at once until the next one is due.
type login struct {
	c    *client
	cfg  AuthConfig
	log  *slog.Logger
	now  func() time.Time
	ctx  context.Context // ends with close
	stop context.CancelFunc
	done sync.WaitGroup
	// changed tells the keeper that there is another token to look after.
	changed chan struct{}

	mu       sync.Mutex // guards what follows
	held     *held
	attempt  *attempt // a login under way
	failures int
	failed   error     // why the last login failed
	next     time.Time // no login before
	closed   bool
}

// held is a token.
type held struct {
	token     secret.String
	since     time.Time
	life      time.Duration // 0: for ever
	full      time.Duration // its life when it was new
	expires   time.Time     // zero: never
	renewable bool
	due       time.Time // when to see to it
}

// attempt is a login that others may wait for.
type attempt struct {
	done chan struct{}
	held *held
	err  error
}

func newLogin(c *client, cfg AuthConfig, d Deps) *login {
	l := &login{c: c, cfg: cfg, log: d.Log, now: d.Now, changed: make(chan struct{}, 1)}
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.done.Go(l.keep)
	return l
}

// token returns the token, logging in first if there is none. Errors have the
// code Unavailable.
func (l *login) token(ctx context.Context) (secret.String, error) {
	l.mu.Lock()
	now := l.now()
	if h := l.held; h != nil && (h.expires.IsZero() || now.Before(h.expires)) {
		l.mu.Unlock()
		return h.token, nil
	}
	a, err := l.begin(now)
	l.mu.Unlock()
	if err != nil {
		return secret.String{}, err
	}
	select {
	case <-a.done:
	case <-ctx.Done():
		return secret.String{}, unavailable(fmt.Errorf("wait for the login to vault: %w", ctx.Err()))
	}
	if a.err != nil {
		return secret.String{}, unavailable(a.err)
	}
	return a.held.token, nil
}

// begin starts a login, or joins the one under way. l.mu is locked.
func (l *login) begin(now time.Time) (*attempt, error) {
	if l.closed {
		return nil, unavailable(errors.New("the login to vault has ended"))
	}
	if l.attempt != nil {
		return l.attempt, nil
	}
	if wait := l.next.Sub(now); l.failed != nil && wait > 0 {
		e := broker.Fail(broker.Unavailable, l.failed, "the secret store is not available")
		e.RetryAfter = wait
		return nil, e
	}
	a := &attempt{done: make(chan struct{})}
	l.attempt = a
	l.done.Go(func() { l.finish(a) })
	return a, nil
}

// finish logs in, for everybody who waits: whose context ends does not end it.
func (l *login) finish(a *attempt) {
	a.held, a.err = l.enter()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attempt = nil
	if l.failed = a.err; a.err != nil {
		wait := backoff(l.failures)
		l.failures++
		l.next = l.now().Add(wait)
		if l.held != nil {
			l.held.due = l.next // the one that is held still serves
		}
		if l.ctx.Err() == nil {
			l.log.WarnContext(l.ctx, "log in to vault", "error", a.err, "again_in", wait)
		}
	} else {
		l.failures, l.held = 0, a.held
		l.log.InfoContext(l.ctx, "logged in to vault", "method", l.cfg.Method, "life", a.held.life)
	}
	close(a.done)
	l.tell()
}

func (l *login) tell() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// backoff is how long to wait after so many failures: doubling, and half of it
// by chance, so that a fleet does not come back as one.
func backoff(failures int) time.Duration {
	d := min(backoffLeast<<min(failures, 10), backoffMost)
	return d/2 + rand.N(d/2)
}

// enter logs in by the configured method.
func (l *login) enter() (*held, error) {
	body := map[string]any{}
	var given secret.String
	var err error
	if l.cfg.Method == authAppRole {
		given, err = Resolver{}.Resolve(l.ctx, l.cfg.SecretID)
		body["role_id"], body["secret_id"] = l.cfg.RoleID, given.Reveal()
	} else {
		// Service account tokens and those that an agent writes are replaced while
		// we run: the file is read each time.
		given, err = readSecretFile(l.cfg.TokenFile)
		body["role"], body["jwt"] = l.cfg.Role, given.Reveal()
	}
	if err == nil {
		err = checkToken(given)
	}
	if err != nil {
		return nil, fmt.Errorf("what to log in to vault with: %w", err)
	}
	if l.cfg.Method == authToken {
		return l.adopt(given)
	}
	a, err := l.c.as(l.ctx, secret.String{}, l.c.timeout, request{
		method: http.MethodPut, path: "auth/" + l.cfg.Mount + "/login", body: body, secrets: []secret.String{given},
	})
	if err != nil {
		return nil, fmt.Errorf("log in to vault by %s: %w", l.cfg.Method, err)
	}
	if a.Auth == nil || a.Auth.ClientToken == "" {
		return nil, fmt.Errorf("log in to vault by %s: no token in the answer", l.cfg.Method)
	}
	token := secret.New(a.Auth.ClientToken)
	return l.hold(token, time.Duration(a.Auth.LeaseDuration)*time.Second, a.Auth.Renewable), checkToken(token)
}

// adopt takes a token that was given to us.
func (l *login) adopt(token secret.String) (*held, error) {
	a, err := l.c.as(l.ctx, token, l.c.timeout, request{method: http.MethodGet, path: lookupSelf})
	if err != nil {
		return nil, fmt.Errorf("look at the token for vault: %w", err)
	}
	var data struct {
		TTL       int64 `json:"ttl"`
		Renewable bool  `json:"renewable"`
	}
	if err := a.decode(&data); err != nil {
		return nil, fmt.Errorf("look at the token for vault: %w", err)
	}
	return l.hold(token, time.Duration(data.TTL)*time.Second, data.Renewable), nil
}

func checkToken(token secret.String) error {
	text := token.Reveal()
	if text == "" || len(text) > maxToken || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("no token: it is empty, too long, or has characters that no token has")
	}
	return nil
}

// hold notes until when a token lives and when to see to it: at two thirds of
// its life, and a little earlier by chance.
func (l *login) hold(token secret.String, life time.Duration, renewable bool) *held {
	h := &held{token: token, since: l.now(), life: life, full: life, renewable: renewable}
	if life > 0 {
		h.expires = h.since.Add(life)
		h.due = h.since.Add(life*2/3 - rand.N(life/10+1))
	}
	return h
}

// dead reports whether a token that Vault refused is to be tried no more, and
// another should be: because it has been replaced already, or because Vault does
// not know it. A token that Vault knows lacks a permission, which no login mends.
func (l *login) dead(ctx context.Context, token secret.String) bool {
	l.mu.Lock()
	h := l.held
	l.mu.Unlock()
	switch {
	case h == nil || !h.token.Equal(token):
		return true
	case l.now().Sub(h.since) < youngest:
		return false
	}
	_, err := l.c.as(ctx, token, l.c.timeout, request{method: http.MethodGet, path: lookupSelf})
	if !isStatus(err, http.StatusForbidden) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == h {
		l.held = nil
		l.log.WarnContext(ctx, "vault no longer takes our token: it was revoked, or has run out")
	}
	return true
}

// keep sees to the token when it is due, until close.
func (l *login) keep() {
	for {
		wait, due := time.Hour, false
		l.mu.Lock()
		h := l.held
		if h != nil && !h.due.IsZero() {
			wait = max(h.due.Sub(l.now()), 0)
			due = wait == 0
		}
		l.mu.Unlock()
		if due {
			l.refresh(h)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-l.ctx.Done():
			timer.Stop()
			return
		case <-l.changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// refresh renews a token, or replaces it by another login when it cannot be
// renewed, or only for a little while, as its longest life draws near.
func (l *login) refresh(h *held) {
	if h.renewable {
		fresh, err := l.renew(h)
		if err == nil && fresh.life >= h.full/2 {
			l.mu.Lock()
			if l.held == h {
				l.held = fresh
			}
			l.mu.Unlock()
			return
		}
		if err != nil && l.ctx.Err() == nil {
			l.log.WarnContext(l.ctx, "renew the token for vault", "error", err)
		}
	}
	l.mu.Lock()
	now := l.now()
	a, err := l.begin(now)
	if err != nil {
		h.due = now.Add(backoffLeast)
	}
	l.mu.Unlock()
	if err != nil {
		return
	}
	select {
	case <-a.done:
	case <-l.ctx.Done():
	}
}

func (l *login) renew(h *held) (*held, error) {
	a, err := l.c.as(l.ctx, h.token, l.c.timeout, request{
		method: http.MethodPut, path: "auth/token/renew-self", body: map[string]any{"increment": int64(h.full / time.Second)},
	})
	if err != nil {
		return nil, err
	}
	if a.Auth == nil || a.Auth.LeaseDuration < 0 {
		return nil, errors.New("no life in the answer")
	}
	fresh := l.hold(h.token, time.Duration(a.Auth.LeaseDuration)*time.Second, a.Auth.Renewable)
	fresh.since, fresh.full = h.since, h.full
	return fresh, nil
}

// close ends the login. A token that we logged in for is handed back; one that
// was given to us is not ours to end. Tokens for credentials are orphans, and
// outlive it.
func (l *login) close() {
	l.mu.Lock()
	already := l.closed
	l.closed = true
	l.mu.Unlock()
	l.stop()
	l.done.Wait()
	l.mu.Lock()
	h := l.held
	l.held = nil
	l.mu.Unlock()
	if already || h == nil || l.cfg.Method == authToken {
		return
	}
	_, err := l.c.as(context.Background(), h.token, farewell, request{method: http.MethodPut, path: "auth/token/revoke-self"})
	if err != nil {
		l.log.Warn("hand the token back to vault", "error", err)
	}
}
