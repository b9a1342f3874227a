package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
)

// This file holds tokens that are bound to a certificate to it (RFC 8705 section 3).

type connectionKey struct{}

// WithConnection puts the connection that a token came by into a context, for
// [Client.Verify]: the TLS of the request. It has to be the caller's own: where a proxy
// ends TLS, nobody has proven a certificate's key here, whatever a header says.
func WithConnection(ctx context.Context, state *tls.ConnectionState) context.Context {
	return context.WithValue(ctx, connectionKey{}, state)
}

func connection(ctx context.Context) *tls.ConnectionState {
	state, _ := ctx.Value(connectionKey{}).(*tls.ConnectionState)
	return state
}

// shownBy reports whether a token may be shown over a connection; nil: none is known.
func (t *Token) shownBy(state *tls.ConnectionState) bool {
	if t.Certificate == "" {
		return true
	}
	if state == nil || len(state.PeerCertificates) == 0 {
		return false
	}
	sum := sha256.Sum256(state.PeerCertificates[0].Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:]) == t.Certificate
}

// confirmed reads cnf (RFC 7800): a token that is bound to anything but a certificate is
// none that is understood here.
func confirmed(raw json.RawMessage) (certificate string, err error) {
	if raw == nil {
		return "", nil
	}
	var all map[string]json.RawMessage
	if json.Unmarshal(raw, &all) != nil || len(all) != 1 || json.Unmarshal(all["x5t#S256"], &certificate) != nil || certificate == "" {
		return "", errors.New("it is bound to something else than a certificate")
	}
	return certificate, nil
}
