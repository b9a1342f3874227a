package providertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/scopes/grant"
)

// Result is what a run of the suite came to, as `make test-providers` shows it.
type Result struct {
	Kind    string       `json:"provider"`
	Variant string       `json:"variant,omitempty"`
	Class   broker.Class `json:"class"`
	// Upstream is what the provider ran against, and Oracle who was asked whether one
	// grant is within another; empty: nobody.
	Upstream string `json:"upstream"`
	Oracle   string `json:"oracle,omitempty"`
	// Pairs is how many grants were compared with the oracle's word, and Violations how
	// often ours allowed what it did not.
	Pairs      int `json:"pairs"`
	Violations int `json:"violations"`
	// Overgrants are the ways in which an upstream gave too much, and Caught those that
	// were noticed.
	Overgrants int `json:"overgrants"`
	Caught     int `json:"overgrants_caught"`
	// Outcomes are those of first revocations, with how often each was, and Latency the
	// median time from asking for one to the first refusal that was seen, in
	// milliseconds: how late the test looked is in it.
	Outcomes map[broker.OutcomeState]int `json:"revocation_outcomes"`
	Latency  float64                     `json:"revocation_latency_ms"`

	latencies []time.Duration
}

// ResultFile is where a result is written, below the root of the module.
func ResultFile(r *Result) string {
	name := r.Kind
	if r.Variant != "" {
		name += "-" + r.Variant
	}
	return filepath.Join("build", "reports", "providers", name+".json")
}

// publish writes the result for the table.
func (r *Result) publish(t testing.TB) {
	t.Helper()
	if r.Kind == FakeSchema.Kind() {
		return // no upstream of anybody's
	}
	if r.Latency = 0; len(r.latencies) > 0 {
		slices.Sort(r.latencies)
		r.Latency = float64(r.latencies[len(r.latencies)/2].Microseconds()) / 1000
	}
	data, err := json.MarshalIndent(r, "", "  ")
	file := filepath.Join(testbed.Root(t), ResultFile(r))
	err = errors.Join(err, os.MkdirAll(filepath.Dir(file), 0o755))
	if err == nil {
		err = os.WriteFile(file, append(data, '\n'), 0o644)
	}
	if err != nil {
		t.Errorf("write the result: %v", err)
	}
}

// ended notes what the first revocation of a lease came to.
func (r *Result) ended(o broker.OutcomeState, took time.Duration) {
	if r.Outcomes == nil {
		r.Outcomes = make(map[broker.OutcomeState]int)
	}
	r.Outcomes[o]++
	if o == broker.Revoked {
		r.latencies = append(r.latencies, took)
	}
}

// endsEarly reports whether what a provider makes lives as long as the upstream likes, and
// is ended by its lease.
func endsEarly(d broker.Description) bool {
	return !d.Settable && d.Revokes == "token" && d.MaxLifetime > 0
}

// catchesOvergrants mints at upstreams that give too much. Either the provider finds out
// itself, or it says what was granted, so that the broker does: in both cases what was
// made can be ended.
func catchesOvergrants(ctx context.Context, h *Harness) error {
	r := random(13)
	for _, name := range names(h.Overgrants) {
		h.result.Overgrants++
		l, err := h.asked(h.Grant(r))
		if err != nil {
			return err
		}
		over := *h
		over.Provider = h.Overgrants[name]
		m, err := over.Provider.Mint(ctx, l.req)
		if err == nil {
			if m.Handle != nil {
				l.noted = m.Handle
			}
			within, _ := grant.Leq(m.Granted, l.req.Grant)
			latest := l.req.Expires
			if endsEarly(over.Provider.Describe()) {
				latest = time.Now().Add(over.Provider.Describe().MaxLifetime)
			}
			if within && !m.Granted.IsNothing() && !m.Expires.IsZero() && !m.Expires.After(latest.Add(time.Second)) {
				return fmt.Errorf("%s is not noticed: asked for %s, said to be granted is %s", name, l.req.Grant, m.Granted)
			}
		}
		if _, err := over.end(ctx, l); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		h.result.Caught++
	}
	return nil
}
