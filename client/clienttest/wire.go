package clienttest

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/client"
)

// answer is what the broker says: a document, or an error (RFC 6749 section 5.2).
type answer struct {
	status      int
	body        any
	retryAfter  time.Duration
	Error       string `json:"error,omitempty"`
	Description string `json:"error_description,omitempty"`
	URL         string `json:"url,omitempty"`
	Interaction string `json:"interaction,omitempty"`
	Claims      string `json:"claims,omitempty"`
}

func refuse(code, description string) answer {
	return answer{status: http.StatusBadRequest, Error: code, Description: description}
}

// failure is the answer by which a client knows an error.
func failure(err error) answer {
	approval, link := (*client.NeedsApproval)(nil), (*client.NeedsLink)(nil)
	down, refused := (*client.Unavailable)(nil), (*client.Refused)(nil)
	switch {
	case errors.As(err, &approval):
		return answer{status: http.StatusBadRequest, Error: "interaction_required", Description: approval.Description, URL: approval.URL, Interaction: "approval"}
	case errors.As(err, &link):
		return answer{status: http.StatusBadRequest, Error: "interaction_required", Description: link.Description, URL: link.URL, Interaction: "link", Claims: link.Claims}
	case errors.As(err, &down):
		return answer{status: http.StatusServiceUnavailable, Error: "temporarily_unavailable", retryAfter: down.RetryAfter}
	case errors.As(err, &refused):
		return refuse(refused.Code, refused.Description)
	}
	return answer{status: http.StatusInternalServerError, Error: "server_error"}
}

