package github

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/internal/upstream"
)

// GitHub takes an App's JWT for ten minutes at most, and its clock may be behind ours.
const (
	jwtLife = 9 * time.Minute
	jwtUse  = 8 * time.Minute
	jwtSkew = time.Minute
)

// app is an App, with what is known of it.
type app struct {
	App

	mu   sync.Mutex
	key  *rsa.PrivateKey
	jwt  secret.String
	made time.Time
	// left is what GitHub said of the rate limit, until reset.
	left  int
	reset time.Time
}

// token returns the App's JWT.
func (p *provider) token(ctx context.Context, a *app) (secret.String, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := p.deps.Now()
	if age := now.Sub(a.made); !a.jwt.Empty() && age >= 0 && age < jwtUse {
		return a.jwt, nil
	}
	claims, err := strictjson.Encode(map[string]any{
		"iss": a.ClientID, "iat": now.Add(-jwtSkew).Unix(), "exp": now.Add(jwtLife).Unix(),
	})
	if err != nil {
		return secret.String{}, err
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(claims)
	signature, err := p.sign(ctx, a, []byte(text))
	if err != nil {
		return secret.String{}, fmt.Errorf("sign as the App %s: %w", a.ClientID, err)
	}
	a.jwt, a.made = secret.New(text+"."+base64.RawURLEncoding.EncodeToString(signature)), now
	return a.jwt, nil
}

func (p *provider) sign(ctx context.Context, a *app, message []byte) ([]byte, error) {
	if a.TransitKey != "" {
		return p.signer.Sign(ctx, a.TransitKey, message)
	}
	if a.key == nil {
		text, err := p.deps.Secret(ctx, a.PrivateKey)
		if err != nil {
			return nil, err
		}
		if a.key, err = parseKey(text); err != nil {
			return nil, err
		}
	}
	sum := sha256.Sum256(message)
	return rsa.SignPKCS1v15(rand.Reader, a.key, crypto.SHA256, sum[:])
}

// parseKey reads a private key in either of the forms that PEM has for one.
func parseKey(text secret.String) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode([]byte(text.Reveal()))
	if block == nil {
		return nil, errors.New("private_key: there is no PEM in it")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	any8, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := any8.(*rsa.PrivateKey)
	if err != nil || !ok {
		return nil, errors.New("private_key: it is no RSA key") // which the error might repeat
	}
	return key, nil
}

// asApp asks as an App.
func (p *provider) asApp(ctx context.Context, a *app, method, path string, body any) (*upstream.Answer, error) {
	jwt, err := p.token(ctx, a)
	if err != nil {
		return nil, err
	}
	answer, err := p.call(ctx, upstream.Request{Method: method, URL: p.cfg.URL + path, Bearer: jwt, JSON: body})
	if err != nil {
		return nil, err
	}
	p.noteLimit(a, answer.Header)
	return answer, nil
}

// call asks the API. Errors: as of [upstream.Client.Do]; Limited also where GitHub says so
// with a 403.
func (p *provider) call(ctx context.Context, r upstream.Request) (*upstream.Answer, error) {
	r.Header = http.Header{"Accept": {"application/vnd.github+json"}, "X-Github-Api-Version": {"2022-11-28"}}
	a, err := p.ask.Do(ctx, r)
	if err != nil {
		return nil, err
	}
	if a.Status == http.StatusForbidden && (a.Header.Get("X-Ratelimit-Remaining") == "0" || a.Header.Get("Retry-After") != "") {
		e := broker.Fail(broker.Limited, errors.New("GitHub's rate limit is used up"), "the upstream asks us to wait")
		if e.RetryAfter = upstream.RetryAfter(a.Header); e.RetryAfter == 0 {
			e.RetryAfter = min(max(resetOf(a.Header).Sub(p.deps.Now()), time.Second), time.Hour)
		}
		return nil, e
	}
	return a, nil
}

func resetOf(h http.Header) time.Time {
	seconds, err := strconv.ParseInt(h.Get("X-Ratelimit-Reset"), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}

// noteLimit remembers what GitHub said of an App's rate limit.
func (p *provider) noteLimit(a *app, h http.Header) {
	left, err := strconv.Atoi(h.Get("X-Ratelimit-Remaining"))
	if err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left, a.reset = left, resetOf(h)
}

// quota is how much an App has left; many, if nothing is known.
func (a *app) quota(now time.Time) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.After(a.reset) {
		return 1 << 30
	}
	return a.left
}

// refused is the error for an answer that is none of those that were expected. GitHub
// says the same of what does not exist and of what may not be seen, and so do we.
func refused(doing string, a *upstream.Answer) error {
	err := fmt.Errorf("%s: GitHub answers %d", doing, a.Status)
	switch a.Status {
	case http.StatusNotFound, http.StatusGone, http.StatusMovedPermanently:
		return broker.Fail(broker.BadTarget, err, "there is no such repository, or the App is not installed there")
	case http.StatusUnprocessableEntity:
		return broker.Fail(broker.BadScope, err, "GitHub does not grant this to the App")
	}
	return err
}

// digestBase64 is how GitHub's audit log names a token.
func digestBase64(token secret.String) string {
	sum := sha256.Sum256([]byte(token.Reveal()))
	return base64.StdEncoding.EncodeToString(sum[:])
}
