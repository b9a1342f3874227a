package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// revoke serves RFC 7009. The writer is ours: fosite's answers 200 when the
// revocation failed.
func (s *Server) revoke(c echo.Context) error {
	client, form, err := s.authenticated(c)
	if err != nil {
		return s.fail(c, err)
	}
	token := form.Get("token")
	if token == "" {
		return s.refuseTaking(c, audit.KindRevocation, client, bad("token is missing"))
	}
	err = s.broker.RevokeToken(c.Request().Context(), client, secret.New(token), requestID(c))
	if err != nil && broker.CodeOf(err) != broker.BadToken { // what is no token is nothing to revoke (RFC 7009 section 2.2)
		return s.fail(c, err)
	}
	return c.NoContent(http.StatusOK)
}

// introspect serves RFC 7662, with `consume=true` to use up a token that is for
// one call.
func (s *Server) introspect(c echo.Context) error {
	client, form, err := s.authenticated(c)
	if err != nil {
		return s.fail(c, err)
	}
	consume := false
	switch form.Get("consume") {
	case "", "false":
	case "true":
		consume = true
	default:
		return s.refuseTaking(c, audit.KindIntrospect, client, bad("consume is true or false"))
	}
	token := form.Get("token")
	if token == "" {
		return s.refuseTaking(c, audit.KindIntrospect, client, bad("token is missing"))
	}
	i, err := s.broker.Introspect(c.Request().Context(), client, secret.New(token), consume, requestID(c))
	if broker.CodeOf(err) == broker.BadToken {
		return c.JSON(http.StatusOK, inactive{})
	}
	if err != nil {
		return s.fail(c, err)
	}
	if !i.Active {
		return c.JSON(http.StatusOK, inactive{})
	}
	return c.JSON(http.StatusOK, activeToken(i.Token))
}

// refuseTaking records what an authenticated client asked for in vain, and answers it.
func (s *Server) refuseTaking(c echo.Context, kind audit.Kind, client *broker.Client, err error) error {
	s.broker.RefuseTaking(c.Request().Context(), kind, client, requestID(c), err)
	return s.fail(c, err)
}

// inactive is all that is said of a token that is not active (RFC 7662 section
// 2.2).
type inactive struct {
	Active bool `json:"active"`
}

// active is what is said of one that is.
type active struct {
	Active   bool            `json:"active"`
	Issuer   string          `json:"iss"`
	Subject  string          `json:"sub"`
	Audience string          `json:"aud"`
	ClientID string          `json:"client_id"`
	ID       string          `json:"jti"`
	Type     string          `json:"token_type"`
	Scope    string          `json:"scope,omitempty"`
	Expires  int64           `json:"exp"`
	IssuedAt int64           `json:"iat"`
	Act      *act            `json:"act,omitempty"`
	Details  json.RawMessage `json:"authorization_details,omitempty"`
	Once     bool            `json:"once,omitempty"`
	Confirm  *confirmation   `json:"cnf,omitempty"`
}

// confirmation is what a token is bound to (RFC 8705 section 3.2).
type confirmation struct {
	Certificate string `json:"x5t#S256"`
}

type act struct {
	Issuer  string `json:"iss,omitempty"`
	Subject string `json:"sub"`
	Act     *act   `json:"act,omitempty"`
}

func activeToken(t *broker.Token) active {
	a := active{
		Active: true, Issuer: t.Issuer, Subject: t.Subject, Audience: t.Audience[0], ClientID: t.ClientID, ID: t.ID,
		Type: "Bearer", Scope: strings.Join(t.Scope, " "), Expires: t.Expires.Unix(), IssuedAt: t.IssuedAt.Unix(),
		Details: t.Details, Once: t.Stint.Once,
	}
	if t.Certificate != "" {
		a.Confirm = &confirmation{t.Certificate}
	}
	for i := len(t.Actors) - 1; i >= 0; i-- {
		a.Act = &act{t.Actors[i].Issuer, t.Actors[i].Subject, a.Act}
	}
	return a
}

