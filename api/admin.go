package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/stint-dev/stint/api/adminapi"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/scopes"
)

// The scopes of the admin API.
const (
	scopeRead       = "read"
	scopeOperate    = "operate"
	scopeAdminister = "administer"
	scopeApprove    = "approve"
)

// adminScopes says which scope each operation of the admin API needs, by the name that
// openapi.yaml gives it.
var adminScopes = map[string]string{
	"status": scopeRead, "listClients": scopeRead, "getClient": scopeRead, "listIssuers": scopeRead, "getIssuer": scopeRead,
	"listProviders": scopeRead, "listMappings": scopeRead, "getMapping": scopeRead, "listSessions": scopeRead,
	"listLeases": scopeRead, "getLease": scopeRead, "listKeys": scopeRead,
	"changeClient": scopeOperate, "changeIssuer": scopeOperate, "createRevocation": scopeOperate,
	"rotateKey": scopeAdminister, "rotateSealingKey": scopeAdminister, "revokeKey": scopeAdminister, "newClientSecret": scopeAdminister,
}

// admin is the admin API.
type admin struct{ *Server }

var _ adminapi.ServerInterface = admin{}

// adminRoutes adds the admin API. Each operation is behind a gate, which is told the
// scope that the operation needs.
func (s *Server) adminRoutes(to adminapi.EchoRouter, base string, gate func(scope string) echo.MiddlewareFunc) {
	gates := make(map[string][]echo.MiddlewareFunc, len(adminScopes))
	for operation, scope := range adminScopes {
		gates[operation] = []echo.MiddlewareFunc{gate(scope)}
	}
	adminapi.RegisterHandlersWithOptions(withHead{to}, admin{s}, adminapi.RegisterHandlersOptions{BaseURL: base, OperationMiddlewares: gates})
}

// withHead adds HEAD to every GET (RFC 9110 section 9.1).
type withHead struct{ adminapi.EchoRouter }

// GET implements [adminapi.EchoRouter].
func (w withHead) GET(path string, h echo.HandlerFunc, m ...echo.MiddlewareFunc) *echo.Route {
	w.HEAD(path, h, m...)
	return w.EchoRouter.GET(path, h, m...)
}

// operatorKey is where a gate puts who asks, and socketKey that it is on the socket.
const (
	operatorKey = "operator"
	socketKey   = "socket"
)

// atSocket is the gate of the local socket: who can open it may do everything.
func atSocket(string) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			c.Set(operatorKey, peerName(c))
			c.Set(socketKey, true)
			return next(c)
		}
	}
}

