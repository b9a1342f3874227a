package api_test

import (
	"context"
	"sync"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/providers/providertest"
)

// documents is an upstream whose credentials are documents, as a database's are.
type documents struct{ *providertest.Fake }

// Describe implements [broker.Provider].
func (d documents) Describe() broker.Description {
	out := d.Fake.Describe()
	out.TokenType = "N_A"
	return out
}

// Mint implements [broker.Provider].
func (d documents) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	m, err := d.Fake.Mint(ctx, r)
	if err != nil {
		return nil, err
	}
	m.Document, m.Token = secret.New(`{"user":"u","password":"`+m.Token.Reveal()+`"}`), secret.String{}
	return m, nil
}

// troubled is an upstream that does something else first when it is asked.
type troubled struct {
	*providertest.Fake
	mu     sync.Mutex
	before func()
	fail   error // of Resolve
}

func (u *troubled) set(before func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.before = before
}

// Resolve implements [broker.Provider].
func (u *troubled) Resolve(ctx context.Context, r broker.ResolveRequest) (*broker.Resolved, error) {
	u.mu.Lock()
	before, fail := u.before, u.fail
	u.mu.Unlock()
	if before != nil {
		before()
	}
	if fail != nil {
		return nil, fail
	}
	return u.Fake.Resolve(ctx, r)
}