// authenticated reads the form of a request and authenticates its client.
func (s *Server) authenticated(c echo.Context) (*broker.Client, url.Values, error) {
	form, err := s.form(c)
	if err != nil {
		return nil, nil, err
	}
	client, err := s.client(c.Request().Context(), c.Request(), form)
	return client, form, err
}

// jwks serves our public keys.
func (s *Server) jwks(c echo.Context) error {
	mayBeCached(c)
	return c.Blob(http.StatusOK, "application/jwk-set+json", s.cfg.Keys.JWKS())
}

// mayBeCached marks an answer as the same for everybody, and for a while.
func mayBeCached(c echo.Context) {
	h := c.Response().Header()
	h.Set("Cache-Control", "public, max-age=300")
	h.Del("Pragma")
}

// metadata is RFC 8414 section 2, and OpenID Connect Discovery section 3 for
// those who look there, such as clouds that federate with us. Only what exists is
// in it.
type metadata struct {
	Issuer                string   `json:"issuer"`
	TokenEndpoint         string   `json:"token_endpoint"`
	RevocationEndpoint    string   `json:"revocation_endpoint"`
	IntrospectionEndpoint string   `json:"introspection_endpoint"`
	JWKSURI               string   `json:"jwks_uri"`
	GrantTypes            []string `json:"grant_types_supported"`
	ResponseTypes         []string `json:"response_types_supported"`
	AuthMethods           []string `json:"token_endpoint_auth_methods_supported"`
	AuthAlgorithms        []string `json:"token_endpoint_auth_signing_alg_values_supported"`
	RevocationMethods     []string `json:"revocation_endpoint_auth_methods_supported"`
	RevocationAlgorithms  []string `json:"revocation_endpoint_auth_signing_alg_values_supported"`
	IntrospectMethods     []string `json:"introspection_endpoint_auth_methods_supported"`
	IntrospectAlgorithms  []string `json:"introspection_endpoint_auth_signing_alg_values_supported"`
	DetailsTypes          []string `json:"authorization_details_types_supported"`
	BoundTokens           bool     `json:"tls_client_certificate_bound_access_tokens,omitempty"` // RFC 8705 section 3.3
	SubjectTypes          []string `json:"subject_types_supported,omitempty"`
	IDTokenAlgorithms     []string `json:"id_token_signing_alg_values_supported,omitempty"`
	// CallEndpoint is ours.
	CallEndpoint string `json:"stint_call_endpoint,omitempty"`
}

func (s *Server) newMetadata(openID bool) metadata {
	methods := s.cfg.AuthMethods
	m := metadata{
		Issuer: s.cfg.Issuer, TokenEndpoint: s.cfg.Issuer + "/oauth2/token",
		RevocationEndpoint: s.cfg.Issuer + "/oauth2/revoke", IntrospectionEndpoint: s.cfg.Issuer + "/oauth2/introspect",
		JWKSURI: s.cfg.Issuer + "/oauth2/jwks", GrantTypes: []string{broker.TokenExchange, broker.ClientCredentials},
		ResponseTypes: []string{}, AuthMethods: methods, AuthAlgorithms: broker.ClientAlgorithms,
		RevocationMethods: methods, RevocationAlgorithms: broker.ClientAlgorithms,
		IntrospectMethods: methods, IntrospectAlgorithms: broker.ClientAlgorithms,
		DetailsTypes: s.cfg.DetailsTypes, BoundTokens: s.cfg.BoundTokens,
	}
	if s.cfg.Calls != nil {
		m.CallEndpoint = s.cfg.Issuer + "/call"
	}
	if openID {
		m.SubjectTypes, m.IDTokenAlgorithms = []string{"public"}, s.cfg.Keys.Algorithms()
	}
	return m
}

func (s *Server) serveMetadata(openID bool) echo.HandlerFunc {
	return func(c echo.Context) error {
		mayBeCached(c)
		return c.JSON(http.StatusOK, s.newMetadata(openID))
	}
}

