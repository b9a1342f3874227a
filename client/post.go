package client

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	maxAnswer    = 256 << 10 // bytes
	assertionAge = time.Minute
	assertion    = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

// get reads a JSON document.
func (c *Client) get(ctx context.Context, address string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	got, err := c.send(req)
	switch {
	case err != nil:
		return err
	case got.status != http.StatusOK:
		return fmt.Errorf("%s answers %d", address, got.status)
	}
	if err := json.Unmarshal(got.body, into); err != nil {
		return fmt.Errorf("%s: %w", address, err)
	}
	return nil
}

// answer is what came of a request.
type answer struct {
	status     int
	retryAfter string
	body       []byte
}

func (c *Client) send(req *http.Request) (*answer, error) {
	resp, err := c.cfg.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(body) > maxAnswer {
		err = fmt.Errorf("%s: the answer has more than %d bytes", req.URL.Redacted(), maxAnswer)
	}
	return &answer{resp.StatusCode, resp.Header.Get("Retry-After"), body}, err
}

// post sends a form to one of Stint's endpoints as this client, and reads a good
// answer into into. While Stint says that it is not available, or cannot be
// reached, it goes on trying. A request that may have been worked on is not
// repeated.
func (c *Client) post(ctx context.Context, endpoint func(*metadata) string, form url.Values, into any) error {
	if c.cfg.ID == "" {
		return errors.New("client: Config.ID is empty: there is nobody to ask as")
	}
	end := c.cfg.Now().Add(c.cfg.Retry)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		again, err := c.attempt(ctx, endpoint, form, into)
		if err == nil || !again {
			return err
		}
		pause := wait/2 + mathrand.N(wait)
		if u := (*Unavailable)(nil); errors.As(err, &u) {
			pause = max(pause, u.RetryAfter)
		}
		if c.cfg.Now().Add(pause).After(end) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// attempt is one request. again is true if nothing came of it and another may.
func (c *Client) attempt(ctx context.Context, endpoint func(*metadata) string, form url.Values, into any) (again bool, err error) {
	meta, err := c.metadata(ctx)
	if err != nil {
		return ctx.Err() == nil, unavailable(err)
	}
	if form, err = c.authenticated(form); err != nil {
		return false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint(meta), strings.NewReader(form.Encode()))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if c.signer == nil { // RFC 6749 section 2.3.1: both are form-encoded before they are joined
		req.SetBasicAuth(url.QueryEscape(c.cfg.ID), url.QueryEscape(c.cfg.Secret.Reveal()))
	}
	got, err := c.send(req)
	if err != nil {
		op := (*net.OpError)(nil)
		return errors.As(err, &op) && op.Op == "dial" && ctx.Err() == nil, unavailable(err)
	}
	if got.status != http.StatusOK {
		err := got.refusal()
		u := (*Unavailable)(nil)
		return errors.As(err, &u), err
	}
	if into == nil {
		return false, nil
	}
	d := json.NewDecoder(bytes.NewReader(got.body))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return false, unavailable(fmt.Errorf("the answer of %s: %w", endpoint(meta), err))
	}
	return false, nil
}

func unavailable(err error) error {
	if u := (*Unavailable)(nil); errors.As(err, &u) {
		return err
	}
	return &Unavailable{Err: err}
}

// refusal is what an answer means that is not good.
func (a *answer) refusal() error {
	var p struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
		URL         string `json:"url"`
		Interaction string `json:"interaction"`
		Claims      string `json:"claims"`
	}
	_ = json.Unmarshal(a.body, &p) // what is no JSON has no error in it
	switch {
	case a.status == http.StatusTooManyRequests || a.status >= http.StatusInternalServerError:
		text := http.StatusText(a.status)
		for _, more := range []string{p.Error, p.Description} {
			if more != "" {
				text += ": " + more
			}
		}
		seconds, _ := strconv.Atoi(a.retryAfter)
		return &Unavailable{RetryAfter: time.Duration(min(max(seconds, 0), 3600)) * time.Second, Err: errors.New(text)}
	case p.Error == "interaction_required" && p.Interaction == "link":
		return &NeedsLink{URL: p.URL, Description: p.Description, Claims: p.Claims}
	case p.Error == "interaction_required":
		return &NeedsApproval{URL: p.URL, Description: p.Description}
	case p.Error == "":
		p.Error = fmt.Sprint("unexpected answer ", a.status)
	}
	return &Refused{Code: p.Error, Description: p.Description, Status: a.status}
}

// authenticated adds an assertion to a form, if this client has a key: a new one
// every time, because each is good for one request (RFC 7523 section 3).
func (c *Client) authenticated(form url.Values) (url.Values, error) {
	if c.signer == nil {
		return form, nil
	}
	text, err := c.signer.assert(c.cfg.ID, c.cfg.Issuer, c.cfg.Now())
	if err != nil {
		return nil, err
	}
	out := url.Values{"client_id": {c.cfg.ID}, "client_assertion_type": {assertion}, "client_assertion": {text}}
	for name, values := range form {
		out[name] = values
	}
	return out, nil
}

// assertionSigner signs how a client authenticates with a key.
type assertionSigner struct {
	key  crypto.Signer
	head string // encoded
	hash crypto.Hash
}

func newAssertionSigner(key crypto.Signer, id string) (*assertionSigner, error) {
	s := &assertionSigner{key: key}
	alg := ""
	switch public := key.Public().(type) {
	case ed25519.PublicKey:
		alg = "EdDSA"
	case *ecdsa.PublicKey:
		if public.Curve == elliptic.P256() {
			alg, s.hash = "ES256", crypto.SHA256
		}
	}
	if alg == "" {
		return nil, errors.New("client: Config.Key is neither an ECDSA key on P-256 nor an Ed25519 key")
	}
	h := map[string]string{"alg": alg, "typ": "JWT"}
	if id != "" {
		h["kid"] = id
	}
	head, err := json.Marshal(h)
	s.head = base64.RawURLEncoding.EncodeToString(head)
	return s, err
}

// assert makes an assertion whose audience is the issuer, alone (RFC 7523bis).
func (s *assertionSigner) assert(client, issuer string, now time.Time) (string, error) {
	payload, err := json.Marshal(map[string]any{
		"iss": client, "sub": client, "aud": issuer, "jti": rand.Text(), "iat": now.Unix(), "exp": now.Add(assertionAge).Unix(),
	})
	if err != nil {
		return "", err
	}
	signed := s.head + "." + base64.RawURLEncoding.EncodeToString(payload)
	message := []byte(signed)
	if s.hash != 0 {
		h := s.hash.New()
		h.Write(message)
		message = h.Sum(nil)
	}
	signature, err := s.key.Sign(rand.Reader, message, s.hash)
	if err != nil {
		return "", fmt.Errorf("client: sign assertion: %w", err)
	}
	if s.hash != 0 { // JWS wants r and s side by side (RFC 7518 section 3.4)
		var sig struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(signature, &sig); err != nil {
			return "", fmt.Errorf("client: sign assertion: %w", err)
		}
		signature = append(sig.R.FillBytes(make([]byte, 32)), sig.S.FillBytes(make([]byte, 32))...)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