// byToken is the gate of the public listener: a token of ours for the admin API, with
// the scope (RFC 6750, RFC 9068 section 4).
func (s *Server) byToken(scope string) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return s.limited(func(c echo.Context) error {
			t, err := s.bearer(c, s.cfg.Admin.Resource)
			if err != nil {
				return s.fail(c, err)
			}
			if !slices.Contains(t.Scope, scope) {
				c.Response().Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer error="insufficient_scope", scope="%s"`, scope))
				p := toProblem(adminEndpoint, broker.Fail(broker.BadScope, nil, "the token has not the scope "+scope+", which this needs"))
				p.scope = scope
				return s.answer(c, p)
			}
			c.Set(operatorKey, s.person(t))
			return next(c)
		})
	}
}

// bearer returns the token of a request, if it is good here.
func (s *Server) bearer(c echo.Context, resource string) (*broker.Token, error) {
	scheme, raw, _ := strings.Cut(c.Request().Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || raw == "" || len(c.Request().Header.Values("Authorization")) != 1 {
		return nil, broker.Fail(broker.BadToken, nil, "a token is needed: stint login gets one")
	}
	return s.broker.Admit(c.Request().Context(), secret.New(strings.TrimSpace(raw)), resource, broker.Shown(c.Request().TLS))
}

// person names in the record whoever a token speaks for: somebody by an index, a client
// that acts for itself by its id, which is neither an index nor a user of this machine.
func (s *Server) person(t *broker.Token) string {
	if name := s.broker.Person(t.Subject); name != t.Subject {
		return name
	}
	return "client:" + t.Subject
}

func operator(c echo.Context) string {
	name, _ := c.Get(operatorKey).(string)
	return name
}

// Status implements [adminapi.ServerInterface].
func (s admin) Status(c echo.Context) error {
	return c.JSON(http.StatusOK, s.readiness(c.Request().Context(), true))
}

// partyID names an issuer or mapping where its own name has no place: in a path.
func partyID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:8])
}

// pageOf returns the items behind a cursor, which is the key of the last one before,
// and the cursor of the next page. all are in the order of their keys.
func pageOf[T any](all []T, key func(T) string, cursor string, limit int) (page []T, next string) {
	if limit == 0 {
		limit = 100
	}
	at, _ := slices.BinarySearchFunc(all, cursor, func(item T, cursor string) int {
		if key(item) <= cursor {
			return -1
		}
		return 1
	})
	all = all[at:]
	if len(all) > limit {
		return all[:limit], key(all[limit-1])
	}
	return all, ""
}

// checkPage refuses limits out of bounds.
func checkPage(limit int, given bool) error {
	if given && (limit < 1 || limit > 1000) {
		return bad("limit: from 1 to 1000")
	}
	return nil
}

// page checks what a request says of the page that it wants.
func page(c echo.Context, limit *int) error {
	err := checkPage(*limit, c.QueryParam("limit") != "")
	if *limit == 0 {
		*limit = 100
	}
	return err
}

func (s admin) client(c *broker.Client) adminapi.Client {
	out := adminapi.Client{
		ID: c.ID, Name: c.Name, GrantTypes: c.GrantTypes, AuthMethod: c.Auth.Method, Resource: c.Resource,
		Targets: append([]string{}, c.Targets...), Identities: c.Identities, MaxLifetime: int(c.MaxLifetime.Seconds()),
		AcceptLess: c.AcceptLess, Impersonation: c.Impersonation, Disabled: c.Disabled,
	}
	if sw, off, _ := s.broker.Switched(broker.SwitchClient, c.ID); off {
		out.Disabled, out.Switch = true, adminapi.Switch{By: sw.By, At: sw.At, Reason: sw.Reason}
	}
	return out
}

// ListClients implements [adminapi.ServerInterface].
func (s admin) ListClients(c echo.Context, p adminapi.ListClientsParams) error {
	if err := page(c, &p.Limit); err != nil {
		return s.fail(c, err)
	}
	clients := s.broker.Judge().Registry.Clients
	ids, next := pageOf(slices.Sorted(maps.Keys(clients)), func(id string) string { return id }, p.Cursor, p.Limit)
	out := adminapi.ClientList{Items: []adminapi.Client{}, Next: next}
	for _, id := range ids {
		out.Items = append(out.Items, s.client(clients[id]))
	}
	return c.JSON(http.StatusOK, out)
}

// GetClient implements [adminapi.ServerInterface].
func (s admin) GetClient(c echo.Context, id string) error {
	found := s.broker.Judge().Registry.Clients[id]
	if found == nil {
		return s.fail(c, broker.Fail(broker.BadTarget, nil, "there is no such client"))
	}
	s.tag(c, broker.SwitchClient)
	return c.JSON(http.StatusOK, s.client(found))
}

// tag sets the version of what can be changed about a party.
func (s admin) tag(c echo.Context, kind broker.SwitchedKind) {
	_, _, version := s.broker.Switched(kind, "")
	c.Response().Header().Set("ETag", strconv.Quote(strconv.Itoa(version)))
}

// ChangeClient implements [adminapi.ServerInterface].
func (s admin) ChangeClient(c echo.Context, id string, p adminapi.ChangeClientParams) error {
	if id == s.signInClient() {
		return s.fail(c, broker.Fail(broker.BadRequest, nil, "this is the client by which administrators sign in: without it nobody could turn it on again"))
	}
	return s.change(c, broker.SwitchClient, id, p.IfMatch, p.IdempotencyKey, func() any {
		return s.client(s.broker.Judge().Registry.Clients[id])
	})
}

// change turns a party off or on.
func (s admin) change(c echo.Context, kind broker.SwitchedKind, id, match, key string, shown func() any) error {
	var in adminapi.SwitchChange
	if err := readJSON(c, &in); err != nil {
		return s.fail(c, err)
	}
	r := broker.SwitchRequest{Kind: kind, ID: id, Off: in.Disabled, Reason: in.Reason, Operator: operator(c), RequestID: requestID(c)}
	if match != "" && match != "*" {
		version, err := strconv.Atoi(strings.Trim(match, `"`))
		if err != nil || version < 0 {
			return s.fail(c, broker.Fail(broker.Changed, nil, "If-Match: this is no ETag that was given out"))
		}
		r.Version = &version
	}
	return s.idempotent(c, key, []any{r.Kind, r.ID, in, match}, func(ctx context.Context) (int, any, error) {
		if err := s.broker.Switch(ctx, r); err != nil {
			return 0, nil, err
		}
		s.tag(c, kind)
		return http.StatusOK, shown(), nil
	})
}

func (s admin) issuer(i *broker.Issuer, problem string) adminapi.Issuer {
	out := adminapi.Issuer{
		ID: partyID(i.Issuer), Issuer: i.Issuer, Accept: i.Accept, Audiences: i.Audiences, Groups: i.Groups, Delegates: i.Delegates,
		Scopes: adminapi.Mapped, MaxSubjectAge: int(i.MaxSubjectAge.Seconds()), Problem: problem, Disabled: i.Disabled,
	}
	switch {
	case i.Scopes.IdentityOnly:
		out.Scopes = adminapi.IdentityOnly
	case i.Scopes.Ours:
		out.Scopes = adminapi.Ours
	}
	if sw, off, _ := s.broker.Switched(broker.SwitchIssuer, i.Issuer); off {
		out.Disabled, out.Switch = true, adminapi.Switch{By: sw.By, At: sw.At, Reason: sw.Reason}
	}
	return out
}

func (s admin) issuers() []*broker.Issuer {
	return slices.SortedFunc(maps.Values(s.broker.Judge().Registry.Issuers), func(a, b *broker.Issuer) int {
		return strings.Compare(partyID(a.Issuer), partyID(b.Issuer))
	})
}

// ListIssuers implements [adminapi.ServerInterface].
func (s admin) ListIssuers(c echo.Context, p adminapi.ListIssuersParams) error {
	if err := page(c, &p.Limit); err != nil {
		return s.fail(c, err)
	}
	health := s.cfg.IssuerHealth()
	some, next := pageOf(s.issuers(), func(i *broker.Issuer) string { return partyID(i.Issuer) }, p.Cursor, p.Limit)
	out := adminapi.IssuerList{Items: []adminapi.Issuer{}, Next: next}
	for _, i := range some {
		out.Items = append(out.Items, s.issuer(i, health[i.Issuer]))
	}
	return c.JSON(http.StatusOK, out)
}

func (s admin) findIssuer(id string) *broker.Issuer {
	for _, i := range s.broker.Judge().Registry.Issuers {
		if partyID(i.Issuer) == id {
			return i
		}
	}
	return nil
}

var errNoIssuer = broker.Fail(broker.BadTarget, nil, "there is no such issuer")

// GetIssuer implements [adminapi.ServerInterface].
func (s admin) GetIssuer(c echo.Context, id string) error {
	i := s.findIssuer(id)
	if i == nil {
		return s.fail(c, errNoIssuer)
	}
	s.tag(c, broker.SwitchIssuer)
	return c.JSON(http.StatusOK, s.issuer(i, s.cfg.IssuerHealth()[i.Issuer]))
}

// ChangeIssuer implements [adminapi.ServerInterface].
func (s admin) ChangeIssuer(c echo.Context, id string, p adminapi.ChangeIssuerParams) error {
	i := s.findIssuer(id)
	switch {
	case i == nil:
		return s.fail(c, errNoIssuer)
	case s.cfg.Admin != nil && i.Issuer == s.cfg.Admin.Issuer && c.Get(socketKey) != true:
		return s.fail(c, broker.Fail(broker.BadRequest, nil, "administrators sign in at this issuer: whoever turns it off does so on the local socket, where it can be turned on again"))
	}
	return s.change(c, broker.SwitchIssuer, i.Issuer, p.IfMatch, p.IdempotencyKey, func() any {
		return s.issuer(i, s.cfg.IssuerHealth()[i.Issuer])
	})
}

// ListProviders implements [adminapi.ServerInterface].
func (s admin) ListProviders(c echo.Context) error {
	problems := s.status(c.Request().Context(), true).Providers
	providers := s.broker.Judge().Registry.Providers
	out := adminapi.ProviderList{Items: []adminapi.Provider{}}
	for _, name := range slices.Sorted(maps.Keys(providers)) {
		d := providers[name].Describe()
		out.Items = append(out.Items, adminapi.Provider{
			Name: name, Kind: d.Kind, About: d.About, Class: string(d.Class), Scheme: d.Scheme, TokenType: d.TokenType, Revokes: d.Revokes, Problem: problems[name],
		})
	}
	return c.JSON(http.StatusOK, out)
}

// mapping describes the mapping of a resource in the version that is in force. read are
// the mappings as they are on disk, where the version may be another.
func mapping(resource, version string, read []*scopes.Mapping, text bool) adminapi.Mapping {
	out := adminapi.Mapping{ID: partyID(resource), Resource: resource, Version: version, Scopes: []adminapi.ScopeInfo{}}
	at := slices.IndexFunc(read, func(m *scopes.Mapping) bool { return m.Resource.Value == resource && m.Version() == version })
	if at < 0 {
		return out
	}
	m := read[at]
	for _, name := range slices.Sorted(maps.Keys(m.Scopes)) {
		out.Scopes = append(out.Scopes, adminapi.ScopeInfo{Name: name, Access: adminapi.ScopeInfoAccess(m.Scopes[name].Access.String()), About: m.Scopes[name].About})
	}
	out.Tools = slices.Sorted(maps.Keys(m.Tools))
	if text {
		for _, part := range m.Content {
			out.Text += string(part)
		}
	}
	return out
}

// ListMappings implements [adminapi.ServerInterface].
func (s admin) ListMappings(c echo.Context, p adminapi.ListMappingsParams) error {
	if err := page(c, &p.Limit); err != nil {
		return s.fail(c, err)
	}
	versions, read := s.broker.Judge().Policy().Versions(), s.cfg.Operations.Mappings()
	resources, next := pageOf(slices.Sorted(maps.Keys(versions)), func(r string) string { return r }, p.Cursor, p.Limit)
	out := adminapi.MappingList{Items: []adminapi.Mapping{}, Next: next}
	for _, r := range resources {
		out.Items = append(out.Items, mapping(r, versions[r], read, false))
	}
	return c.JSON(http.StatusOK, out)
}

// GetMapping implements [adminapi.ServerInterface].
func (s admin) GetMapping(c echo.Context, id string) error {
	for resource, version := range s.broker.Judge().Policy().Versions() {
		if partyID(resource) == id {
			c.Response().Header().Set("ETag", strconv.Quote(version))
			return c.JSON(http.StatusOK, mapping(resource, version, s.cfg.Operations.Mappings(), true))
		}
	}
	return s.fail(c, broker.Fail(broker.BadTarget, nil, "there is no such mapping"))
}

// ListSessions implements [adminapi.ServerInterface].
func (s admin) ListSessions(c echo.Context, p adminapi.ListSessionsParams) error {
	if err := page(c, &p.Limit); err != nil {
		return s.fail(c, err)
	}
	some, next, err := s.broker.Sessions(c.Request().Context(), broker.SessionFilter{Subject: p.Subject, Client: p.Client}, p.Cursor, p.Limit)
	if err != nil {
		return s.fail(c, err)
	}
	out := adminapi.SessionList{Items: []adminapi.Session{}, Next: next}
	for _, x := range some {
		out.Items = append(out.Items, adminapi.Session{ID: x.ID, Subject: x.Subject, Client: x.Client, Agent: x.Agent, First: x.First, Expires: x.Expires})
	}
	return c.JSON(http.StatusOK, out)
}

func lease(l *broker.Lease) adminapi.Lease {
	out := adminapi.Lease{
		ID: l.ID, Of: l.Of, State: adminapi.LeaseState(l.State), Provider: l.Provider, Subject: l.Subject, Session: l.Session, Client: l.Client,
		Agent: l.Agent, Resource: l.Resource, Created: l.Created, Expires: l.Expires, Attempts: l.Attempts,
		Why: l.Why, Outcome: string(l.Outcome), Until: l.Until, Note: l.Note,
	}
	_ = json.Unmarshal(l.Grant, &out.Grant) // it is canonical JSON, or nothing
	return out
}

// ListLeases implements [adminapi.ServerInterface].
func (s admin) ListLeases(c echo.Context, p adminapi.ListLeasesParams) error {
	if err := page(c, &p.Limit); err != nil {
		return s.fail(c, err)
	}
	if p.State != "" && !p.State.Valid() {
		return s.fail(c, bad("state: intent, active or closing"))
	}
	some, next, err := s.broker.Leases(c.Request().Context(), broker.LeaseFilter{
		Subject: p.Subject, Client: p.Client, Agent: p.Agent, Provider: p.Provider, Session: p.Session, Resource: p.Resource, State: broker.LeaseState(p.State),
	}, p.Cursor, p.Limit)
	if err != nil {
		return s.fail(c, err)
	}
	out := adminapi.LeaseList{Items: []adminapi.Lease{}, Next: next}
	for _, l := range some {
		out.Items = append(out.Items, lease(l))
	}
	return c.JSON(http.StatusOK, out)
}

// GetLease implements [adminapi.ServerInterface].
func (s admin) GetLease(c echo.Context, id string) error {
	l, err := s.broker.Lease(c.Request().Context(), id)
	if err != nil {
		return s.fail(c, err)
	}
	return c.JSON(http.StatusOK, lease(l))
}

// CreateRevocation implements [adminapi.ServerInterface].
func (s admin) CreateRevocation(c echo.Context, p adminapi.CreateRevocationParams) error {
	var in adminapi.RevocationRequest
	if err := readJSON(c, &in); err != nil {
		return s.fail(c, err)
	}
	return s.idempotent(c, p.IdempotencyKey, in, func(ctx context.Context) (int, any, error) {
		got, err := s.broker.Revoke(ctx, broker.Revocation{
			Selector: broker.Selector{Token: in.Token, Session: in.Session, Subject: in.Subject, Lease: in.Lease},
			Reason:   in.Reason, Operator: operator(c), RequestID: requestID(c),
		})
		return http.StatusCreated, got, err
	})
}

// ListKeys implements [adminapi.ServerInterface].
func (s admin) ListKeys(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]any{"items": s.cfg.Operations.SigningKeys()})
}

