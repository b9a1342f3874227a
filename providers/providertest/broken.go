package providertest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes/grant"
)

// Upstreams that break the contract, each in one way, around a provider that
// keeps it: what the broker must survive.

// broken is a provider with one method replaced.
type broken struct {
	broker.Provider
	mint   func(context.Context, broker.MintRequest) (*broker.Minted, error)
	revoke func(context.Context, broker.RevokeLease) (broker.Outcome, error)
}

func (b *broken) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	if b.mint == nil {
		return b.Provider.Mint(ctx, r)
	}
	return b.mint(ctx, r)
}

func (b *broken) Revoke(ctx context.Context, r broker.RevokeLease) (broker.Outcome, error) {
	if b.revoke == nil {
		return b.Provider.Revoke(ctx, r)
	}
	return b.revoke(ctx, r)
}

// answer wraps p so that its answers to Mint are changed.
func answer(p broker.Provider, change func(*broker.Minted) (*broker.Minted, error)) broker.Provider {
	return &broken{Provider: p, mint: func(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
		m, err := p.Mint(ctx, r)
		if err != nil {
			return nil, err
		}
		return change(m)
	}}
}

// Over grants everything, whatever it is asked for, and says so. The credential
// works, and has to be ended.
func Over(p broker.Provider) broker.Provider {
	return answer(p, func(m *broker.Minted) (*broker.Minted, error) {
		m.Granted = p.Describe().Schema.Everything()
		return m, nil
	})
}

// Outlives lets credentials live longer than was asked, and says so.
func Outlives(p broker.Provider, by time.Duration) broker.Provider {
	return answer(p, func(m *broker.Minted) (*broker.Minted, error) {
		m.Expires = m.Expires.Add(by)
		return m, nil
	})
}

// DiesAfter mints, and then fails: the credential works, and nobody is told of
// it.
func DiesAfter(p broker.Provider) broker.Provider {
	return answer(p, func(*broker.Minted) (*broker.Minted, error) {
		return nil, errors.New("connection reset by peer")
	})
}

// Lack is what is missing from an answer of [Garbage].
type Lack string

// What can be missing. In each case but the first a credential was made that
// works.
const (
	Answer     Lack = "answer"     // nil, and no error
	Expiry     Lack = "expiry"     // the zero time
	Evidence   Lack = "grant"      // nothing is said of what was granted
	Credential Lack = "credential" // neither token nor document
	Kind       Lack = "kind"       // the grant is of another schema
)

// Garbage answers without something that every answer has to have.
func Garbage(p broker.Provider, without Lack) broker.Provider {
	other := grant.MustSchema("another", 1, grant.Dimension{Name: "x", Type: grant.IDSet})
	return answer(p, func(m *broker.Minted) (*broker.Minted, error) {
		switch without {
		case Answer:
			return nil, nil
		case Expiry:
			m.Expires = time.Time{}
		case Evidence:
			m.Granted = p.Describe().Schema.Nothing()
		case Credential:
			m.Token, m.Document = broker.Minted{}.Token, broker.Minted{}.Document
		case Kind:
			m.Granted = other.Everything()
		}
		return m, nil
	})
}

// Slow does nothing until a channel is closed. It gives up, having done nothing,
// when its time is over.
func Slow(p broker.Provider, until <-chan struct{}) broker.Provider {
	return &broken{Provider: p, mint: func(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
		select {
		case <-until:
			return p.Mint(ctx, r)
		case <-ctx.Done():
			return nil, fmt.Errorf("slow upstream: %w", ctx.Err())
		}
	}}
}

// Late mints at once, and answers when a channel is closed, whether or not there
// is time left: it does not know of deadlines.
func Late(p broker.Provider, until <-chan struct{}) broker.Provider {
	return &broken{Provider: p, mint: func(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
		m, err := p.Mint(context.WithoutCancel(ctx), r)
		<-until
		return m, err
	}}
}

// LateMint mints when a channel is closed, whether or not there is time left: by
// then the lease may have been revoked.
func LateMint(p broker.Provider, until <-chan struct{}) broker.Provider {
	return &broken{Provider: p, mint: func(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
		<-until
		return p.Mint(context.WithoutCancel(ctx), r)
	}}
}

// Stubborn fails the first n revocations, having done nothing.
func Stubborn(p broker.Provider, n int) broker.Provider {
	var count atomic.Int64
	return &broken{Provider: p, revoke: func(ctx context.Context, r broker.RevokeLease) (broker.Outcome, error) {
		if count.Add(1) <= int64(n) {
			return broker.Outcome{}, errors.New("upstream answers 503")
		}
		return p.Revoke(ctx, r)
	}}
}

// Lingering says of the first n revocations that sessions are still being ended.
func Lingering(p broker.Provider, n int) broker.Provider {
	var count atomic.Int64
	return &broken{Provider: p, revoke: func(ctx context.Context, r broker.RevokeLease) (broker.Outcome, error) {
		if count.Add(1) <= int64(n) {
			return broker.Outcome{State: broker.DisabledPendingKill}, nil
		}
		return p.Revoke(ctx, r)
	}}
}

// Irrevocable cannot take anything back: every revocation says until when the
// credential lives.
func Irrevocable(p broker.Provider) broker.Provider {
	return &broken{Provider: p, revoke: func(_ context.Context, r broker.RevokeLease) (broker.Outcome, error) {
		return broker.Outcome{State: broker.NotRevocableUntil, Until: r.Expires}, nil
	}}
}
