package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
)

// call is a request to the API server.
type call struct {
	method, path string
	query        url.Values
	body         any
	// into is what the answer is read into; nil: it does not matter.
	into any
	// as is whose token is used; empty: the broker's own.
	as secret.String
	// header are further headers.
	header http.Header
}

// refusal is what the API server says when it says no: the status and the reason of a
// metav1.Status. Its message is for nobody.
type refusal struct {
	doing  string
	status int
	reason string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%s: the API server says %d %s", r.doing, r.status, r.reason)
}

// isReason reports whether an error is a refusal for a reason.
func isReason(err error, reason string) bool {
	var r *refusal
	return errors.As(err, &r) && r.reason == reason
}

// The reasons that something follows from.
const (
	notFound      = "NotFound"
	alreadyExists = "AlreadyExists"
	conflict      = "Conflict"
	forbidden     = "Forbidden"
)

// reasons are those that may be repeated in errors: the others are no words of ours.
var reasons = map[string]bool{
	notFound: true, alreadyExists: true, conflict: true, forbidden: true, "Invalid": true, "BadRequest": true,
	"Unauthorized": true, "MethodNotAllowed": true, "Gone": true, "Expired": true, "RequestEntityTooLarge": true,
}

// ask asks the API server once. Errors: Limited, Unavailable, and refusals.
func (p *provider) ask(ctx context.Context, c call) error {
	client, err := p.connected(ctx)
	if err != nil {
		return err
	}
	r := upstream.Request{Method: c.method, URL: p.cfg.Server + c.path, Header: c.header, Bearer: c.as, JSON: c.body}
	if c.query != nil {
		r.URL += "?" + c.query.Encode()
	}
	if r.Bearer.Empty() {
		if r.Bearer, err = p.deps.Secret(ctx, p.cfg.Token); err != nil {
			return broker.Fail(broker.Unavailable, fmt.Errorf("token: %w", err), "the upstream cannot be asked")
		}
	}
	a, err := client.Do(ctx, r)
	if err != nil {
		return err
	}
	if a.Status >= http.StatusOK && a.Status < http.StatusMultipleChoices {
		if c.into == nil {
			return nil
		}
		return a.JSON(c.into)
	}
	var status struct {
		Reason string `json:"reason"`
	}
	if a.JSON(&status) != nil || !reasons[status.Reason] {
		status.Reason = http.StatusText(a.Status)
	}
	no := &refusal{c.method + " " + c.path, a.Status, status.Reason}
	if a.Status == http.StatusUnauthorized && c.as.Empty() {
		return broker.Fail(broker.Unavailable, no, "the upstream does not take us for who we are")
	}
	return no
}

// connected returns the client, which is made with the first use.
func (p *provider) connected(ctx context.Context) (*upstream.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil {
		return p.client, nil
	}
	var roots []byte
	if p.cfg.CA != "" {
		ca, err := p.deps.Secret(ctx, p.cfg.CA)
		if err != nil {
			return nil, broker.Fail(broker.Unavailable, fmt.Errorf("ca: %w", err), "the upstream cannot be asked")
		}
		roots = []byte(ca.Reveal())
	}
	u, err := url.Parse(p.cfg.Server)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	h, err := p.deps.HTTP([]string{u.Hostname()}, roots)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	p.client = upstream.NewClient("Kubernetes", h)
	return p.client, nil
}

// meta is what is read of an object.
type meta struct {
	Metadata struct {
		Name        string            `json:"name"`
		UID         string            `json:"uid"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
}

const (
	core = "/api/v1/namespaces/"
	rbac = "/apis/rbac.authorization.k8s.io/v1/"
)

// get reads an object of ours; nil if there is none, or it is not ours.
func (p *provider) get(ctx context.Context, path, lease string) (*meta, error) {
	var m meta
	err := p.ask(ctx, call{method: http.MethodGet, path: path, into: &m})
	switch {
	case isReason(err, notFound):
		return nil, nil
	case err != nil:
		return nil, err
	case m.Metadata.Labels[labelProvider] != p.name || m.Metadata.Labels[labelLease] != lease:
		return nil, nil
	}
	return &m, nil
}

// remove deletes an object; that there is none is no error. With a uid, another of the
// same name is left alone.
func (p *provider) remove(ctx context.Context, path, uid string) error {
	options := map[string]any{"apiVersion": "v1", "kind": "DeleteOptions"}
	if uid != "" {
		options["preconditions"] = map[string]any{"uid": uid}
	}
	err := p.ask(ctx, call{method: http.MethodDelete, path: path, body: options})
	if isReason(err, notFound) || uid != "" && isReason(err, conflict) {
		return nil
	}
	return err
}
