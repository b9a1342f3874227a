package upstream

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// ParentStore keeps fields under a path, by compare-and-set: a version of 0 says that
// there are none. Errors: ErrNotFound, ErrConflict, Unavailable.
type ParentStore interface {
	Read(ctx context.Context, path string) (map[string]secret.String, int, error)
	Write(ctx context.Context, path string, fields map[string]secret.String, version int) (int, error)
}

// ParentConfig is what Parents stand on.
type ParentConfig struct {
	Store ParentStore
	// Sealer binds what is kept to its provider and subject: a copy under another name
	// cannot be opened.
	Sealer func(ctx context.Context) (broker.Sealer, error)
	// Index returns a keyed index of a subject: letters and digits that tell nothing.
	Index func(ctx context.Context, subject string) (string, error)
	Now   func() time.Time
}

// Parents keeps the secrets that credentials are made from, such as a user's refresh
// token, sealed in the store of secrets, and has them renewed by one replica at a time.
//
// Many upstreams replace a refresh token each time it is used, and take the use of an
// old one for theft. So whoever renews writes down first that he does; the store's
// compare-and-set is the lock, and a lock that is older than any request is broken.
// Whoever comes second uses what the first one wrote.
type Parents struct{ cfg ParentConfig }

// NewParents returns the parents that a store keeps.
func NewParents(cfg ParentConfig) *Parents { return &Parents{cfg} }

// ParentKey names a parent. Subject is ISSUER#SUB; empty for what is the provider's own.
type ParentKey struct{ Provider, Subject string }

// Parent is a secret that credentials are made from.
type Parent struct {
	Account broker.Account
	// Refresh is the refresh token, and Access an access token that came with it, good
	// until AccessExpires.
	Refresh, Access secret.String
	AccessExpires   time.Time
	// Facts are what the provider has to know besides: nothing secret.
	Facts map[string]string
	// Renewed is when it was last renewed.
	Renewed time.Time
}

// ErrDead is what renewing returns, wrapped, where the upstream says that the parent is
// no good any more.
var ErrDead = errors.New("the upstream does not accept what was linked")

const (
	// renewFor is how long one who renews is left alone: as long as he has to ask, and to
	// keep what came of it.
	renewFor, askFor = 30 * time.Second, 12 * time.Second
	// again is how often one looks who waits for another.
	again = 50 * time.Millisecond
	// keepTries is how often it is tried to write down what has been renewed.
	keepTries = 8
)

// kept is a parent as it is sealed.
type kept struct {
	Version int               `json:"v"`
	Account broker.Account    `json:"account"`
	Refresh string            `json:"refresh,omitempty"`
	Access  string            `json:"access,omitempty"`
	Expires time.Time         `json:"access_expires,omitzero"`
	Facts   map[string]string `json:"facts,omitempty"`
	Renewed time.Time         `json:"renewed"`
	// Renewing is until when somebody is at it; zero: nobody is.
	Renewing time.Time `json:"renewing,omitzero"`
	// Gone says that it was forgotten.
	Gone bool `json:"gone,omitzero"`
}

const keptVersion = 1

func (p *Parents) path(ctx context.Context, k ParentKey) (string, error) {
	index := "own"
	if k.Subject != "" {
		var err error
		if index, err = p.cfg.Index(ctx, k.Provider+"\x00"+k.Subject); err != nil {
			return "", err
		}
	}
	return "parents/" + k.Provider + "/" + index, nil
}

func (k ParentKey) context() string { return "parent of " + k.Subject + " at " + k.Provider }