// RotateKey implements [adminapi.ServerInterface].
func (s admin) RotateKey(c echo.Context, p adminapi.RotateKeyParams) error {
	var in adminapi.KeyRotation
	if err := readJSON(c, &in); err != nil {
		return s.fail(c, err)
	}
	return s.idempotent(c, p.IdempotencyKey, in, func(ctx context.Context) (int, any, error) {
		key, err := s.cfg.Operations.RotateKey(ctx, operator(c), in.AtOnce)
		return http.StatusCreated, key, err
	})
}

// RotateSealingKey implements [adminapi.ServerInterface].
func (s admin) RotateSealingKey(c echo.Context, p adminapi.RotateSealingKeyParams) error {
	return s.idempotent(c, p.IdempotencyKey, nil, func(ctx context.Context) (int, any, error) {
		id, err := s.cfg.Operations.RotateSealingKey(ctx, operator(c))
		return http.StatusCreated, adminapi.SealingKey{ID: id}, err
	})
}

// RevokeKey implements [adminapi.ServerInterface].
func (s admin) RevokeKey(c echo.Context, p adminapi.RevokeKeyParams) error {
	var in adminapi.KeyRevocation
	if err := readJSON(c, &in); err != nil {
		return s.fail(c, err)
	}
	return s.idempotent(c, p.IdempotencyKey, in, func(ctx context.Context) (int, any, error) {
		out, err := s.cfg.Operations.RevokeKey(ctx, operator(c), in.Kid)
		if errors.Is(err, broker.ErrNotFound) {
			err = broker.Fail(broker.BadTarget, err, "there is no such signing key")
		}
		return http.StatusCreated, out, err
	})
}

// NewClientSecret implements [adminapi.ServerInterface].
func (s admin) NewClientSecret(c echo.Context, p adminapi.NewClientSecretParams) error {
	return s.idempotent(c, p.IdempotencyKey, nil, func(ctx context.Context) (int, any, error) {
		made, hash, err := s.cfg.Operations.NewClientSecret(ctx, operator(c))
		return http.StatusCreated, adminapi.ClientSecret{Secret: made.Reveal(), Hash: hash}, err
	})
}
