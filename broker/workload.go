package broker

import (
	"context"
	"slices"
	"time"
)

// This file authenticates clients by what a platform gave them: a certificate, the
// token of a service account, an SVID.

// maxSVIDLife is how long a JWT-SVID may be valid, from now. It is used more than once,
// as its makers cache it, so that its life is all that bounds who has found it.
const maxSVIDLife = time.Hour

// spiffeClient finds a client by its id or by its SPIFFE ID (draft-ietf-oauth-spiffe-
// client-auth: the client_id is the SPIFFE ID).
func (r *Registry) spiffeClient(method, id string) *Client {
	if c := r.Clients[id]; c != nil {
		return c
	}
	return r.Clients[r.workloads[[2]string{method, id}]]
}

// authenticateCertificate checks a certificate: RFC 8705 section 2.
func (b *Broker) authenticateCertificate(ctx context.Context, c Credentials) (*Client, error) {
	client := b.reg.spiffeClient(methodSPIFFEX509, c.ID)
	switch {
	case client == nil || !client.Auth.byCertificate():
		return nil, badClient("no client %s that authenticates by a certificate", b.reg.clientNamed(c.ID))
	case b.reg.clientOff(client):
		return nil, badClient("client %s is disabled", client.ID)
	case len(c.Chain) == 0:
		return nil, badClient("client %s: no certificate", client.ID)
	}
	if err := b.tokens.Certificate(ctx, client.ID, c.Chain); err != nil {
		if CodeOf(err) == Unavailable {
			return nil, err
		}
		return nil, badClient("client %s: certificate: %w", client.ID, err)
	}
	if client.Auth.Method == methodSelfSigned { // it is the very one (RFC 8705 section 2.2)
		return client, nil
	}
	if err := client.Auth.names(c.Chain[0]); err != nil {
		return nil, badClient("client %s: certificate: %w", client.ID, err)
	}
	return client, nil
}

// authenticateWorkload checks the token of a service account: an assertion that the
// client did not make itself (RFC 7523 section 3). Its cluster gives it to the workload
// for as long as it lives, so that a jti in it does not make it good for one use.
func (b *Broker) authenticateWorkload(ctx context.Context, c Credentials) (*Client, error) {
	t, err := b.tokens.Verify(ctx, c.Assertion)
	if err != nil {
		return nil, b.badAssertion(c.ID, err)
	}
	client := b.reg.Clients[b.reg.workloads[[2]string{t.Issuer, t.Subject}]]
	i := b.reg.Issuers[t.Issuer]
	switch {
	case t.Ours || client == nil || client.Auth.Method != methodKubernetes || c.ID != "" && c.ID != client.ID:
		return nil, badClient("client %s: no client is %s of issuer %s", b.reg.clientNamed(c.ID), printable(t.Subject), printable(t.Issuer))
	case b.reg.clientOff(client):
		return nil, badClient("client %s is disabled", client.ID)
	case i == nil || b.reg.issuerOff(i) || !slices.Contains(i.Accept, asAssertion):
		return nil, badClient("client %s: issuer %s is disabled, or its tokens are no assertions", client.ID, t.Issuer)
	case len(t.Audience) != 1 || t.Audience[0] != b.reg.Self:
		return nil, badClient("client %s: assertion for %q, not for %s alone", client.ID, t.Audience, b.reg.Self)
	case b.now().Sub(t.IssuedAt) > i.MaxSubjectAge.Duration:
		return nil, badClient("client %s: assertion issued %s ago, more than max_subject_age", client.ID, b.now().Sub(t.IssuedAt).Round(time.Second))
	}
	return client, nil
}

// authenticateSVID checks a JWT-SVID (SPIFFE JWT-SVID section 3).
func (b *Broker) authenticateSVID(ctx context.Context, c Credentials) (*Client, error) {
	named := b.reg.spiffeClient(methodSPIFFEJWT, c.ID)
	if c.ID != "" && (named == nil || named.Auth.Method != methodSPIFFEJWT) {
		return nil, badClient("no client %s that authenticates by %s", b.reg.clientNamed(c.ID), c.Method)
	}
	id := ""
	if named != nil {
		id = named.Auth.SPIFFEID
	}
	t, err := b.tokens.Assertion(ctx, id, c.Assertion) // keys are filed under the SPIFFE ID
	if err != nil {
		return nil, b.badAssertion(c.ID, err)
	}
	client := b.reg.Clients[b.reg.workloads[[2]string{methodSPIFFEJWT, t.Subject}]]
	switch {
	case client == nil || named != nil && named != client:
		return nil, badClient("client %s: no client is %s", b.reg.clientNamed(c.ID), printable(t.Subject))
	case b.reg.clientOff(client):
		return nil, badClient("client %s is disabled", client.ID)
	case len(t.Audience) != 1 || t.Audience[0] != b.reg.Self:
		return nil, badClient("client %s: SVID for %q, not for %s alone", client.ID, t.Audience, b.reg.Self)
	case t.Type != "" && t.Type != "JWT" && t.Type != "JOSE":
		return nil, badClient("client %s: SVID of type %q", client.ID, printable(t.Type))
	case t.Expires.After(b.now().Add(maxSVIDLife)):
		return nil, badClient("client %s: SVID valid for more than %s", client.ID, maxSVIDLife)
	}
	return client, nil
}
