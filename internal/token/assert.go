package token

import (
	"context"
	"errors"
	"maps"

	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// Assert signs claims for somebody else's eyes, such as a cloud that trusts our metadata
// (OpenID Connect Discovery): with our iss, and iat. aud, sub, exp and jti are the
// caller's to say, and aud cannot be ourselves. Its header says JWT, so that nobody takes
// it for a token of ours.
func (r *Ring) Assert(_ context.Context, self string, claims map[string]any) (secret.String, error) {
	out := maps.Clone(claims)
	for _, name := range []string{"aud", "sub", "exp", "jti"} {
		if out[name] == nil || out[name] == "" {
			return secret.String{}, errors.New("an assertion without " + name)
		}
	}
	if aud, ok := out["aud"].(string); !ok || aud == self {
		return secret.String{}, errors.New("an assertion is for one other audience")
	}
	out["iss"], out["iat"] = self, r.cfg.Now().Unix()
	payload, err := strictjson.Encode(out)
	if err != nil {
		return secret.String{}, err
	}
	k := r.state.Load().signing(r.cfg.Now())
	text, err := k.sign(k.plain, payload)
	return secret.New(text), err
}
