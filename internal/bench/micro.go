package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes"
)

const idp = "https://idp.bench"

// per returns the nanoseconds that f takes, the best of some runs.
func per(f func()) float64 {
	best := 0.0
	for range 7 {
		n, began := 0, time.Now()
		for time.Since(began) < 40*time.Millisecond {
			for range 50 {
				f()
			}
			n += 50
		}
		if each := float64(time.Since(began).Nanoseconds()) / float64(n); best == 0 || each < best {
			best = each
		}
	}
	return best
}

// policyOf compiles mappings of many resources with many scopes; every group of
// five is allowed all of them, and conditions carry some of the rules.
func policyOf(resources, perResource, conditions int) (*scopes.Policy, error) {
	client := scopes.Client{Ceiling: &scopes.Ceiling{Everything: true}}
	w := scopes.World{
		Agents: map[string]*scopes.Ceiling{}, Clients: map[string]scopes.Client{}, Issuers: []string{idp},
		Groups: []string{"g0", "g1", "g2", "g3", "g4"},
	}
	var all []*scopes.Mapping
	for r := range resources {
		m := &scopes.Mapping{Scopes: make(map[string]*scopes.Scope)}
		m.Resource.Value = fmt.Sprintf("https://r%d.bench/", r)
		client.Targets = append(client.Targets, m.Resource.Value)
		rule := &scopes.Rule{To: &scopes.To{}}
		for s := range perResource {
			name := fmt.Sprint("s", s)
			m.Scopes[name] = &scopes.Scope{Access: scopes.Read}
			rule.Allow = append(rule.Allow, scopes.Text{Value: name})
		}
		for _, g := range w.Groups {
			rule.To.Groups = append(rule.To.Groups, scopes.Text{Value: g})
		}
		m.Rules = append(m.Rules, rule)
		for i := range conditions {
			m.Rules = append(m.Rules, &scopes.Rule{
				Allow: []scopes.Text{{Value: "s1"}}, To: &scopes.To{Groups: []scopes.Text{{Value: "g3"}}},
				When: scopes.Text{Value: fmt.Sprintf("context.time.hour < %d", 24+i)},
			})
		}
		all = append(all, m)
	}
	w.Clients["bench"] = client
	return scopes.Compile(all, w)
}

