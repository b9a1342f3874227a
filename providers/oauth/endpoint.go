package oauth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
)

// metadata is what of a server's is needed (RFC 8414 section 2).
type metadata struct {
	Issuer     string `json:"issuer"`
	Authorize  string `json:"authorization_endpoint"`
	Token      string `json:"token_endpoint"`
	Revoke     string `json:"revocation_endpoint"`
	Introspect string `json:"introspection_endpoint"`
	UserInfo   string `json:"userinfo_endpoint"`
}

// metadataFor is how long metadata is used.
const metadataFor = time.Hour

// endpoints returns where the server is asked: as the settings say, else its metadata.
func (p *provider) endpoints(ctx context.Context) (metadata, error) {
	m := metadata{Issuer: p.cfg.Issuer, Authorize: p.cfg.Authorize, Token: p.cfg.Token, Revoke: p.cfg.Revoke, Introspect: p.cfg.Introspect, UserInfo: p.cfg.UserInfo}
	if p.cfg.Issuer == "" {
		return m, nil
	}
	p.mu.Lock()
	read, at := p.meta, p.read
	p.mu.Unlock()
	if now := p.deps.Now(); read == nil || now.Sub(at).Abs() > metadataFor {
		fresh, err := p.discover(ctx)
		switch {
		case err == nil:
			read = fresh
			p.mu.Lock()
			p.meta, p.read = fresh, now
			p.mu.Unlock()
		case read == nil:
			return m, err
		}
	}
	for field, v := range map[*string]string{&m.Authorize: read.Authorize, &m.Token: read.Token, &m.Revoke: read.Revoke, &m.Introspect: read.Introspect, &m.UserInfo: read.UserInfo} {
		if *field == "" {
			*field = v
		}
	}
	return m, nil
}

// discover reads the metadata: where RFC 8414 section 3.1 has it, else OpenID Connect.
func (p *provider) discover(ctx context.Context) (*metadata, error) {
	u, err := url.Parse(p.cfg.Issuer)
	if err != nil {
		return nil, errors.New("issuer: it is no URL")
	}
	at := u.Scheme + "://" + u.Host
	path := strings.TrimSuffix(u.Path, "/")
	var last error
	for _, where := range []string{at + "/.well-known/oauth-authorization-server" + path, at + path + "/.well-known/openid-configuration"} {
		a, err := p.ask.Do(ctx, upstream.Request{Method: http.MethodGet, URL: where})
		if err != nil {
			return nil, err
		}
		if a.Status != http.StatusOK {
			last = broker.Fail(broker.Unavailable, fmt.Errorf("read the server's metadata: status %d", a.Status), "the upstream does not answer")
			continue
		}
		var m metadata
		if err := a.JSON(&m); err != nil {
			return nil, err
		}
		if m.Issuer != p.cfg.Issuer { // RFC 8414 section 3.3
			return nil, fmt.Errorf("the metadata is of the issuer %.80q", m.Issuer)
		}
		return &m, m.check(u.Scheme)
	}
	return nil, last
}

// check says what is wrong with endpoints: secrets are sent there, so that they are as
// safe as the issuer itself.
func (m *metadata) check(scheme string) error {
	for name, text := range map[string]string{
		"authorization_endpoint": m.Authorize, "token_endpoint": m.Token, "revocation_endpoint": m.Revoke, "introspection_endpoint": m.Introspect, "userinfo_endpoint": m.UserInfo,
	} {
		u, err := url.Parse(text)
		if text != "" && (err != nil || u.Scheme != scheme || u.Host == "" || u.User != nil || u.Fragment != "") {
			return fmt.Errorf("the metadata's %s is no address that can be used", name)
		}
	}
	return nil
}

// tokens is what a token endpoint answers: RFC 6749 sections 5.1 and 5.2, RFC 8693
// section 2.2. Some send errors with status 200.
type tokens struct {
	Access  string  `json:"access_token"`
	Type    string  `json:"token_type"`
	Issued  string  `json:"issued_token_type"`
	Expires float64 `json:"expires_in"`
	Refresh string  `json:"refresh_token"`
	Scope   *string `json:"scope"`
	Error   string  `json:"error"`
}

