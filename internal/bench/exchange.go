package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	cold = 6000 // subject tokens: more than the cache of verified ones holds
	form = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange" +
		"&subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aaccess_token&scope=s1+s7"
)

// bench is the servers under measurement.
type bench struct {
	s        settings
	k        keys
	subjects []string
	counter  atomic.Uint64
	servers  map[string]*running
	running  []*process
}

type running struct {
	*install
	process *process
	ready   time.Duration
}

func exchanges(ctx context.Context, s settings, out *report) error {
	b := &bench{s: s, servers: make(map[string]*running)}
	var err error
	if b.k, err = newKeys(); err != nil {
		return err
	}
	if b.subjects, err = b.k.subjects(cold); err != nil {
		return err
	}
	defer b.stop()
	floors, err := b.startFloor(ctx)
	if err != nil {
		return err
	}
	redis, err := b.startRedis(ctx)
	if err != nil {
		return err
	}
	for _, in := range []*install{
		{name: "embedded", resources: 1000, perResource: 10, records: 10_000},
		{name: "redis", resources: 1000, perResource: 10, records: 10_000, redis: redis},
		{name: "scopes", resources: 1000, perResource: 100, records: 10_000},
		{name: "records", resources: 1000, perResource: 10, records: 1_000_000},
		// What these leave to the garbage collector is not to be paid by the others.
		{name: "clients", resources: 1000, perResource: 10, records: 10_000},
	} {
		if in.name == "redis" && redis == "" {
			fmt.Println("  redis-server is not on the machine: left out")
			continue
		}
		if err := b.install(ctx, in); err != nil {
			return fmt.Errorf("%s: %w", in.name, err)
		}
	}
	if err := b.starts(ctx, out); err != nil {
		return err
	}
	targets, err := b.targets(floors)
	if err != nil {
		return err
	}
	if err := measure(ctx, s, targets, []int{1, 16}); err != nil {
		return err
	}
	b.tell(targets, out)
	return b.memory(ctx, out)
}

func (b *bench) stop() {
	for _, p := range b.running {
		p.stop()
	}
}

// startFloor returns the floor, and with it what it costs to keep a record, too.
func (b *bench) startFloor(ctx context.Context) ([]*target, error) {
	path := filepath.Join(b.s.dir, "issuer.pem")
	if err := public(path, &b.k.issuer.PublicKey); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	p, _, err := start(ctx, b.s.dir, "floor", "http://"+addr+"/readyz", nil, self, "floor", addr, path)
	if err != nil {
		return nil, err
	}
	b.running = append(b.running, p)
	in := &install{addr: addr}
	at := func(path string) func() []byte {
		return func() []byte { return in.request(path, true, b.form(true)) }
	}
	return []*target{
		{name: "floor", process: p, addr: addr, next: at("/token")},
		{name: "floor and a bare sync", process: p, addr: addr, next: at("/synced"), only: 1},
		{name: "floor and the journal", process: p, addr: addr, next: at("/recorded"), only: 1},
	}, nil
}

// form is an exchange's, with a subject token that was or was not just used.
func (b *bench) form(cold bool) string {
	n := b.counter.Add(1)
	subject := b.subjects[0]
	if cold {
		subject = b.subjects[n%uint64(len(b.subjects))]
	}
	return fmt.Sprintf("%s&resource=https%%3A%%2F%%2Fr%d.bench%%2F&subject_token=%s", form, n%1000, subject)
}

// startRedis starts a Redis that keeps what it confirms; empty if there is none.
func (b *bench) startRedis(ctx context.Context) (string, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return "", nil //nolint:nilerr // what needs it is left out
	}
	port, err := freePort()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(b.s.dir, "redis-data")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	p, _, err := start(ctx, b.s.dir, "redis-server", "tcp://"+addr, nil, path, "--port", strconv.Itoa(port), "--bind", "127.0.0.1",
		"--dir", dir, "--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction")
	if err != nil {
		return "", err
	}
	if canPin() { // not on the core where CPU is counted
		_ = exec.Command("taskset", "-a", "-p", "-c", "1", strconv.Itoa(p.cmd.Process.Pid)).Run()
	}
	b.running = append(b.running, p)
	return addr, nil
}

func (b *bench) install(ctx context.Context, in *install) error {
	if err := in.write(ctx, b.s.dir, b.k); err != nil {
		return err
	}
	r := &running{install: in}
	b.servers[in.name] = r
	return r.start(ctx, b)
}

func (r *running) start(ctx context.Context, b *bench) (err error) {
	r.process, r.ready, err = start(ctx, b.s.dir, r.name, "http://"+r.ops+"/readyz", nil, b.s.stint, "serve", "--config", filepath.Join(r.dir, "stint.yaml"))
	if err == nil {
		b.running = append(b.running, r.process)
	}
	return err
}

// starts measures how long it takes to be ready.
func (b *bench) starts(ctx context.Context, out *report) error {
	for _, name := range []string{"embedded", "scopes", "records"} {
		r := b.servers[name]
		var times []float64
		for range 5 {
			r.process.stop()
			if err := r.start(ctx, b); err != nil {
				return err
			}
			times = append(times, float64(r.ready.Milliseconds()))
		}
		text := fmt.Sprintf("start to ready, %d mapped scopes, %d records", r.resources*r.perResource, r.records)
		if name == "embedded" {
			out.atMost(text, median(times), "ms", 300)
		} else {
			out.add(text, median(times), "ms")
		}
	}
	return nil
}