// live says that the process runs.
func (s *Server) live(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]string{"status": "ok"})
}

// readiness is the answer of /readyz.
type readiness struct {
	Ready bool `json:"ready"`
	// Missing names what is needed and not there.
	Missing []string `json:"missing"`
	*details
}

// details are shown where only operators look.
type details struct {
	Replica   string            `json:"replica"`
	Current   bool              `json:"current"`
	Behind    float64           `json:"behind_seconds"`
	Position  string            `json:"position"`
	Records   int               `json:"revocations"`
	Leases    int               `json:"open_leases"`
	Policy    string            `json:"policy"`
	Policies  map[string]string `json:"policies"`
	Providers map[string]string `json:"providers"`
	Issuers   map[string]string `json:"issuers"`
	Why       string            `json:"why,omitempty"`
	// Problem says why the newest mappings are not in force.
	Problem string `json:"policy_problem,omitempty"`
}

// statusFor is how long the public listener repeats what it has learnt of the
// broker: a stranger cannot have the store and every upstream asked at will.
const statusFor = time.Second

// lastStatus is what the public listener was told last.
type lastStatus struct {
	mu     sync.Mutex
	at     time.Time
	status broker.Status
	asking chan struct{} // closed when the answer is there; nil while nobody asks
}

// status asks the broker how it is. What is repeated to others does not depend on
// whether the caller who made us ask has gone away.
func (s *Server) status(ctx context.Context, fresh bool) broker.Status {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if fresh {
		return s.broker.Status(ctx)
	}
	l := &s.last
	l.mu.Lock()
	for l.asking != nil && l.at.IsZero() { // there is no answer yet: this one will do
		asking := l.asking
		l.mu.Unlock()
		<-asking
		l.mu.Lock()
	}
	if l.asking != nil || !l.at.IsZero() && s.now().Sub(l.at).Abs() < statusFor {
		defer l.mu.Unlock()
		return l.status
	}
	asking := make(chan struct{})
	l.asking = asking
	l.mu.Unlock()
	st := s.broker.Status(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at, l.status, l.asking = s.now(), st, nil
	close(asking)
	return st
}

// ready says whether requests can be served, and what is missing. An upstream or
// issuer that is down is reported and does not make the server unready: the
// others can still be served.
func (s *Server) ready(full bool) echo.HandlerFunc {
	return func(c echo.Context) error {
		out := s.readiness(c.Request().Context(), full)
		status := http.StatusOK
		if !out.Ready {
			status = http.StatusServiceUnavailable
		}
		return c.JSON(status, out)
	}
}

// readiness asks around.
func (s *Server) readiness(ctx context.Context, full bool) readiness {
	st := s.status(ctx, full)
	out := readiness{Missing: []string{}}
	if s.draining.Load() {
		out.Missing = append(out.Missing, "shutting down")
	}
	if !st.Current {
		out.Missing = append(out.Missing, "revocation feed")
	}
	if st.OpenLeases < 0 {
		out.Missing = append(out.Missing, "store")
	}
	if st.Record != "" {
		out.Missing = append(out.Missing, "audit journal")
	}
	out.Ready = len(out.Missing) == 0
	if full {
		out.details = &details{
			Replica: st.Replica, Current: st.Current, Behind: min(st.Behind.Seconds(), 1e9), Position: st.Head.String(), Records: st.Records,
			Leases: st.OpenLeases, Policy: st.Policy, Policies: st.Policies, Providers: st.Providers, Issuers: s.cfg.IssuerHealth(), Why: st.Why,
			Problem: s.cfg.Operations.PolicyProblem(),
		}
	}
	return out
}

func readJSON(c echo.Context, into any) error {
	if !hasType(c.Request(), "application/json") {
		return bad("the body has to be application/json")
	}
	body, err := readBody(c.Request())
	if err != nil {
		return err
	}
	if err := strictjson.Decode([]byte(body), into); err != nil {
		return bad(err.Error())
	}
	return nil
}
