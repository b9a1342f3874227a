package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// minting is what came of a call upstream.
type minting struct {
	minted *Minted
	err    error
}

// mint calls the provider, within the time for it. An answer that comes later is
// not lost: what it brings is ended.
func (x *exchange) mint(ctx context.Context, p Provider, l *Lease) (*Minted, error) {
	b := x.b
	ctx, end := b.span(ctx, "provider.mint")
	bounded, cancel := context.WithTimeout(ctx, b.cfg.MintTimeout)
	n, noted := x.verdict.Narrowed, &notedIntent{lease: *l}
	req := MintRequest{
		Lease: l.ID, Grant: n.Grant, Rendered: n.Rendered, Expires: x.expires,
		Subject: x.lineage.Subject, Pseudonym: l.Subject, Actor: x.agent, Client: x.r.Client.ID,
		Note: func(handle []byte) error { return b.noteHandle(context.WithoutCancel(ctx), noted, handle) },
	}
	if p.Describe().Assertion {
		req.Assertion = x.r.SubjectToken
	}
	answer := make(chan minting, 1)
	go func() {
		m, err := safely(func() (*Minted, error) { return p.Mint(bounded, req) })
		answer <- minting{m, err}
		cancel() // not before: the answer counts, however close it was
	}()
	var a minting
	select {
	case a = <-answer:
	case <-bounded.Done():
		if len(answer) == 0 {
			late := *l
			go func() {
				if a := <-answer; a.minted != nil {
					b.abandon(context.WithoutCancel(ctx), late, a.minted.Handle)
				}
			}()
			end(bounded.Err())
			return nil, unavailable(fmt.Errorf("upstream %s did not answer in time: %w", l.Provider, bounded.Err()))
		}
		a = <-answer
	}
	*l = noted.latest()
	end(a.err)
	return x.minted(a)
}

// safely calls a provider. One that panics has failed, and the process lives on: what
// it may have done upstream is ended like everything whose answer is lost. What it
// panicked with may hold a secret, and is not repeated.
func safely[T any](call func() (T, error)) (out T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the provider panicked with a %T", p)
		}
	}()
	return call()
}

// minted checks that a provider's answer is one. Of an error the code is kept;
// an upstream's own text never reaches the caller.
func (x *exchange) minted(a minting) (*Minted, error) {
	switch {
	case a.err == nil && a.minted == nil:
		return nil, unavailable(errors.New("mint: the provider answered with nothing"))
	case a.err == nil:
		return a.minted, nil
	}
	if e := AsError(a.err); e.Code != Internal {
		return nil, e
	}
	return nil, unavailable(fmt.Errorf("mint: %w", a.err))
}

// notedIntent is the lease of an intent while its provider may note handles: from
// whatever goroutine it likes, and perhaps after we have given up waiting for it.
type notedIntent struct {
	mu    sync.Mutex
	lease Lease
}

// latest returns the lease with the handle that was noted last.
func (n *notedIntent) latest() Lease {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lease
}

// noteHandle replaces an intent's handle, durably, in the middle of minting. If the
// lease was given up meanwhile, what the handle names is ended, and the provider is
// told to stop.
func (b *Broker) noteHandle(ctx context.Context, n *notedIntent, handle []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	next := n.lease
	sealed, err := b.sealer.Seal(handle, handleContext(&next))
	if err != nil {
		return fmt.Errorf("seal handle: %w", err)
	}
	next.Handle = sealed
	frame, err := leaseFrame(&next)
	if err != nil {
		return err
	}
	if err := b.recorder.Keep(frame); err != nil {
		return unavailable(fmt.Errorf("journal handle: %w", err))
	}
	err = b.ledger.Update(ctx, &next)
	if errors.Is(err, ErrConflict) {
		b.abandon(ctx, next, handle)
	}
	if err != nil {
		return unavailable(fmt.Errorf("write handle: %w", err))
	}
	n.lease = next
	return nil
}