func (p *Parents) read(ctx context.Context, k ParentKey) (*kept, int, error) {
	path, err := p.path(ctx, k)
	if err != nil {
		return nil, 0, err
	}
	fields, version, err := p.cfg.Store.Read(ctx, path)
	if err != nil {
		return nil, version, err
	}
	sealer, err := p.cfg.Sealer(ctx)
	if err != nil {
		return nil, version, err
	}
	sealed, err := base64.StdEncoding.DecodeString(fields["document"].Reveal())
	if err != nil {
		return nil, version, fmt.Errorf("what is kept at %s is none of ours: %w", path, err)
	}
	doc, err := sealer.Open(sealed, k.context())
	if err != nil {
		return nil, version, fmt.Errorf("open what is kept at %s: %w", path, err)
	}
	var in kept
	if err := strictjson.DecodeKnown(doc, &in); err != nil {
		return nil, version, fmt.Errorf("read what is kept at %s: %w", path, err)
	}
	if in.Version > keptVersion {
		return nil, version, fmt.Errorf("%s: %w", path, broker.ErrLater)
	}
	return &in, version, nil
}

func (p *Parents) write(ctx context.Context, k ParentKey, in *kept, version int) (int, error) {
	path, err := p.path(ctx, k)
	if err != nil {
		return 0, err
	}
	in.Version = keptVersion
	doc, err := json.Marshal(in)
	if err != nil {
		return 0, fmt.Errorf("encode a parent: %w", err)
	}
	sealer, err := p.cfg.Sealer(ctx)
	if err != nil {
		return 0, err
	}
	sealed, err := sealer.Seal(doc, k.context())
	if err != nil {
		return 0, err
	}
	return p.cfg.Store.Write(ctx, path, map[string]secret.String{
		"document": secret.New(base64.StdEncoding.EncodeToString(sealed)),
	}, version)
}

func (in *kept) parent() *Parent {
	return &Parent{
		Account: in.Account, Refresh: secret.New(in.Refresh), Access: secret.New(in.Access),
		AccessExpires: in.Expires, Facts: in.Facts, Renewed: in.Renewed,
	}
}

func (p *Parent) keep() *kept {
	return &kept{
		Account: p.Account, Refresh: p.Refresh.Reveal(), Access: p.Access.Reveal(),
		Expires: p.AccessExpires, Facts: p.Facts, Renewed: p.Renewed,
	}
}

// Get returns a parent as it was last kept. Errors: ErrNotFound, Unavailable.
func (p *Parents) Get(ctx context.Context, k ParentKey) (*Parent, error) {
	in, _, err := p.read(ctx, k)
	switch {
	case err != nil:
		return nil, fmt.Errorf("look for what was linked: %w", err)
	case in.Gone:
		return nil, fmt.Errorf("what was linked was forgotten: %w", broker.ErrNotFound)
	}
	return in.parent(), nil
}

// Put keeps a parent in place of whatever was there, and returns that; nil if there was
// nothing.
func (p *Parents) Put(ctx context.Context, k ParentKey, parent *Parent) (was *Parent, err error) {
	for {
		in, version, err := p.read(ctx, k)
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			return nil, fmt.Errorf("look for what was linked: %w", err)
		}
		parent.Renewed = p.cfg.Now()
		switch _, err := p.write(ctx, k, parent.keep(), version); {
		case errors.Is(err, broker.ErrConflict) && ctx.Err() == nil:
			continue
		case err != nil:
			return nil, fmt.Errorf("keep what was linked: %w", err)
		case in == nil || in.Gone:
			return nil, nil
		}
		return in.parent(), nil
	}
}

// Begin keeps a parent if there is none, or stale says of the one that is there that it is
// of another beginning. Of several who begin with the same at once, one does, and what has
// become of it meanwhile stays. Without stale, what is there stays.
func (p *Parents) Begin(ctx context.Context, k ParentKey, parent *Parent, stale func(kept *Parent) bool) error {
	for {
		in, version, err := p.read(ctx, k)
		switch {
		case errors.Is(err, broker.ErrNotFound):
		case err != nil:
			return fmt.Errorf("look for what was linked: %w", err)
		case !in.Gone && (stale == nil || !stale(in.parent())):
			return nil
		}
		parent.Renewed = p.cfg.Now()
		switch _, err := p.write(ctx, k, parent.keep(), version); {
		case err == nil:
			return nil
		case !errors.Is(err, broker.ErrConflict) || ctx.Err() != nil:
			return fmt.Errorf("keep what was linked: %w", err)
		}
	}
}