func (b *bench) targets(all []*target) ([]*target, error) {
	for _, name := range []string{"embedded", "redis", "scopes", "records"} {
		r := b.servers[name]
		if r == nil {
			continue
		}
		for _, heat := range []string{"cold", "warm"} {
			t := &target{name: "exchange, " + name + ", " + heat, process: r.process, addr: r.addr, accept: issued,
				next: func() []byte { return r.request("/oauth2/token", true, b.form(heat == "cold")) }}
			if name == "scopes" || name == "records" {
				t.base = find(all, "exchange, embedded, "+heat)
			}
			all = append(all, t)
		}
	}
	r := b.servers["clients"]
	all = append(all, &target{name: "exchange, private_key_jwt, cold", process: r.process, addr: r.addr, accept: issued, next: func() []byte {
		now := time.Now()
		assertion, err := compact(b.k.client, "ES256", "c", "JWT", map[string]any{
			"iss": "bench-jwt", "sub": "bench-jwt", "aud": "https://stint.bench", "jti": fmt.Sprint("a-", b.counter.Load(), now.UnixNano()),
			"iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
		})
		if err != nil {
			panic(err)
		}
		return r.request("/oauth2/token", false, b.form(true)+"&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion="+assertion)
	}})
	token, err := r.token(b)
	if err != nil {
		return nil, err
	}
	introspection := r.request("/oauth2/introspect", true, "token="+token)
	return append(all, &target{name: "introspection", process: r.process, addr: r.addr, next: func() []byte { return introspection }, accept: func(body []byte) error {
		if !strings.Contains(string(body), `"active":true`) {
			return fmt.Errorf("not active: %s", body)
		}
		return nil
	}}), nil
}

func issued(body []byte) error {
	if member(body, "access_token") == "" {
		return fmt.Errorf("no token: %s", body)
	}
	return nil
}

// token makes a token for the client that introspects it.
func (r *running) token(b *bench) (string, error) {
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	text := form + "&resource=https%3A%2F%2Fr0.bench%2F&subject_token=" + b.subjects[1]
	if _, err := conn.Write(r.request("/oauth2/token", true, text)); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if t := member(body, "access_token"); t != "" {
		return t, nil
	}
	return "", fmt.Errorf("no token to introspect: %s %s", resp.Status, body)
}

// tell writes down what was measured over HTTP.
func (b *bench) tell(targets []*target, out *report) {
	limits := map[string]map[int]float64{
		"exchange, embedded, cold": {16: 1.7, 1: 2.2},
		"exchange, embedded, warm": {16: 1.1, 1: 1.4},
	}
	for _, n := range []int{16, 1} {
		for _, t := range targets {
			m := t.per[n]
			if m.count == 0 {
				continue
			}
			name := fmt.Sprintf("%s, %d connections", t.name, n)
			out.add(name+": CPU a request", median(m.cpu), "us")
			if limit := limits[t.name][n]; limit > 0 {
				out.atMost(name+": CPU against the floor", median(m.ratios), "x", limit)
			} else {
				out.add(name+": CPU against the floor", median(m.ratios), "x")
			}
			out.add(name+": p50", quantile(m.waits, 0.5), "ms")
			out.add(name+": p99", quantile(m.waits, 0.99), "ms")
		}
	}
	for _, more := range []string{"scopes", "records"} {
		for _, heat := range []string{"cold", "warm"} {
			t := find(targets, "exchange, "+more+", "+heat)
			name := fmt.Sprintf("exchange, %s, 16 connections, against 10,000 scopes and 10,000 records: %s", heat, map[string]string{"scopes": "100,000 scopes", "records": "1,000,000 records"}[more])
			out.atMost(name, median(t.per[16].growth), "x", 1.05)
		}
	}
	for _, heat := range []string{"cold", "warm"} {
		for _, floor := range []string{"floor and a bare sync", "floor and the journal"} {
			ratio := find(targets, "exchange, embedded, "+heat).against(find(targets, floor), 1)
			out.add("exchange, embedded, "+heat+", 1 connections: CPU against the "+floor, ratio, "x")
		}
	}
}

func find(targets []*target, name string) *target {
	for _, t := range targets {
		if t.name == name {
			return t
		}
	}
	return nil
}

// against is what a request costs against one of another target, each by its own floor.
func (t *target) against(other *target, n int) float64 {
	return median(t.per[n].ratios) / median(other.per[n].ratios)
}

// memory runs up to 100,000 exchanges and looks whether memory stays flat.
func (b *bench) memory(ctx context.Context, out *report) error {
	r := b.servers["embedded"]
	t := &target{name: "memory", process: r.process, addr: r.addr, accept: issued, next: func() []byte {
		return r.request("/oauth2/token", true, b.form(b.counter.Load()%4 == 0))
	}}
	var first float64
	for done := 0; done < 100_000; {
		n, _, _, err := t.slice(16, 200*time.Millisecond)
		if err != nil {
			return err
		}
		if done += n; first == 0 && done > 20_000 {
			if first, err = r.process.memory("VmRSS"); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	last, err := r.process.memory("VmRSS")
	if err != nil {
		return err
	}
	out.add("memory after 20,000 more exchanges, 10,000 mapped scopes", first, "MiB")
	out.atMost("memory after 100,000 more exchanges, 10,000 mapped scopes", last, "MiB", 64)
	own, err := r.process.memory("RssAnon")
	if err != nil {
		return err
	}
	million, err := b.servers["records"].process.memory("RssAnon")
	if err != nil {
		return err
	}
	out.atMost("what 990,000 more revocation records add to the process's own memory", million-own, "MiB", 60)
	all, err := b.servers["records"].process.memory("VmRSS")
	if err != nil {
		return err
	}
	out.add("the same process with pages of the store's file that the kernel may take back", all, "MiB")
	large, err := b.servers["scopes"].process.memory("VmRSS")
	if err != nil {
		return err
	}
	out.add("memory with 100,000 mapped scopes", large, "MiB")
	return nil
}