func decisions(_ context.Context, _ settings, out *report) error {
	for _, c := range []struct{ resources, scopes, conditions int }{
		{10, 10, 0}, {100, 10, 0}, {1000, 10, 0}, {1000, 100, 0}, {1, 5000, 0}, {100, 10, 10}, {100, 10, 100},
	} {
		began := time.Now()
		p, err := policyOf(c.resources, c.scopes, c.conditions)
		if err != nil {
			return err
		}
		took := time.Since(began)
		req := &scopes.Request{
			Resource: fmt.Sprintf("https://r%d.bench/", c.resources/2), Scopes: []string{"s1", "s7"}, Client: "bench",
			Subject: scopes.Subject{Issuer: idp, ID: "alice", Groups: []string{"g3", "x", "y"}},
			Held:    scopes.Held{Everything: true}, Now: time.Now(),
		}
		if d := p.Decide(req); !d.Allowed() {
			return fmt.Errorf("not allowed: %v", d.Refused)
		}
		name := fmt.Sprintf("decision, %d mapped scopes in %d resources, %d conditions", c.resources*c.scopes, c.resources, c.conditions)
		out.add(name, per(func() { p.Decide(req) })/1000, "us")
		if c.scopes == 100 || c.scopes == 5000 {
			out.add(name+": to compile", float64(took.Milliseconds()), "ms")
		}
		runtime.KeepAlive(p)
	}
	return nil
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// chain returns entries of a feed that revoke tokens nobody has.
func chain(n int) []broker.Entry {
	out := make([]broker.Entry, 0, n)
	var h broker.Head
	now := time.Now().Truncate(time.Second)
	for i := range n {
		e := h.Follow(broker.Record{
			Where: []broker.Key{broker.KeyOf(broker.ByToken, idp, fmt.Sprint("gone", i))}, At: now, Expires: now.Add(time.Hour),
		}, broker.Position{Epoch: 1, Seq: uint64(i) + 1})
		out = append(out, e)
		h = e.Head()
	}
	return out
}

func checks(_ context.Context, _ settings, out *report) error {
	for _, n := range []int{0, 10_000, 1_000_000} {
		x := broker.NewIndex(30 * time.Second)
		before := heap()
		var h broker.Head
		for i := 0; i < n; i += 10_000 { // so that the entries themselves are not counted
			batch := make([]broker.Entry, 0, 10_000)
			now := time.Now().Truncate(time.Second)
			for k := i; k < i+10_000; k++ {
				e := h.Follow(broker.Record{
					Where: []broker.Key{broker.KeyOf(broker.ByToken, idp, fmt.Sprint("gone", k))}, At: now, Expires: now.Add(time.Hour),
				}, broker.Position{Epoch: 1, Seq: uint64(k) + 1})
				batch = append(batch, e)
				h = e.Head()
			}
			x.Apply(batch...)
		}
		used := float64(heap()-before) / (1 << 20)
		l := &broker.Lineage{Subject: idp + "#alice", Session: "s-1", Root: &broker.Root{Issuer: idp, ID: "jti-1", Time: time.Now()}}
		if err := x.Check(l); err != nil {
			return err
		}
		out.add(fmt.Sprintf("revocation check, %d records", n), per(func() { _ = x.Check(l) })/1000, "us")
		if n == 1_000_000 {
			out.atMost("memory of a million revocation records", used, "MiB", 60)
		}
		runtime.KeepAlive(x)
	}
	return nil
}

// bare is a file that is written and synced as a journal is, and nothing more.
type bare struct {
	file   *os.File
	offset int64
}

const bareSize = 32 << 20 // bytes, there before anything is measured

func openBare(path string) (*bare, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(make([]byte, bareSize)); err == nil {
		err = f.Sync()
	}
	return &bare{file: f}, err
}

// write writes and syncs n times, and returns how long each took.
func (b *bare) write(payload []byte, n int) (took []time.Duration, err error) {
	for range n {
		began := time.Now()
		if _, err := b.file.WriteAt(payload, b.offset); err != nil {
			return nil, err
		}
		if err := syscall.Fdatasync(int(b.file.Fd())); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
		b.offset = (b.offset + int64(len(payload))) % (bareSize - 1<<20)
	}
	return took, nil
}

// appends lets writers append to a journal at the same time, and returns how long
// each waited for each frame.
func appends(j *audit.Journal, payload []byte, writers int) (waits []time.Duration, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range max(2, 200/writers) {
				began := time.Now()
				failure := j.Append(audit.Frame{Type: audit.FrameLease, Payload: payload})
				took := time.Since(began)
				mu.Lock()
				waits, err = append(waits, took), errors.Join(err, failure)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return waits, err
}

// journal measures how long one append takes, against a bare sync of a file like
// the journal's.
func journal(_ context.Context, s settings, out *report) error {
	payload := []byte(strings.Repeat("x", 1200))
	b, err := openBare(filepath.Join(s.dir, "bare"))
	if err != nil {
		return err
	}
	defer func() { _ = b.file.Close() }()
	j, err := audit.OpenJournal(audit.JournalConfig{Dir: filepath.Join(s.dir, "journal")})
	if err != nil {
		return err
	}
	defer func() { _ = j.Close() }()
	var floors []time.Duration
	waits := make(map[int][]time.Duration)
	for range 12 { // interleaved
		took, err := b.write(payload, 200)
		if err != nil {
			return err
		}
		floors = append(floors, took...)
		for _, writers := range journalWriters {
			took, err := appends(j, payload, writers)
			if err != nil {
				return err
			}
			waits[writers] = append(waits[writers], took...)
		}
	}
	tellJournal(floors, waits, out)
	return nil
}

// journalWriters are how many append at the same time.
var journalWriters = []int{1, 16, 128}

func tellJournal(floors []time.Duration, waits map[int][]time.Duration, out *report) {
	base := quantile(floors, 0.5)
	out.add("bare sync of a file, p50", base*1000, "us")
	out.add("bare sync of a file, p99", quantile(floors, 0.99)*1000, "us")
	for _, writers := range journalWriters {
		name := fmt.Sprintf("journal, %d writers", writers)
		p50 := quantile(waits[writers], 0.5)
		out.add(name+", p50", p50*1000, "us")
		out.add(name+", p99", quantile(waits[writers], 0.99)*1000, "us")
		if writers == 1 {
			out.atMost(name+", p50 against a bare sync", p50/base, "x", 2.2)
		} else {
			out.add(name+", p50 against a bare sync", p50/base, "x")
		}
	}
}
