package token

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// Issuer says how the tokens of a trusted issuer are verified.
type Issuer struct {
	// ID is its identifier: issuer, as the broker's part of the same entry has it.
	ID string `yaml:"-"`
	// Algorithms are those that its keys may be for. A key that names none is for
	// the only one of them that fits it.
	Algorithms []string `yaml:"algorithms" check:"required"`
	// JWKSURI is where its keys are. Absent, its metadata says.
	JWKSURI string `yaml:"jwks_uri,omitempty" check:"https"`
	// JWKSFile is a file with its keys, for issuers that publish none.
	JWKSFile string `yaml:"jwks_file,omitempty"`
	// Types says what a token is by the typ of its header: for each of
	// access_token, id_token and jwt the types that it has. A token without typ
	// counts as JWT. Absent: access tokens are at+jwt (RFC 9068), ID tokens JWT.
	Types map[string][]string `yaml:"types,omitempty"`
	// SubjectClaim, GroupsClaim, ScopeClaim and EmailClaim name the claims that
	// hold these, or, with a leading slash, a path into objects. Absent: sub,
	// groups, scope, email.
	SubjectClaim string `yaml:"subject_claim,omitempty"`
	GroupsClaim  string `yaml:"groups_claim,omitempty"`
	ScopeClaim   string `yaml:"scope_claim,omitempty"`
	EmailClaim   string `yaml:"email_claim,omitempty"`
	// Claims are further claims that the rules of mappings may name: texts,
	// numbers and truths.
	Claims []string `yaml:"claims,omitempty"`
	// BoundTokens accepts tokens that are bound to a key of whoever holds them (claim
	// cnf: DPoP, mutual TLS) without a proof of that key. It is for issuers whose
	// tokens reach us from servers that have checked it, as resource servers do.
	BoundTokens bool `yaml:"bound_tokens,omitempty"`
}

// Check says what is wrong with an issuer's entry.
func (i *Issuer) Check() error {
	if err := checkAlgorithms(i.Algorithms); err != nil {
		return err
	}
	if i.JWKSURI != "" && i.JWKSFile != "" {
		return errors.New("jwks_uri and jwks_file: one of them")
	}
	_, err := i.uses()
	return err
}

// uses returns what a token is by its type.
func (i *Issuer) uses() (map[string]broker.Use, error) {
	if len(i.Types) == 0 {
		return map[string]broker.Use{"at+jwt": broker.AccessToken, "jwt": broker.IDToken}, nil
	}
	uses := make(map[string]broker.Use)
	for name, types := range i.Types {
		u := broker.Use(name)
		if u != broker.AccessToken && u != broker.IDToken && u != broker.OtherJWT {
			return nil, fmt.Errorf("types: %q is none of access_token, id_token, jwt", name)
		}
		for _, t := range types {
			t = mediaType(t)
			if other, ok := uses[t]; ok && other != u {
				return nil, fmt.Errorf("types: %q is both %s and %s: one token cannot be told from the other", t, other, u)
			}
			uses[t] = u
		}
	}
	return uses, nil
}

// mediaType is a typ as it is compared: without "application/", in lower case
// (RFC 7515 section 4.1.9); absent is JWT.
func mediaType(typ string) string {
	if typ == "" {
		return "jwt"
	}
	return strings.TrimPrefix(strings.ToLower(typ), "application/")
}

// Config is what verification goes by.
type Config struct {
	// Self is our issuer identifier.
	Self    string
	Issuers []Issuer
	// IssuerKeys are keys of issuers that have a JWKSFile, by issuer.
	IssuerKeys map[string][]byte
	// Clients are the keys of clients that authenticate by assertion, by what the
	// claim sub names them: the client's id, or its SPIFFE ID.
	Clients map[string]ClientKeys
	// Certificates are what the certificates of clients are verified by, by client id.
	Certificates map[string]ClientKeys
	// Skew is how far the clocks of others may be off.
	Skew time.Duration
	// CacheSize is how many verified tokens are remembered; 0: none.
	CacheSize int
	Now       func() time.Time
}

// ClientKeys are the public keys of a client: a JWK set, or where to fetch one; or
// certificates of authorities, in PEM.
type ClientKeys struct {
	JWKS        []byte
	JWKSURI     string
	Kind        KeyKind
	Authorities []byte
}

// Service verifies and signs tokens. It is the broker's Tokens.
type Service struct {
	cfg     Config
	ring    *Ring
	issuers map[string]*issuer
	clients map[string]*source
	// certificates are where those of clients are verified by.
	certificates map[string]*source
	cache        *cache
}

// issuer is a trusted issuer with its keys.
type issuer struct {
	id    string
	keys  *source
	uses  map[string]broker.Use
	names names
	bound bool // tokens that are bound to a key are accepted
}

