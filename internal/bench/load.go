package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// target is something that answers requests.
type target struct {
	name    string
	process *process
	addr    string
	// next returns a request as it goes over the wire. It is called from many
	// goroutines.
	next func() []byte
	// only is the number of connections that it is loaded over; 0: any.
	only int
	// base is what this is compared with beside the floor.
	base *target
	// accept looks at the first answer of each connection; nil: any 200 will do.
	accept func(body []byte) error

	conns []*connection
	per   map[int]*measured // by number of connections
}

// measured is what was found with one number of connections.
type measured struct {
	cpu    []float64 // microseconds a request, slice by slice
	ratios []float64 // to the floor just before
	growth []float64 // to the base just before
	waits  []time.Duration
	count  int
}

type connection struct {
	conn net.Conn
	r    *bufio.Reader
}

func (t *target) dial(n int) error {
	for len(t.conns) < n {
		conn, err := net.Dial("tcp", t.addr)
		if err != nil {
			return err
		}
		t.conns = append(t.conns, &connection{conn, bufio.NewReaderSize(conn, 16<<10)})
	}
	return nil
}

func (c *connection) ask(request []byte, accept func([]byte) error) error {
	if _, err := c.conn.Write(request); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusOK && accept == nil {
		_, err := io.Copy(io.Discard, resp.Body)
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return accept(body)
}

// slice loads a target for some time over n connections, closed loop.
func (t *target) slice(n int, length time.Duration) (count int, cpu time.Duration, waits []time.Duration, err error) {
	if err := t.dial(n); err != nil {
		return 0, 0, nil, err
	}
	var failed atomic.Pointer[error]
	all := make([][]time.Duration, n)
	before, err := t.process.cpu()
	if err != nil {
		return 0, 0, nil, err
	}
	end := time.Now().Add(length)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for first := true; ; first = false {
				began := time.Now()
				if began.After(end) {
					return
				}
				accept := t.accept
				if !first {
					accept = nil
				}
				if err := t.conns[i].ask(t.next(), accept); err != nil {
					failed.Store(&err)
					return
				}
				all[i] = append(all[i], time.Since(began))
			}
		})
	}
	wg.Wait()
	after, err := t.process.cpu()
	if err != nil {
		return 0, 0, nil, err
	}
	if e := failed.Load(); e != nil {
		return 0, 0, nil, fmt.Errorf("%s: %w", t.name, *e)
	}
	waits = slices.Concat(all...)
	if len(waits) == 0 {
		return 0, 0, nil, fmt.Errorf("%s: no answer within a slice", t.name)
	}
	return len(waits), after - before, waits, nil
}

// lead is the part of a slice before counting begins.
const lead = 30 * time.Millisecond

// counted is a slice without its lead: whoever had the core before left it cold
// caches.
func (t *target) counted(n int, length time.Duration) (count int, cpu time.Duration, waits []time.Duration, err error) {
	if _, _, _, err := t.slice(n, lead); err != nil {
		return 0, 0, nil, err
	}
	return t.slice(n, length-lead)
}

// measure loads all targets in turns; the first is the floor. Before each of the
// others the floor has a slice, which it is held against.
func measure(ctx context.Context, s settings, targets []*target, conns []int) error {
	if s.slice > 200*time.Millisecond {
		return errors.New("a slice is at most 200ms")
	}
	for _, t := range targets {
		t.per = make(map[int]*measured)
		for _, n := range conns {
			t.per[n] = &measured{}
		}
	}
	for round := range s.rounds + 1 { // the first warms up
		for _, n := range conns {
			for _, i := range rand.Perm(len(targets) - 1) {
				if only := targets[i+1].only; only != 0 && only != n {
					continue
				}
				if err := targets[i+1].compare(n, s.slice, targets[0], round > 0); err != nil {
					return err
				}
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	return nil
}

// pairs is how often a round compares a target with its base: what differs by a few
// percent is seen through slices that differ by thirteen.
const pairs = 3

// compare measures a target after the floor, and over many connections in turns with
// its base.
func (t *target) compare(n int, length time.Duration, floor *target, counts bool) error {
	fl, err := floor.take(n, length, 0, counts)
	if err != nil {
		return err
	}
	if t.base == nil || n == 1 {
		_, err = t.take(n, length, fl, counts)
		return err
	}
	for range pairs {
		base, err := t.base.take(n, length, fl, counts)
		if err != nil {
			return err
		}
		each, err := t.take(n, length, fl, counts)
		if err != nil {
			return err
		}
		if counts {
			t.per[n].growth = append(t.per[n].growth, each/base)
		}
	}
	return nil
}

// take notes a slice, if it counts, and returns what a request costs, in
// microseconds of CPU. floor is what it costs there just before; 0: this is the floor.
func (t *target) take(n int, length time.Duration, floor float64, counts bool) (each float64, err error) {
	count, cpu, waits, err := t.counted(n, length)
	if err != nil {
		return 0, err
	}
	each = float64(cpu.Microseconds()) / float64(count)
	if floor == 0 {
		floor = each
	}
	if m := t.per[n]; counts {
		m.cpu, m.ratios = append(m.cpu, each), append(m.ratios, each/floor)
		m.waits, m.count = append(m.waits, waits...), m.count+count
	}
	return each, nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// quantile returns one in milliseconds.
func quantile(v []time.Duration, q float64) float64 {
	slices.Sort(v)
	return float64(v[min(len(v)-1, int(q*float64(len(v))))].Microseconds()) / 1000
}