func (a answer) write(w http.ResponseWriter) {
	body := a.body
	if a.Error != "" {
		body = a
	}
	if a.status >= http.StatusInternalServerError {
		w.Header().Set("Retry-After", strconv.Itoa(int(a.retryAfter/time.Second)))
	}
	if a.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="stint", charset="UTF-8"`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(a.status)
	if body != nil {
		_ = json.NewEncoder(w).Encode(body)
	}
}

func good(body any) answer { return answer{status: http.StatusOK, body: body} }

func (b *Broker) metadata(w http.ResponseWriter, _ *http.Request) {
	at := b.server.URL
	good(map[string]any{
		"issuer": at, "token_endpoint": at + "/oauth2/token", "introspection_endpoint": at + "/oauth2/introspect",
		"revocation_endpoint": at + "/oauth2/revoke", "jwks_uri": at + "/oauth2/jwks",
	}).write(w)
}

func (b *Broker) keys(w http.ResponseWriter, _ *http.Request) {
	public, err := b.key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		failure(err).write(w)
		return
	}
	text := base64.RawURLEncoding.EncodeToString
	good(map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "test", "x": text(public[1:33]), "y": text(public[33:]),
	}}}).write(w)
}

// authenticated reads the form and the client's credentials, as the real one does:
// nothing from the address, nothing twice, empty as if absent.
func (b *Broker) authenticated(serve func(url.Values) answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		err := r.ParseForm()
		form := r.PostForm
		switch {
		case err != nil || r.URL.RawQuery != "" || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded"):
			refuse("invalid_request", "the body has to be application/x-www-form-urlencoded").write(w)
			return
		}
		for name, values := range form {
			values = slices.DeleteFunc(values, func(v string) bool { return v == "" })
			if len(values) > 1 && name != "resource" && name != "audience" {
				refuse("invalid_request", "a parameter is repeated").write(w)
				return
			}
			if form[name] = values; len(values) == 0 {
				delete(form, name)
			}
		}
		id, secret, ok := r.BasicAuth()
		id, err1 := url.QueryUnescape(id)
		secret, err2 := url.QueryUnescape(secret)
		if !ok || err1 != nil || err2 != nil || id != clientID || subtle.ConstantTimeCompare([]byte(secret), []byte(b.secret)) != 1 {
			answer{status: http.StatusUnauthorized, Error: "invalid_client", Description: "client authentication failed"}.write(w)
			return
		}
		serve(form).write(w)
	}
}

// caller is a token that was shown.
type caller struct {
	Subject string `json:"sub"`
	Aud     string `json:"aud"`
	ID      string `json:"jti"`
	Client  string `json:"client_id"`
	Scope   string `json:"scope"`
	Issuer  string `json:"iss"`
	Expires int64  `json:"exp"`
	Issued  int64  `json:"iat"`
	Stint   struct {
		Once bool `json:"once"`
	} `json:"stint"`
}

// verify reads a token of this broker that is alive.
func (b *Broker) verify(raw string) (*caller, bool) {
	part := strings.Split(raw, ".")
	if len(part) != 3 {
		return nil, false
	}
	signature, err1 := base64.RawURLEncoding.DecodeString(part[2])
	payload, err2 := base64.RawURLEncoding.DecodeString(part[1])
	if err1 != nil || err2 != nil || len(signature) != 64 {
		return nil, false
	}
	digest := sha256.Sum256([]byte(part[0] + "." + part[1]))
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	var c caller
	if !ecdsa.Verify(&b.key.PublicKey, digest[:], r, s) || json.Unmarshal(payload, &c) != nil {
		return nil, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	dead := b.used[c.ID] || b.revoked["subject "+c.Subject] || b.revoked[c.ID]
	for id := b.parent[c.ID]; id != ""; id = b.parent[id] {
		dead = dead || b.revoked[id]
	}
	return &c, !dead && b.cfg.Now().Before(time.Unix(c.Expires, 0))
}

// token serves the exchange and client_credentials, refusing in the order of the
// real one.
func (b *Broker) token(form url.Values) answer {
	var c *caller
	switch form.Get("grant_type") {
	case "client_credentials":
		c = &caller{Subject: clientID, Scope: "*"}
	case "urn:ietf:params:oauth:grant-type:token-exchange":
		var ok bool
		if c, ok = b.verify(form.Get("subject_token")); !ok || c.Aud != b.cfg.Resource || form.Get("subject_token_type") != "urn:ietf:params:oauth:token-type:access_token" {
			return refuse("invalid_request", "subject token is not accepted")
		}
	case "":
		return refuse("invalid_request", "grant_type is missing")
	default:
		return refuse("unsupported_grant_type", "the grant type is not supported")
	}
	if a, asked := b.next(); asked {
		return a
	}
	resource := form.Get("resource")
	known, ok := b.cfg.Scopes[resource]
	if !ok || len(form["resource"]) != 1 {
		return refuse("invalid_target", "the target is unknown, or not this client's; there are "+strings.Join(b.targets(), ", "))
	}
	call, a := b.details(form, resource)
	if a.Error != "" {
		return a
	}
	if len(call.Scopes) == 0 {
		return refuse("invalid_scope", "scope is missing")
	}
	for _, s := range call.Scopes {
		if !slices.Contains(known, s) {
			return refuse("invalid_scope", "a scope is unknown, or not granted")
		}
	}
	return b.issue(c, call)
}

// details reads scope and authorization_details.
func (b *Broker) details(form url.Values, resource string) (Call, answer) {
	call := Call{Resource: resource, Scopes: strings.Fields(form.Get("scope"))}
	var details []struct {
		Type      string          `json:"type"`
		Tool      string          `json:"tool"`
		Arguments json.RawMessage `json:"arguments"`
		Once      bool            `json:"once"`
	}
	if text := form.Get("authorization_details"); text != "" && json.Unmarshal([]byte(text), &details) != nil {
		return call, refuse("invalid_authorization_details", "authorization_details is no array of objects")
	}
	for _, d := range details {
		if d.Type != "mcp_tool_call" {
			return call, refuse("invalid_authorization_details", "the type is unknown")
		}
		if len(d.Arguments) > 0 && d.Arguments[0] != '{' {
			return call, refuse("invalid_authorization_details", "arguments are no object")
		}
		scopes, ok := b.cfg.Tools[resource][d.Tool]
		if !ok {
			return call, refuse("invalid_authorization_details", "the tool is unknown")
		}
		call.Tool, call.Arguments, call.Once = d.Tool, d.Arguments, d.Once
		if len(call.Scopes) == 0 {
			call.Scopes = scopes
		}
	}
	return call, answer{}
}

// issue makes what was asked for.
func (b *Broker) issue(c *caller, call Call) answer {
	call.Subject = c.Subject
	expires := b.cfg.Now().Add(lifetime)
	if c.Expires != 0 && time.Unix(c.Expires, 0).Before(expires) { // never beyond the subject token
		expires = time.Unix(c.Expires, 0)
	}
	id := rand.Text()
	b.mu.Lock()
	if c.Stint.Once {
		if b.used[c.ID] {
			b.mu.Unlock()
			return refuse("invalid_request", "subject token is not accepted")
		}
		b.used[c.ID] = true
	}
	b.parent[id] = c.ID
	b.calls = append(b.calls, call)
	b.mu.Unlock()
	out := map[string]any{
		"token_type": "Bearer", "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
		"expires_in": int64(expires.Sub(b.cfg.Now()) / time.Second), "scope": strings.Join(call.Scopes, " "),
	}
	if doc, ok := b.cfg.Documents[call.Resource]; ok {
		out["access_token"], out["credential"], out["lease_id"] = string(doc), doc, strings.ToLower(id[:24])
		out["token_type"], out["issued_token_type"] = "N_A", client.CredentialType
		b.mu.Lock()
		b.leases[strings.ToLower(id[:24])] = true
		b.mu.Unlock()
	} else {
		out["access_token"] = b.sign(TokenOptions{
			Subject: c.Subject, Scopes: call.Scopes, Resource: call.Resource, Tool: call.Tool, Once: call.Once || c.Stint.Once, Expires: expires,
		}, clientID, id)
	}
	return good(out)
}

// renew lets a credential live longer, where another would be given.
func (b *Broker) renew(form url.Values) answer {
	a := b.token(form)
	if a.Error != "" {
		return a
	}
	id := form.Get("lease_id")
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.leases[id] || b.revoked[id] {
		return refuse("invalid_request", "lease_id: there is no such lease that could be renewed")
	}
	return good(map[string]any{"lease_id": id, "expires_in": int64(lifetime / time.Second)})
}

// introspect serves RFC 7662, for the audience of the token.
func (b *Broker) introspect(form url.Values) answer {
	if form.Get("token") == "" {
		return refuse("invalid_request", "token is missing")
	}
	inactive := good(map[string]any{"active": false})
	c, ok := b.verify(form.Get("token"))
	if !ok || c.Aud != b.cfg.Resource {
		return inactive
	}
	if form.Get("consume") == "true" && c.Stint.Once {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.used[c.ID] {
			return inactive
		}
		b.used[c.ID] = true
	}
	return good(map[string]any{
		"active": true, "iss": c.Issuer, "sub": c.Subject, "aud": c.Aud, "client_id": c.Client, "jti": c.ID, "scope": c.Scope, "exp": c.Expires, "iat": c.Issued,
	})
}

// revokeToken serves RFC 7009.
func (b *Broker) revokeToken(form url.Values) answer {
	text := form.Get("token")
	if text == "" {
		return refuse("invalid_request", "token is missing")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if part := strings.Split(text, "."); len(part) == 3 {
		var c caller
		if payload, err := base64.RawURLEncoding.DecodeString(part[1]); err == nil && json.Unmarshal(payload, &c) == nil {
			b.revoked[c.ID] = true
		}
	} else {
		b.revoked[text] = true
	}
	return answer{status: http.StatusOK}
}

// RevokeToken ends a token, and what was made from it.
func (b *Broker) RevokeToken(raw string) {
	if c, ok := b.verify(raw); ok {
		b.mu.Lock()
		b.revoked[c.ID] = true
		b.mu.Unlock()
	}
}

// Alive reports whether a credential was not given back: a token, or the id of a
// lease.
func (b *Broker) Alive(cred *client.Credential) bool {
	b.mu.Lock()
	if cred.Lease != "" {
		defer b.mu.Unlock()
		return !b.revoked[cred.Lease]
	}
	b.mu.Unlock()
	_, ok := b.verify(cred.Token.Reveal())
	return ok
}