// New returns a service. client fetches the keys of issuers and clients: which
// addresses may be asked is for it to say. An error wraps what is wrong with
// keys that were given.
func New(cfg Config, ring *Ring, client *http.Client) (*Service, error) {
	if cfg.Self == "" || cfg.Now == nil || ring == nil || client == nil || cfg.Skew < 0 || cfg.CacheSize < 0 {
		return nil, errors.New("tokens: an issuer identifier, a clock, keys and an HTTP client are needed")
	}
	s := &Service{cfg: cfg, ring: ring, issuers: make(map[string]*issuer), clients: make(map[string]*source), certificates: make(map[string]*source), cache: newCache(cfg.CacheSize)}
	for i := range cfg.Issuers {
		in := &cfg.Issuers[i]
		uses, err := in.uses()
		if err != nil {
			return nil, fmt.Errorf("issuer %s: %w", in.ID, err)
		}
		out := &issuer{id: in.ID, uses: uses, names: in.names(), bound: in.BoundTokens}
		if keys := cfg.IssuerKeys[in.ID]; keys != nil {
			set, err := ParseKeys(keys, in.Algorithms, true)
			if err != nil {
				return nil, fmt.Errorf("issuer %s: %w", in.ID, err)
			}
			out.keys = fixed(set)
		} else {
			out.keys = &source{issuer: in.ID, jwksURI: in.JWKSURI, algs: in.Algorithms, client: client, now: cfg.Now}
		}
		s.issuers[in.ID] = out
	}
	for _, part := range []struct {
		in  map[string]ClientKeys
		out map[string]*source
	}{{cfg.Clients, s.clients}, {cfg.Certificates, s.certificates}} {
		for id, keys := range part.in {
			var err error
			if part.out[id], err = keys.source(client, cfg.Now); err != nil {
				return nil, fmt.Errorf("client %s: %w", id, err)
			}
		}
	}
	return s, nil
}

func (i *Issuer) names() names {
	or := func(name, standard string) string {
		if name == "" {
			return standard
		}
		return name
	}
	n := names{
		subject: or(i.SubjectClaim, "sub"), groups: or(i.GroupsClaim, "groups"),
		scope: or(i.ScopeClaim, "scope"), email: or(i.EmailClaim, "email"), shown: make(map[string]bool),
	}
	for _, name := range []string{n.subject, n.groups, n.scope, n.email} {
		n.nested = n.nested || strings.HasPrefix(name, "/")
	}
	for _, c := range i.Claims {
		n.shown[c] = true
	}
	return n
}

// standard are the names in tokens of ours and in client assertions.
var standard = (&Issuer{}).names()

// refuse is the error for a token that is not accepted.
func refuse(format string, args ...any) error {
	return broker.Fail(broker.BadToken, fmt.Errorf(format, args...), "the token is not accepted")
}

// keyError separates keys that could not be had from tokens that are bad.
func keyError(err error) error {
	if errors.Is(err, errKeys) {
		e := broker.Fail(broker.Unavailable, err, "the keys of the token's issuer are unavailable; try again")
		e.RetryAfter = 5 * time.Second
		return e
	}
	return refuse("%w", err)
}

// Verify implements [broker.Tokens].
func (s *Service) Verify(ctx context.Context, raw secret.String) (*broker.Token, error) {
	text := raw.Reveal()
	now := s.cfg.Now()
	key := cacheKey(text)
	if t := s.cache.get(key, now); t != nil {
		return t, nil
	}
	t, err := parseJWS(text)
	if err != nil {
		return nil, refuse("%w", err)
	}
	var from *issuer
	p, err := parsePayload(t.payload, func(iss string) (names, error) {
		if iss == s.cfg.Self {
			return standard, nil
		}
		if from = s.issuers[iss]; from == nil {
			return names{}, fmt.Errorf("issuer %q is not trusted", printable(iss))
		}
		return from.names, nil
	})
	if err != nil {
		return nil, refuse("%w", err)
	}
	c := &cached{key: key, token: &p.Token, keys: s.ring}
	if from == nil {
		c.state, err = s.verifyOurs(ctx, t, p)
	} else {
		c.keys = from.keys
		c.state, err = from.verify(ctx, t, p)
	}
	if err != nil {
		return nil, keyError(err)
	}
	if err := p.times(now, s.cfg.Skew); err != nil {
		return nil, refuse("%w", err)
	}
	// Not beyond the token's own time, skew left out: a moment of asking anew
	// costs nothing.
	c.expires = now.Add(maxCached)
	if p.Expires.Before(c.expires) {
		c.expires = p.Expires
	}
	s.cache.put(c)
	return c.token, nil
}

