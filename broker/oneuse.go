package broker

import (
	"context"
	"fmt"
)

// Tokens for one use. Each is used once, by whoever comes first: by introspection
// with consume, as a resource does that does the work itself, or by an exchange,
// as one does that needs something else for it.

// forOneUse reports whether a token is of that kind; t may be nil.
func (t *Token) forOneUse() bool { return t != nil && t.Ours && t.Stint.Once }

// usePurpose is what the store knows the ids of such tokens for.
const usePurpose = "token"

// used reports whether a token is for one use and has been used.
func (b *Broker) used(ctx context.Context, t *Token) (bool, error) {
	if !t.forOneUse() {
		return false, nil
	}
	if b.forgotten(t) {
		return true, nil
	}
	used, err := b.once.Used(ctx, usePurpose, t.ID)
	if err != nil {
		return false, unavailable(fmt.Errorf("look whether a token was used: %w", err))
	}
	return used, nil
}

// forgotten reports whether the store may have forgotten that a token was used: it
// lost data since the token was made. Then it counts as used.
func (b *Broker) forgotten(t *Token) bool {
	pos, err := ParsePosition(t.Stint.Pos)
	return err != nil || pos.Seq < b.index.Loss().Pos.Seq
}

// useUp uses a token for one use, and reports whether that was the first.
func (b *Broker) useUp(ctx context.Context, t *Token) (first bool, err error) {
	if b.forgotten(t) {
		return false, nil
	}
	if first, err = b.once.Use(ctx, usePurpose, t.ID, t.Expires.Add(b.cfg.Skew)); err != nil {
		return false, unavailable(fmt.Errorf("use up token: %w", err))
	}
	return first, nil
}

// unused refuses a token that was used before in its place in the order of
// refusals. Whether it is still unused when it counts, [exchange.useUp] says.
func (x *exchange) unused(ctx context.Context, which string, t *Token) error {
	used, err := x.b.used(ctx, t)
	if err != nil {
		return err
	}
	if used {
		return refused(which, "it is for one use, and was used before")
	}
	return nil
}

// useUp uses up what the request is made with. It is the last that refuses: a request
// that is refused for another reason uses nothing up.
func (x *exchange) useUp(ctx context.Context) error {
	for _, u := range []struct {
		which string
		token *Token
	}{{"subject token", x.subject}, {"actor token", x.actor}} {
		if !u.token.forOneUse() {
			continue
		}
		first, err := x.b.useUp(ctx, u.token)
		if err != nil {
			return err
		}
		if !first {
			return refused(u.which, "it is for one use, and was used before")
		}
	}
	return nil
}
