package slack

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
)

const (
	// keepFor is how long a token that does not rotate is used before it is read again.
	keepFor = time.Minute
	// margin is how long a rotating token has to be good when it is used; they live 12 h.
	margin = 5 * time.Minute
)

// status is what every answer of the Web API begins with.
type status struct {
	OK    bool   `json:"ok"`
	Error string `json:"error"`
}

// shown is the upstream's word for an error, as far as it is one of a list: no text of its
// own gets into a log.
func (s *status) shown() string {
	if len(s.Error) > 64 || !plain(s.Error) {
		return "an error without a name"
	}
	return "error " + s.Error
}

// token returns the bot's token.
func (p *provider) token(ctx context.Context) (secret.String, error) {
	if p.cfg.RefreshToken == "" {
		return p.fixed(ctx)
	}
	key := upstream.ParentKey{Provider: p.name}
	if err := p.seed(ctx, key); err != nil {
		return secret.String{}, err
	}
	parent, err := p.deps.Parents.Fresh(ctx, key, p.deps.Now().Add(margin), p.rotate)
	if err != nil {
		return secret.String{}, unusable(err)
	}
	return parent.Access, nil
}

func unusable(err error) error {
	if e := (*broker.Error)(nil); errors.As(err, &e) {
		return e
	}
	return broker.Fail(broker.Unavailable, err, "the upstream's token cannot be had")
}

// fixed returns a token that does not rotate.
func (p *provider) fixed(ctx context.Context) (secret.String, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.deps.Now()
	if !p.kept.Empty() && now.Sub(p.read).Abs() < keepFor {
		return p.kept, nil
	}
	s, err := p.deps.Secret(ctx, p.cfg.BotToken)
	if err == nil && !isToken(s.Reveal()) {
		err = errors.New("what is there is no token")
	}
	if err != nil {
		p.kept = secret.String{}
		return p.kept, unusable(fmt.Errorf("read the bot's token: %w", err))
	}
	p.kept, p.read = s, now
	return s, nil
}

// isToken reports whether a text can be a token of Slack's.
func isToken(s string) bool {
	return strings.HasPrefix(s, "xox") && len(s) >= 10 && len(s) <= 4096 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// seedFact is a digest of the refresh token of the settings that everything began with.
const seedFact = "seed"

// seed keeps the refresh token of the settings, unless it has been before: then it was
// used, and what came of it is kept.
func (p *provider) seed(ctx context.Context, key upstream.ParentKey) error {
	s, err := p.deps.Secret(ctx, p.cfg.RefreshToken)
	if err == nil && !isToken(s.Reveal()) {
		err = errors.New("what is there is no token")
	}
	if err != nil {
		return unusable(fmt.Errorf("read the refresh token: %w", err))
	}
	p.mu.Lock()
	known := p.seeded.Equal(s)
	p.mu.Unlock()
	if known {
		return nil
	}
	first := &upstream.Parent{
		Account: broker.Account{ID: p.cfg.Team, Since: p.deps.Now()}, Refresh: s, Facts: map[string]string{seedFact: s.Digest()},
	}
	if err := p.deps.Parents.Begin(ctx, key, first, func(kept *upstream.Parent) bool { return kept.Facts[seedFact] != s.Digest() }); err != nil {
		return unusable(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seeded = s
	return nil
}

// dead are the errors after which a refresh token is no good any more.
var dead = map[string]bool{
	"invalid_refresh_token": true, "invalid_grant": true, "token_revoked": true, "token_expired": true, "account_inactive": true, "invalid_auth": true,
}

// rotate exchanges a refresh token for another, and an access token with it. It is asked
// once: the old one is no good afterwards.
func (p *provider) rotate(ctx context.Context, old *upstream.Parent) (*upstream.Parent, error) {
	word, err := p.deps.Secret(ctx, p.cfg.ClientSecret)
	if err != nil {
		return nil, unusable(fmt.Errorf("read the client secret: %w", err))
	}
	begun := p.deps.Now()
	a, err := p.client.Do(ctx, upstream.Request{
		Method: "POST", URL: p.cfg.URL + "/api/oauth.v2.access", User: p.cfg.ClientID, Password: word,
		Form: url.Values{"grant_type": {"refresh_token"}, "refresh_token": {old.Refresh.Reveal()}},
	})
	if err != nil {
		return nil, err
	}
	var got struct {
		status
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		TokenType    string `json:"token_type"`
		ExpiresIn    int64  `json:"expires_in"`
		Scope        string `json:"scope"`
		Team         struct {
			ID   string `json:"id"`
			Name string `json:"name"`
		} `json:"team"`
	}
	if err := a.JSON(&got); err != nil {
		return nil, unusable(fmt.Errorf("rotate: %w: %w", err, upstream.ErrUncertain))
	}
	switch {
	case a.Status >= 300 || !got.OK:
		return nil, refusedRotation(&got.status)
	case !isToken(got.AccessToken) || !isToken(got.RefreshToken) || got.TokenType != "bot" || got.ExpiresIn <= 0:
		return nil, unusable(fmt.Errorf("rotate: not the tokens of a bot that rotate: %w", upstream.ErrUncertain))
	case got.Team.ID != p.cfg.Team:
		return nil, fmt.Errorf("the token is of another workspace: %w", upstream.ErrDead)
	}
	next := *old
	next.Refresh, next.Access = secret.New(got.RefreshToken), secret.New(got.AccessToken)
	next.AccessExpires = begun.Add(time.Duration(got.ExpiresIn) * time.Second)
	next.Account.Name, next.Account.Scopes = got.Team.Name, strings.Split(got.Scope, ",")
	return &next, nil
}

// refusedRotation says what a refusal means: that the token is dead, that we have to wait,
// that nobody knows, or that the settings are wrong.
func refusedRotation(s *status) error {
	err := fmt.Errorf("rotate: %s", s.shown())
	switch {
	case dead[s.Error]:
		return fmt.Errorf("%w: %w", err, upstream.ErrDead)
	case s.Error == "ratelimited":
		e := broker.Fail(broker.Limited, err, "the upstream asks us to wait")
		e.RetryAfter = time.Minute
		return e
	case s.Error == "internal_error" || s.Error == "fatal_error" || s.Error == "request_timeout" || s.Error == "service_unavailable":
		return unusable(fmt.Errorf("%w: %w", err, upstream.ErrUncertain)) // it may have succeeded in part
	}
	return unusable(err)
}
