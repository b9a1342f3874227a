package kubernetes

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// token is what a TokenRequest is answered.
type token struct {
	token  secret.String
	claims claims
}

// claims are what a token says of itself. Its signature is not looked at: it comes from
// the API server itself, and is for it.
type claims struct {
	Subject    string   `json:"sub"`
	Audience   audience `json:"aud"`
	Expires    int64    `json:"exp"`
	ID         string   `json:"jti"`
	Kubernetes struct {
		Namespace string    `json:"namespace"`
		Account   reference `json:"serviceaccount"`
		Secret    reference `json:"secret"`
	} `json:"kubernetes.io"`
}

type reference struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// audience is a list, or a single text (RFC 7519 section 4.1.3).
type audience []string

func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if strictjson.Decode(b, &one) == nil {
		*a = audience{one}
		return nil
	}
	return strictjson.Decode(b, (*[]string)(a))
}

// of says in what a token is not the one that was asked for.
func (c *claims) of(a account, audiences []string) error {
	k := c.Kubernetes
	switch {
	case c.Subject != "system:serviceaccount:"+a.namespace+":"+a.name || k.Namespace != a.namespace || k.Account != (reference{a.name, a.uid}):
		return errors.New("it is another account's")
	case k.Secret != (reference{a.secret, a.secretUID}):
		return errors.New("it is not bound to the lease's Secret, and would not end with it")
	case len(audiences) > 0 && !slices.Equal([]string(c.Audience), audiences):
		return errors.New("it is for others than was asked")
	case c.ID == "" || c.Expires <= 0:
		return errors.New("it has no id, or does not end")
	}
	return nil
}

// request has the token made.
func (p *provider) request(ctx context.Context, r broker.MintRequest, a account) (*token, error) {
	life := (min(r.Expires.Sub(p.deps.Now()), p.cfg.MaxLifetime.Duration) - margin).Truncate(time.Second)
	if life < floor {
		return nil, broker.Fail(broker.Unavailable, fmt.Errorf("%s are left, and no API server makes tokens for less than %s", life, floor), "no time was left to ask the upstream")
	}
	spec := map[string]any{
		"expirationSeconds": int64(life / time.Second),
		"boundObjectRef":    map[string]any{"apiVersion": "v1", "kind": "Secret", "name": a.secret, "uid": a.secretUID},
		"audiences":         append([]string{}, p.cfg.Audiences...),
	}
	var answer struct {
		Status struct {
			Token   string    `json:"token"`
			Expires time.Time `json:"expirationTimestamp"`
		} `json:"status"`
	}
	err := p.make(ctx, core+a.namespace+"/serviceaccounts/"+a.name+"/token", map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec,
	}, &answer)
	if err != nil {
		return nil, fmt.Errorf("have a token made: %w", err)
	}
	t := &token{token: secret.New(answer.Status.Token)}
	if err := t.read(); err != nil {
		return nil, p.foreign(r, t, err)
	}
	// API servers look at the clock once for each of the two.
	if said := answer.Status.Expires.Unix(); said < t.claims.Expires-1 || said > t.claims.Expires+1 {
		t.claims.Expires = max(said, t.claims.Expires) // whichever it is
		return nil, p.foreign(r, t, errors.New("it ends at another time than the answer says"))
	}
	return t, nil
}

// read reads the claims.
func (t *token) read() error {
	parts := strings.Split(t.token.Reveal(), ".")
	if len(parts) != 3 {
		return errors.New("it is no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = strictjson.DecodeKnown(payload, &t.claims)
	}
	if err != nil {
		return errors.New("its claims cannot be read")
	}
	return nil
}
