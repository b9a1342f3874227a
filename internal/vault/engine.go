package vault

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// Bounds of what is asked of Vault's engines, which ask others in turn.
const (
	engineTimeout = time.Minute
	// childUses is how often a child token may be used: once for its credential.
	// Vault ends a token with its last use, and what it leased with it, so that
	// there is one more, which never comes.
	childUses = 2
)

// Engine has Vault make credentials, and ends them.
//
// Everything that Vault leases dies with the token that asked for it, so each
// credential is asked for with a child token of its own: one that has one policy,
// cannot be renewed, and is an orphan, so that neither the end of our login nor
// that of a replica ends it. Its accessor is known before anything is made with
// it, and is the handle that ends whatever was made.
//
// A child's policy need not be one of ours. It is the token role that says which
// policies there may be; see deploy/vault/stint.hcl.
//
// What Vault answers means, unless a method says otherwise:
//
//	400, 403   a plain error: what is asked for, or the policy, is wrong
//	404        ErrNotFound: there is no such role or path
//	412, 429, 472 and up   Unavailable: sealed, overloaded, or the upstream is down
//	no answer  Unavailable; it may have taken effect
//
// Nothing is asked twice, except when Vault has refused our own token before
// doing anything. Methods take at most a minute, or as long as their context.
type Engine struct{ c *client }

// CreateChild makes a token that has one policy, and ends after life, with all
// that was leased by it. lease is noted beside it in Vault's own log. A token that
// is not what was asked for is revoked, and an error. After an error without an
// answer there may be a token that nobody holds; nothing was leased by it.
func (e *Engine) CreateChild(ctx context.Context, policy string, life time.Duration, lease string) (token secret.String, accessor string, err error) {
	if life < time.Second || checkServerPath(policy) != nil || strings.Contains(policy, "/") {
		return secret.String{}, "", fmt.Errorf("no token with the policy %q for %s", policy, life)
	}
	seconds := int64((life + time.Second - 1) / time.Second)
	a, err := e.c.ask(ctx, engineTimeout, request{
		method: http.MethodPut, path: "auth/token/create/" + e.c.tokenRole,
		body: map[string]any{
			"policies": []string{policy}, "no_default_policy": true, "type": "service", "renewable": false,
			"ttl": fmt.Sprintf("%ds", seconds), "explicit_max_ttl": fmt.Sprintf("%ds", seconds), "num_uses": childUses,
			"display_name": lease, "meta": map[string]string{"lease": lease},
		},
	})
	if err != nil {
		return secret.String{}, "", fmt.Errorf("make a token by the role %s: %w", e.c.tokenRole, err)
	}
	if a.Auth == nil || a.Auth.Accessor == "" {
		return secret.String{}, "", errors.New("make a token: none in the answer")
	}
	token = secret.New(a.Auth.ClientToken)
	if err := errors.Join(checkToken(token), checkChild(a.Auth, policy, seconds)); err != nil {
		return secret.String{}, "", errors.Join(fmt.Errorf("make a token by the role %s: %w", e.c.tokenRole, err), e.RevokeChild(ctx, a.Auth.Accessor))
	}
	return token, a.Auth.Accessor, nil
}

// checkChild holds a token against what was asked for: a role may say otherwise.
func checkChild(a *auth, policy string, seconds int64) error {
	switch {
	case !a.Orphan || a.EntityID != "":
		return errors.New("it is no orphan, and would end with our login: the role wants orphan=true")
	case !slices.Equal(a.Policies, []string{policy}) || len(a.IdentityPolicies) > 0:
		return fmt.Errorf("it has the policies %q and not just %q", append(a.Policies, a.IdentityPolicies...), policy)
	case a.Renewable || a.TokenType != "service" || a.LeaseDuration <= 0 || a.LeaseDuration > seconds:
		return fmt.Errorf("it is a %s token for %ds, renewable %t: not a service token for %ds", a.TokenType, a.LeaseDuration, a.Renewable, seconds)
	case a.NumUses != childUses:
		return fmt.Errorf("it may be used %d times and not %d: the role wants no token_num_uses", a.NumUses, childUses)
	}
	return nil
}

// Generate asks for a credential with a child token: it reads path, or writes
// params to it if they are not nil. It returns what was made, the lease, and how
// long Vault leases it; the child's end may come sooner. The lease is empty where
// the engine leases nothing, and then revoking the child ends nothing. It is
// never idempotent: after an error a credential may exist, and goes with the
// child if it was leased.
func (e *Engine) Generate(ctx context.Context, token secret.String, path string, params map[string]any) (
	made map[string]secret.String, lease string, life time.Duration, err error,
) {
	first, _, _ := strings.Cut(path, "/")
	if err := checkServerPath(path); err != nil {
		return nil, "", 0, err
	}
	if slices.Contains([]string{"sys", "auth", "identity", "cubbyhole"}, first) {
		return nil, "", 0, fmt.Errorf("%s is no path of an engine", path)
	}
	r := request{method: http.MethodGet, path: path}
	if params != nil {
		r.method, r.body = http.MethodPut, params
	}
	a, err := e.c.as(ctx, token, engineTimeout, r)
	if err != nil {
		return nil, "", 0, fmt.Errorf("ask for %s: %w", path, classify(err))
	}
	made, err = a.fields()
	if err == nil && len(made) == 0 {
		err = errors.New("nothing in the answer")
	}
	if err != nil {
		return nil, "", 0, fmt.Errorf("ask for %s: %w", path, err)
	}
	return made, a.LeaseID, time.Duration(a.LeaseDuration) * time.Second, nil
}

