// Package s3 vends access to object stores that speak S3 and are not AWS: MinIO, Ceph and
// their like. What it vends depends on what the store can do.
//
// Stores with a Security Token Service at the same address (sts: minio, or aws for those
// that take a role) give temporary keys, narrowed by a session policy: class exact.
//
//	endpoint: https://store.example:9000
//	sts: minio
//	access_key: vault:stint/store#access_key
//	secret_key: vault:stint/store#secret_key
//
// Of a store without one (sts: none) nothing but presigned URLs is vended: one object,
// one method, until a time, at most seven days: class object. They are made here, by keys
// that never leave.
//
// A grant has one dimension, objects: get, put, delete and list, at "bucket/key", or below
// "bucket/prefix/"; "bucket/" is all of a bucket. The user whose keys these are is the
// limit of all that can be vended; the store knows nothing of the subject.
//
// Neither can be revoked. MinIO can end all sessions of a user, which are those of other
// leases, too: that is not done. Both end by themselves.
package s3

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/sts"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

var schema = grant.MustSchema("s3", 1, grant.Dimension{
	Name: "objects", Type: grant.ActionSet, Values: []string{"get", "put", "delete", "list"}, Reads: []string{"get", "list"},
	About: "Objects: what may be done at bucket/key, or below bucket/prefix/. list is of keys that begin so.",
})

type provider struct {
	name  string
	cfg   Config
	deps  upstream.Deps
	about broker.Description

	mu    sync.Mutex
	store *sts.Service // made with the first use
}

var _ broker.Provider = (*provider)(nil)

// Describe is what all providers of this kind say of themselves, of stores that give
// temporary keys.
func Describe() broker.Description {
	return broker.Description{
		Kind: "s3", About: "temporary keys of an S3-compatible store, narrowed by a session policy; or presigned URLs, of one that has none",
		Class: broker.Exact, Modes: []broker.Mode{broker.Vend}, Schema: schema, Scheme: "s3", Details: "s3", TokenType: "N_A",
		MinLifetime: minSession, MaxLifetime: sts.MaxLife, Settable: true, Revokes: "none", Evidence: broker.Attested,
		Identity: []string{"the store's log names the user whose keys are configured; with sts: aws the session is named after the lease"},
		Reads:    "s3-reads-1",
	}
}

// Open makes a provider of its settings. It asks the store for nothing.
func Open(_ context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
	p := &provider{name: name, deps: d, about: Describe()}
	if err := decode(&p.cfg); err != nil {
		return nil, err
	}
	if err := p.cfg.Check(); err != nil {
		return nil, err
	}
	p.about.MaxLifetime, p.about.Check, p.about.Ready = p.cfg.MaxLifetime.Duration, p.check, p.ready
	p.about.Claims = p.claims
	switch p.cfg.STS {
	case "aws":
		p.about.Evidence = broker.Asserted
	case "none":
		p.about.Class, p.about.Evidence, p.about.MinLifetime = broker.Object, broker.Asserted, minURL
		p.about.Identity = []string{"the store's log names the user whose keys are configured"}
	}
	return p, nil
}

// Describe implements [broker.Provider].
func (p *provider) Describe() broker.Description { return p.about }

// service returns the client of the store.
func (p *provider) service(ctx context.Context) (*sts.Service, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.store != nil {
		return p.store, nil
	}
	u, err := url.Parse(p.cfg.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	var roots []byte
	if p.cfg.CA != "" {
		pem, err := p.deps.Secret(ctx, p.cfg.CA)
		if err != nil {
			return nil, fmt.Errorf("certificates: %w", err)
		}
		roots = []byte(pem.Reveal())
	}
	h, err := p.deps.HTTP([]string{u.Hostname()}, roots)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", u.Hostname(), err)
	}
	p.store = &sts.Service{Endpoint: p.cfg.Endpoint, Region: p.cfg.Region, Client: upstream.NewClient("s3", h), Now: p.deps.Now}
	return p.store, nil
}

func (p *provider) keys(ctx context.Context) (k sts.Keys, err error) {
	id, err := p.deps.Secret(ctx, p.cfg.AccessKey)
	if err != nil {
		return k, fmt.Errorf("access_key: %w", err)
	}
	key, err := p.deps.Secret(ctx, p.cfg.SecretKey)
	if err != nil {
		return k, fmt.Errorf("secret_key: %w", err)
	}
	return sts.Keys{ID: trimmed(id), Secret: secret.New(trimmed(key))}, nil
}

// ready looks whether there are keys. The store is not asked: whatever it could be asked
// without side effects, these keys need not be allowed.
func (p *provider) ready(ctx context.Context) error {
	if _, err := p.service(ctx); err != nil {
		return err
	}
	_, err := p.keys(ctx)
	return err
}

const (
	minSession = sts.MinLife + 10*time.Second
	minURL     = 5 * time.Second
	maxURL     = 7 * 24 * time.Hour
	// margin is how much shorter than asked a session is: it begins when the store is
	// reached.
	margin = 2 * time.Second
)