// verifyOurs checks a token that says it is ours.
func (s *Service) verifyOurs(ctx context.Context, t *jws, p *payload) (state uint64, err error) {
	k, state, err := s.ring.look(ctx, t.joseHeader)
	if err != nil {
		return 0, err
	}
	if k == nil {
		return 0, fmt.Errorf("no key of ours is %q", printable(t.kid))
	}
	if err := t.verify(k); err != nil {
		return 0, err
	}
	if t.typ != "at+jwt" || p.Stint == nil || p.ID == "" || p.ClientID == "" || p.Subject == "" || len(p.Audience) != 1 {
		return 0, errors.New("a token of ours of another kind")
	}
	if p.bound && p.Certificate == "" {
		return 0, errors.New("a token of ours that is bound to something else than a certificate")
	}
	p.Ours, p.Use, p.Type, p.KeyID = true, broker.AccessToken, t.typ, t.kid
	return state, nil
}

// verify checks a token of a foreign issuer.
func (i *issuer) verify(ctx context.Context, t *jws, p *payload) (state uint64, err error) {
	use, ok := i.uses[mediaType(t.typ)]
	if !ok {
		return 0, fmt.Errorf("tokens of the type %q are not accepted of %s", printable(t.typ), i.id)
	}
	k, state, err := i.keys.find(ctx, t.joseHeader)
	if err != nil {
		return 0, err
	}
	if k == nil {
		return 0, fmt.Errorf("%s has no key %q for %s", i.id, printable(t.kid), printable(t.alg))
	}
	if err := t.verify(k); err != nil {
		return 0, err
	}
	p.Use, p.Type, p.Stint, p.Details, p.Certificate = use, t.typ, nil, nil, ""
	if p.idClaims && use != broker.IDToken {
		return 0, errors.New("an ID token in the place of another")
	}
	if p.bound && !i.bound {
		return 0, errors.New("it is bound to a key, of which nobody proves possession here")
	}
	if len(p.Audience) == 0 {
		return 0, errors.New("no audience")
	}
	if use == broker.IDToken && p.ClientID == "" && len(p.Audience) == 1 {
		p.ClientID = p.Audience[0] // the client it was issued to (OpenID Connect Core section 2)
	}
	// An issuer speaks of its own: it cannot say that somebody else's software acts.
	for n := range p.Actors {
		if a := &p.Actors[n]; a.Issuer == "" {
			a.Issuer = i.id
		} else if a.Issuer != i.id {
			return 0, fmt.Errorf("an actor of issuer %q in a token of %s", printable(a.Issuer), i.id)
		}
	}
	return state, nil
}

// Assertion implements [broker.Tokens].
func (s *Service) Assertion(ctx context.Context, clientID string, raw secret.String) (*broker.Token, error) {
	t, err := parseJWS(raw.Reveal())
	if err != nil {
		return nil, refuse("%w", err)
	}
	p, err := parseAssertion(t.payload)
	if err != nil {
		return nil, refuse("%w", err)
	}
	if clientID == "" {
		clientID = p.Subject
	}
	keys := s.clients[clientID]
	if keys == nil {
		return nil, refuse("client %q has no keys", printable(clientID))
	}
	if t.kid == "" && keys.kind == JWTBundle {
		return nil, refuse("an SVID without the id of a key")
	}
	if p.Issuer == "" && keys.kind != JWTBundle { // RFC 7523 section 3
		return nil, refuse("no claim iss")
	}
	k, _, err := keys.find(ctx, t.joseHeader)
	if err != nil {
		return nil, keyError(err)
	}
	if k == nil {
		return nil, refuse("client %s has no key %q for %s", clientID, printable(t.kid), printable(t.alg))
	}
	if err := t.verify(k); err != nil {
		return nil, refuse("%w", err)
	}
	undated := p.IssuedAt.IsZero()
	if undated {
		p.IssuedAt = s.cfg.Now() // not required of assertions (RFC 7523 section 3)
	}
	if err := p.times(s.cfg.Now(), s.cfg.Skew); err != nil {
		return nil, refuse("%w", err)
	}
	if undated {
		p.IssuedAt = time.Time{}
	}
	if p.Subject != clientID {
		return nil, refuse("it is of %q, not of client %s", printable(p.Subject), clientID)
	}
	p.Type, p.Ours, p.Stint, p.Certificate = t.typ, false, nil, ""
	return &p.Token, nil
}

// Ready reports which issuers' keys cannot be had at the moment.
func (s *Service) Ready() map[string]string {
	out := make(map[string]string)
	for id, i := range s.issuers {
		i.keys.mu.Lock()
		out[id] = ""
		if i.keys.failure != nil {
			out[id] = i.keys.failure.Error()
		}
		i.keys.mu.Unlock()
	}
	return out
}

// Warm fetches the keys of all issuers, so that the first requests need not
// wait. Failures show in [Service.Ready].
func (s *Service) Warm(ctx context.Context) {
	for _, id := range slices.Sorted(mapKeys(s.issuers)) {
		_, _, _ = s.issuers[id].keys.find(ctx, joseHeader{alg: "none", kid: "warm-up"})
	}
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

var _ broker.Tokens = (*Service)(nil)