// RevokeLease ends a lease upstream and returns when that is done. It may be
// called again, and returns nil if there is no such lease. A plain error with a
// 400 means, mostly, that the upstream could not do it: Vault does not try again
// by itself, so that the caller has to.
func (e *Engine) RevokeLease(ctx context.Context, lease string) error {
	if lease == "" {
		return errors.New("revoke a lease: which?")
	}
	_, err := e.c.ask(ctx, engineTimeout, request{
		// Without sync Vault would only put it on a list.
		method: http.MethodPut, path: "sys/leases/revoke", body: map[string]any{"lease_id": lease, "sync": true},
	})
	if err != nil {
		return fmt.Errorf("revoke a lease: %w", err)
	}
	return nil
}

// RevokeChild ends a child token by its accessor: nothing more can be made with
// it, and Vault begins to end what was leased by it, but does not wait for that,
// nor say whether it succeeds. Call [Engine.RevokeLease] before, where the lease
// is known, and [Engine.LookupLease] to find out. ErrNotFound if there is no such
// token: it has ended, and so has begun the end of its leases.
func (e *Engine) RevokeChild(ctx context.Context, accessor string) error {
	if accessor == "" {
		return errors.New("revoke a token: which?")
	}
	a, err := e.c.ask(ctx, engineTimeout, request{
		method: http.MethodPut, path: "auth/token/revoke-accessor", body: map[string]any{"accessor": accessor},
	})
	switch {
	case says(err, http.StatusBadRequest, "invalid accessor"), err == nil && len(a.Warnings) > 0:
		return fmt.Errorf("revoke a token: %w", broker.ErrNotFound) // a warning says that there is none
	case err != nil:
		return fmt.Errorf("revoke a token: %w", err)
	}
	return nil
}

// LookupChild returns when a child token ends. ErrNotFound if it has.
func (e *Engine) LookupChild(ctx context.Context, accessor string) (expires time.Time, err error) {
	if accessor == "" {
		return time.Time{}, errors.New("look up a token: which?")
	}
	return e.lookup(ctx, "auth/token/lookup-accessor", map[string]any{"accessor": accessor}, "invalid accessor")
}

// LookupLease returns when a lease ends. ErrNotFound if it has, upstream too. One
// that Vault could not end is still there, and its time past.
func (e *Engine) LookupLease(ctx context.Context, lease string) (expires time.Time, err error) {
	if lease == "" {
		return time.Time{}, errors.New("look up a lease: which?")
	}
	return e.lookup(ctx, "sys/leases/lookup", map[string]any{"lease_id": lease}, "invalid lease")
}

func (e *Engine) lookup(ctx context.Context, path string, body map[string]any, none string) (time.Time, error) {
	a, err := e.c.ask(ctx, engineTimeout, request{method: http.MethodPut, path: path, body: body})
	if says(err, http.StatusBadRequest, none) {
		return time.Time{}, fmt.Errorf("%s: %w", path, broker.ErrNotFound)
	}
	var data struct {
		Expires time.Time `json:"expire_time"`
	}
	if err == nil {
		err = a.decode(&data)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", path, err)
	}
	return data.Expires, nil
}

// Sign has the transit engine sign a message by an RSA key that never leaves it: PKCS #1
// v1.5 over SHA-256.
func (e *Engine) Sign(ctx context.Context, key string, message []byte) ([]byte, error) {
	if checkServerPath(key) != nil || strings.Contains(key, "/") {
		return nil, fmt.Errorf("no key of the transit engine is called %q", key)
	}
	a, err := e.c.ask(ctx, engineTimeout, request{method: http.MethodPut, path: "transit/sign/" + key + "/sha2-256", body: map[string]any{
		"input": base64.StdEncoding.EncodeToString(message), "signature_algorithm": "pkcs1v15", "prehashed": false,
	}})
	var data struct {
		Signature string `json:"signature"`
	}
	if err == nil {
		err = a.decode(&data)
	}
	if err != nil {
		return nil, fmt.Errorf("sign with the key %s: %w", key, err)
	}
	parts := strings.Split(data.Signature, ":") // vault:v1:...
	signature, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if len(parts) != 3 || parts[0] != "vault" || err != nil || len(signature) == 0 {
		return nil, fmt.Errorf("sign with the key %s: the answer is no signature", key)
	}
	return signature, nil
}
