package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// ErrUncertain is wrapped by errors after which it is not known whether a request took
// effect.
var ErrUncertain = errors.New("it may have taken effect")

// maxAnswer is how much of an answer is read, in bytes.
const maxAnswer = 1 << 20

// Client asks one upstream. It never asks twice, follows no redirects, and reads at most
// 1 MiB of an answer.
type Client struct {
	name string
	http *http.Client
}

// NewClient returns a client that says in errors which upstream it asks.
func NewClient(name string, h *http.Client) *Client { return &Client{name, h} }

// Request is what an upstream is asked. Of Form, JSON and Body one may be set.
type Request struct {
	Method, URL string
	Header      http.Header
	// Bearer, or User with Password, go into the header Authorization.
	Bearer   secret.String
	User     string
	Password secret.String
	Form     url.Values
	JSON     any
	Body     []byte
}

// Answer is what an upstream answered.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// JSON reads the body. Members that v does not know are passed over; such as are there
// twice are an error.
func (a *Answer) JSON(v any) error {
	if err := strictjson.DecodeKnown(a.Body, v); err != nil {
		return fmt.Errorf("the answer (status %d) is not what was expected: %w", a.Status, err)
	}
	return nil
}

// Do asks, and returns whatever was answered below 500, but for 429. Errors: Limited for
// that; Unavailable if there was no answer, or one of 500 and up. They wrap ErrUncertain
// unless nothing was sent, or the method changes nothing. An upstream's text is in none
// of them.
func (c *Client) Do(ctx context.Context, r Request) (*Answer, error) {
	req, err := r.build(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.name, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failed(r, nil, bare(err))
	}
	defer func() { _ = resp.Body.Close() }()
	a := &Answer{Status: resp.StatusCode, Header: resp.Header}
	switch {
	case a.Status == http.StatusTooManyRequests:
		e := broker.Fail(broker.Limited, fmt.Errorf("%s answers 429", c.name), "the upstream asks us to wait")
		e.RetryAfter = RetryAfter(a.Header)
		return nil, e
	case a.Status >= http.StatusInternalServerError:
		return nil, c.failed(r, a.Header, fmt.Errorf("status %d", a.Status))
	}
	a.Body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(a.Body) > maxAnswer {
		err = fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	if err != nil {
		return nil, c.failed(r, nil, bare(err))
	}
	return a, nil
}

func (r *Request) build(ctx context.Context) (*http.Request, error) {
	var body io.Reader
	kind := ""
	switch {
	case r.Form != nil:
		body, kind = strings.NewReader(r.Form.Encode()), "application/x-www-form-urlencoded"
	case r.JSON != nil:
		encoded, err := strictjson.Encode(r.JSON)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body, kind = bytes.NewReader(encoded), "application/json"
	case r.Body != nil:
		body = bytes.NewReader(r.Body)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, body)
	if err != nil {
		return nil, bare(err)
	}
	for name, values := range r.Header {
		req.Header[name] = values
	}
	if kind != "" && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", kind)
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json")
	}
	req.Header.Set("User-Agent", "stint")
	switch {
	case !r.Bearer.Empty():
		req.Header.Set("Authorization", "Bearer "+r.Bearer.Reveal())
	case r.User != "":
		req.SetBasicAuth(r.User, r.Password.Reveal())
	}
	return req, nil
}

// bare takes the URL off an error, which may hold what was asked.
func bare(err error) error {
	if e := (*url.Error)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}

// failed is the error for a request that was not answered. Whether it took effect is
// certain only where nothing was sent, or nothing is changed by it.
func (c *Client) failed(r Request, h http.Header, err error) error {
	err = fmt.Errorf("ask %s: %w", c.name, err)
	dial := (*net.OpError)(nil)
	sent := !errors.As(err, &dial) || dial.Op != "dial"
	if sent && r.Method != http.MethodGet && r.Method != http.MethodHead {
		err = fmt.Errorf("%w: %w", err, ErrUncertain)
	}
	e := broker.Fail(broker.Unavailable, err, "the upstream does not answer")
	e.RetryAfter = RetryAfter(h)
	return e
}

// maxRetryAfter bounds what an upstream can have our callers wait.
const maxRetryAfter = time.Hour

// RetryAfter reads the header of that name (RFC 9110 section 10.2.3): at most an hour,
// and zero if there is none. A date is taken against the answer's own.
func RetryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	at, err := http.ParseTime(text)
	date, err2 := http.ParseTime(h.Get("Date"))
	if err != nil || err2 != nil {
		return 0
	}
	return min(max(at.Sub(date), 0), maxRetryAfter)
}