// Forget removes a parent for good, and returns what it was, so that it can be revoked.
// ErrNotFound if there is none.
func (p *Parents) Forget(ctx context.Context, k ParentKey) (*Parent, error) {
	for {
		in, version, err := p.read(ctx, k)
		switch {
		case err != nil:
			return nil, fmt.Errorf("look for what was linked: %w", err)
		case in.Gone:
			return nil, fmt.Errorf("forgotten already: %w", broker.ErrNotFound)
		}
		// A store may not be allowed to delete: what is left says no more than that.
		switch _, err := p.write(ctx, k, &kept{Gone: true, Renewed: p.cfg.Now()}, version); {
		case errors.Is(err, broker.ErrConflict) && ctx.Err() == nil:
			continue
		case err != nil:
			return nil, fmt.Errorf("forget what was linked: %w", err)
		}
		return in.parent(), nil
	}
}

// Fresh returns a parent whose access token is good until some time, renewing it if it
// is not. renew asks the upstream, once, and returns what takes the parent's place; or an
// error that wraps ErrDead, after which the account has to be linked again; or
// ErrUncertain. Errors: ErrNotFound; ErrDead; Unavailable.
func (p *Parents) Fresh(ctx context.Context, k ParentKey, until time.Time, renew func(ctx context.Context, old *Parent) (*Parent, error)) (*Parent, error) {
	for {
		in, version, err := p.read(ctx, k)
		now := p.cfg.Now()
		switch {
		case err != nil:
			return nil, fmt.Errorf("look for what was linked: %w", err)
		case in.Gone:
			return nil, fmt.Errorf("what was linked was forgotten: %w", broker.ErrNotFound)
		case in.Account.Broken != "":
			return nil, fmt.Errorf("%s: %w", in.Account.Broken, ErrDead)
		case in.Access != "" && !in.Expires.Before(until):
			return in.parent(), nil
		case now.Before(in.Renewing): // another is at it
			select {
			case <-ctx.Done():
				return nil, broker.Fail(broker.Unavailable, ctx.Err(), "the upstream does not answer")
			case <-time.After(again):
			}
			continue
		}
		next := *in
		next.Renewing = now.Add(renewFor)
		switch version, err = p.write(ctx, k, &next, version); {
		case errors.Is(err, broker.ErrConflict):
			continue
		case err != nil:
			return nil, fmt.Errorf("note that it is renewed: %w", err)
		}
		fresh, err := p.renewed(ctx, k, in, version, renew)
		if errors.Is(err, broker.ErrConflict) {
			continue // it was linked anew meanwhile, or forgotten
		}
		return fresh, err
	}
}

// renewed asks the upstream and writes down what came of it, whoever has gone meanwhile.
func (p *Parents) renewed(ctx context.Context, k ParentKey, in *kept, version int, renew func(context.Context, *Parent) (*Parent, error)) (*Parent, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewFor-time.Second)
	defer cancel()
	asking, stop := context.WithTimeout(ctx, askFor)
	fresh, err := renew(asking, in.parent())
	stop()
	if err == nil && fresh == nil {
		err = errors.New("renewed to nothing")
	}
	next := *in
	next.Renewing = time.Time{}
	switch {
	case errors.Is(err, ErrDead):
		next.Account.Broken = "the upstream refuses to renew it"
	case errors.Is(err, ErrUncertain):
		// The upstream may have replaced it, and the answer is lost: the next one tries
		// what there is, when no answer can be under way any more.
		return nil, err
	case err == nil:
		fresh.Renewed = p.cfg.Now()
		next = *fresh.keep()
	}
	for try := 0; ; try++ {
		_, failure := p.write(ctx, k, &next, version)
		switch {
		case failure == nil:
			return fresh, err
		case errors.Is(failure, broker.ErrConflict):
			return nil, failure
		case try == keepTries || ctx.Err() != nil:
			return nil, errors.Join(err, fmt.Errorf("keep what was renewed: %w", failure))
		}
		select {
		case <-ctx.Done():
		case <-time.After(again << try):
		}
	}
}