// post asks an endpoint of the server as the client.
func (p *provider) post(ctx context.Context, where string, form url.Values) (*upstream.Answer, error) {
	if where == "" {
		return nil, errNoEndpoint
	}
	r := upstream.Request{Method: http.MethodPost, URL: where}
	if err := p.authenticate(ctx, &r, form); err != nil {
		return nil, err
	}
	if p.cfg.Body == "json" {
		flat := make(map[string]string, len(form))
		for name := range form {
			flat[name] = form.Get(name)
		}
		r.JSON = flat
	} else {
		r.Form = form
	}
	return p.ask.Do(ctx, r)
}

// authenticate has a request say that it is the client's.
func (p *provider) authenticate(ctx context.Context, r *upstream.Request, form url.Values) error {
	switch p.cfg.ClientAuth {
	case "none":
		form.Set("client_id", p.cfg.ClientID)
		return nil
	case authByKey:
		said, err := p.say(ctx, p.cfg.ClientID)
		if err != nil {
			return err
		}
		form.Set("client_id", p.cfg.ClientID)
		form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		form.Set("client_assertion", said.Reveal())
		return nil
	}
	word, err := p.deps.Secret(ctx, p.cfg.ClientSecret)
	switch {
	case err != nil:
		return err
	case p.cfg.ClientAuth == "client_secret_post":
		form.Set("client_id", p.cfg.ClientID)
		form.Set("client_secret", word.Reveal())
	default: // RFC 6749 section 2.3.1: both are form-encoded first
		r.User, r.Password = url.QueryEscape(p.cfg.ClientID), secret.New(url.QueryEscape(word.Reveal()))
	}
	return nil
}

// token asks the token endpoint. An error that wraps [upstream.ErrDead] says that what was
// shown is not accepted.
func (p *provider) token(ctx context.Context, form url.Values) (*tokens, error) {
	m, err := p.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(p.cfg.TokenParams)) {
		form.Set(name, p.cfg.TokenParams[name])
	}
	if p.cfg.Resource != "" {
		form.Set("resource", p.cfg.Resource)
	}
	a, err := p.post(ctx, m.Token, form)
	if err != nil {
		return nil, err
	}
	var got tokens
	if err := a.JSON(&got); err != nil {
		return nil, fmt.Errorf("%w: %w", err, upstream.ErrUncertain)
	}
	switch {
	case got.Error == "invalid_grant":
		return nil, fmt.Errorf("the server says invalid_grant: %w", upstream.ErrDead)
	case got.Error == "invalid_scope":
		return nil, broker.Fail(broker.BadScope, errors.New("the server says invalid_scope"), "the upstream does not grant this")
	case got.Error == "temporarily_unavailable":
		return nil, broker.Fail(broker.Unavailable, errors.New("the server says temporarily_unavailable"), "the upstream does not answer")
	case got.Error != "" || a.Status != http.StatusOK:
		return nil, fmt.Errorf("the token endpoint answers %d %.40q", a.Status, got.Error)
	case got.Access == "":
		return nil, fmt.Errorf("the token endpoint answers without a token: %w", upstream.ErrUncertain)
	}
	return &got, nil
}

// join writes scopes as the server wants them, with those that go with every request.
func (p *provider) join(scopes []string) string {
	return strings.Join(append(slices.Clone(scopes), p.cfg.Always...), p.cfg.Separator)
}

// said returns the scopes of an answer, without those that go with every request.
func (p *provider) said(scope string) (scopes []string) {
	for _, s := range strings.FieldsFunc(scope, func(r rune) bool { return r == ' ' || strings.ContainsRune(p.cfg.Separator, r) }) {
		if !slices.Contains(p.cfg.Always, s) {
			scopes = append(scopes, s)
		}
	}
	slices.Sort(scopes)
	return slices.Compact(scopes)
}
