package vault_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/providers/vault"
	"github.com/stint-dev/stint/scopes/grant"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	one := func(change func(*vault.Role)) func(*vault.Config) {
		return func(c *vault.Config) {
			r := c.Roles["reader"]
			change(&r)
			c.Roles["reader"] = r
		}
	}
	for name, c := range map[string]struct {
		change func(*vault.Config)
		wants  string
	}{
		"settings that are enough":            {func(*vault.Config) {}, ""},
		"a mount of several parts":            {one(func(r *vault.Role) { r.Mount = "team/db.v2" }), ""},
		"no roles":                            {func(c *vault.Config) { c.Roles = nil }, "there are none"},
		"a decoder that finds something odd":  {nil, "odd"},
		"a lifetime of a second":              {func(c *vault.Config) { c.MaxLifetime.Duration = time.Second }, "max_lifetime"},
		"a role whose name is no name":        {func(c *vault.Config) { c.Roles["Reader/1"] = c.Roles["reader"] }, "lower-case"},
		"a role of another name and the same": {func(c *vault.Config) { c.Roles["again"] = c.Roles["reader"] }, "again and reader ask Vault for the same"},
		"a role whose mount and path are cut elsewhere": {func(c *vault.Config) {
			c.Roles["again"] = vault.Role{Mount: "database/creds", Path: "reader", Policy: "stint-reader"}
		}, ""},
		"a path that climbs":              {one(func(r *vault.Role) { r.Path = "creds/../../sys/seal" }), "no path"},
		"a path that begins with a slash": {one(func(r *vault.Role) { r.Path = "/creds/reader" }), "no path"},
		"a path with a wildcard":          {one(func(r *vault.Role) { r.Path = "creds/*" }), "no path"},
		"a path that asks for more":       {one(func(r *vault.Role) { r.Path = "creds/reader?list=true" }), "no path"},
		"a mount that is no engine":       {one(func(r *vault.Role) { r.Mount = "sys" }), "no secrets engine"},
		"a mount of logins":               {one(func(r *vault.Role) { r.Mount = "auth/approle" }), "no secrets engine"},
		"a policy that is no child's":     {one(func(r *vault.Role) { r.Policy = "root" }), "stint-"},
		"the policy of Stint itself":      {one(func(r *vault.Role) { r.Policy = "stint" }), "stint-"},
		"several policies":                {one(func(r *vault.Role) { r.Policy = "stint-a,root" }), "stint-"},
		"parameters for what is read":     {one(func(r *vault.Role) { r.Params = map[string]string{"a": "b"} }), "method: write"},
		"a lifetime for what is read":     {one(func(r *vault.Role) { r.LifetimeParam = "ttl" }), "method: write"},
		"a lifetime that is said twice": {one(func(r *vault.Role) {
			r.Method, r.LifetimeParam, r.Params = "write", "ttl", map[string]string{"ttl": "1h"}
		}), "lifetime_param sets"},
		"an end of what ends with a lease": {one(func(r *vault.Role) { r.Ends = "expiration" }), "revoke: none"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := deps{Engine: newFake(), Now: time.Now}.open(t, func(v any) error {
				if c.change == nil {
					return errors.New("something odd")
				}
				cfg := vault.Config{Roles: roles()}
				c.change(&cfg)
				*v.(*vault.Config) = cfg
				return nil
			})
			if (err == nil) != (c.wants == "") || err != nil && !strings.Contains(err.Error(), c.wants) {
				t.Errorf("%v, wanted %q", err, c.wants)
			}
		})
	}
	_, err := deps{Now: time.Now}.open(t, func(any) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "need a Vault") {
		t.Errorf("without a Vault: %v", err)
	}
}

func TestARoleIsAllOrNothing(t *testing.T) {
	t.Parallel()
	p := on(t, newFake())
	s := p.Describe().Schema
	parse := func(mount, role any) grant.Grant {
		g, err := s.ParseValue(map[string]any{"mount": mount, "role": role})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	reader, writer := parse("database", "reader"), parse("database", "writer")
	if !reader.ReadOnly() || writer.ReadOnly() || parse("database", "*").ReadOnly() {
		t.Error("what only reads is not what the settings say")
	}
	if m := grant.Meet(reader, writer); !m.IsNothing() {
		t.Errorf("two roles have %s in common", m)
	}
	if _, ok := grant.Union(reader, writer); ok {
		t.Error("a grant of two roles")
	}
	if _, err := s.ParseValue(map[string]any{"mount": "database", "role": "admin"}); err == nil {
		t.Error("a role that there is not")
	}
	for _, g := range []grant.Grant{parse("database", "*"), parse("*", "reader"), parse("pki", "reader"), s.Everything()} {
		if sent, err := p.Render(g); !errors.Is(err, broker.ErrInexpressible) {
			t.Errorf("%s is rendered as %s (%v)", g, sent, err)
		}
	}
	if d := vault.Describe(); d.Class != broker.Profile || d.Schema.Everything().ReadOnly() {
		t.Errorf("%+v", d)
	}
	if d := p.Describe(); d.Revokes != "none" || !d.Settable {
		t.Errorf("roles that cannot be revoked: %s, %t", d.Revokes, d.Settable)
	}
	r := roles()
	r["sts"] = vault.Role{Mount: "aws", Path: "sts/deploy", Policy: "stint-sts", Revoke: "none"}
	if d := open(t, r, deps{Engine: newFake(), Now: time.Now}).Describe(); d.Settable {
		t.Error("a life that nobody is told can be set")
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	p := on(t, newFake())
	s := p.Describe().Schema
	obj := func(mount, role string) map[string]any { return map[string]any{"mount": mount, "role": role} }
	for name, c := range map[string]struct {
		resources []string
		details   []map[string]any
		want      string // the request, or a code
	}{
		"a role":                           {[]string{"vault://main/reader"}, nil, `{"mount":"database","role":"reader"}`},
		"a role twice":                     {[]string{"vault://main/reader", "vault://main/reader"}, nil, `{"mount":"database","role":"reader"}`},
		"two roles":                        {[]string{"vault://main/reader", "vault://main/writer"}, nil, "bad_target"},
		"a role that there is not":         {[]string{"vault://main/admin"}, nil, "bad_target"},
		"a role of another provider":       {[]string{"vault://other/reader"}, nil, "bad_target"},
		"another scheme":                   {[]string{"postgres://main/reader"}, nil, "bad_target"},
		"a role spelled in another way":    {[]string{"vault://main/r%65ader"}, nil, "bad_target"},
		"a role and more":                  {[]string{"vault://main/reader?x=y"}, nil, "bad_target"},
		"no role":                          {[]string{"vault://main/"}, nil, "bad_target"},
		"details":                          {nil, []map[string]any{obj("database", "writer")}, `{"mount":"database","role":"writer"}`},
		"details that leave the mount":     {nil, []map[string]any{obj("*", "writer")}, `{"mount":"database","role":"writer"}`},
		"details with the provider":        {nil, []map[string]any{{"provider": "main", "mount": "pki", "role": "web"}}, `{"mount":"pki","role":"web"}`},
		"details of another provider":      {nil, []map[string]any{{"provider": "other", "mount": "pki", "role": "web"}}, "bad_details"},
		"details of another mount":         {nil, []map[string]any{obj("pki", "writer")}, "bad_details"},
		"details of all roles":             {nil, []map[string]any{obj("database", "*")}, "bad_details"},
		"details of no role":               {nil, []map[string]any{{"mount": "database", "role": []any{}}}, "bad_details"},
		"details that lack a dimension":    {nil, []map[string]any{{"role": "writer"}}, "bad_details"},
		"two details":                      {nil, []map[string]any{obj("database", "writer"), obj("database", "reader")}, "bad_details"},
		"details and another resource":     {[]string{"vault://main/reader"}, []map[string]any{obj("database", "writer")}, "bad_details"},
		"details and resource that agree":  {[]string{"vault://main/reader"}, []map[string]any{obj("database", "reader")}, `{"mount":"database","role":"reader"}`},
		"details with a part of something": {nil, []map[string]any{{"mount": "database", "role": "reader", "table": "x"}}, "bad_details"},
	} {
		t.Run(name, func(t *testing.T) {
			everything := s.Everything()
			out, err := p.Resolve(t.Context(), broker.ResolveRequest{Resources: c.resources, Details: c.details, Grants: []grant.Grant{everything, everything}})
			if err != nil {
				if string(broker.CodeOf(err)) != c.want {
					t.Errorf("%v, wanted %s", err, c.want)
				}
				return
			}
			if out.Request.String() != c.want || len(out.Parts) != len(c.resources) || (out.Wanted != nil) != (c.details != nil) {
				t.Errorf("%+v, wanted %s", out, c.want)
			}
		})
	}
	open, _ := s.Limit(map[string]any{"role": "web"})
	closed, _ := s.Limit(map[string]any{"mount": "database"})
	out, err := p.Resolve(t.Context(), broker.ResolveRequest{Grants: []grant.Grant{open, closed, s.Nothing()}})
	if err != nil || out.Grants[0].String() != `{"mount":"pki","role":"web"}` || !out.Grants[1].Equal(closed) || !out.Grants[2].IsNothing() {
		t.Errorf("%v, %v", out, err)
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	f := newFake()
	p := on(t, f)
	if err := p.Describe().Ready(t.Context()); err != nil || len(f.asked) > 0 {
		t.Errorf("%v after %q", err, f.asked)
	}
	f.down = broker.Fail(broker.Unavailable, nil, "sealed")
	if err := p.Describe().Ready(t.Context()); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("a Vault that is sealed is ready: %v", err)
	}
}

// What is made is held to what was asked. Whatever it is that is refused has been
// noted, and is ended by what was noted.
func TestMintRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		role   string
		change func(*fake)
		wants  string
		state  broker.OutcomeState
	}{
		"a child that outlives what was asked":  {"reader", func(f *fake) { f.late = time.Minute }, "do the clocks agree", broker.UnknownUntil},
		"a child that never ends":               {"reader", func(f *fake) { f.blank = true }, "do the clocks agree", broker.UnknownUntil},
		"a Vault that takes too long":           {"reader", func(f *fake) { f.slow = 5 * time.Second }, "do the clocks agree", broker.UnknownUntil},
		"the lease of another role":             {"reader", func(f *fake) { f.lease = "database/creds/writer/" }, "asked was database/creds/reader", broker.Revoked},
		"the lease of a role below":             {"reader", func(f *fake) { f.lease = "database/creds/reader/more/" }, "asked was", broker.Revoked},
		"the lease of a role that begins alike": {"reader", func(f *fake) { f.lease = "database/creds/reader-" }, "asked was", broker.Revoked},
		"what is not leased":                    {"reader", func(f *fake) { f.lease = "" }, "leases nothing", broker.UnknownUntil},
		"what is not text":                      {"reader", func(f *fake) { f.made["password"] = "\xff" }, "encode document", broker.Revoked},
		"an answer that is lost":                {"reader", func(f *fake) { f.lost = broker.Fail(broker.Unavailable, nil, "reset") }, "reset", broker.UnknownUntil},
		"a certificate that does not end":       {"web", func(f *fake) { f.lease = "" }, "does not say when it ends", broker.UnknownUntil},
		"a certificate whose end is no time":    {"web", func(f *fake) { f.lease, f.made["expiration"] = "", "soon" }, "does not say when it ends", broker.UnknownUntil},
		"a certificate that ends before 1970":   {"web", func(f *fake) { f.lease, f.made["expiration"] = "", "-1" }, "does not say when it ends", broker.UnknownUntil},
		"a certificate that outlives": {"web", func(f *fake) {
			f.lease, f.made["expiration"] = "", strconv.FormatInt(f.now.Add(20*time.Minute).Unix(), 10)
		}, "cannot be revoked: asked was", broker.NotRevocableUntil},
		"a lease that says it outlives, and cannot be revoked": {"sts", func(f *fake) { f.lease = "aws/prod/sts/deploy/" }, "cannot be revoked: asked was", broker.NotRevocableUntil},
		"a lease without a time, that cannot be revoked":       {"sts", func(f *fake) { f.lease, f.life = "aws/prod/sts/deploy/", 0 }, "does not say when it ends", broker.UnknownUntil},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			c.change(f)
			p := on(t, f)
			r := ask(t, p, roles()[c.role].Mount, c.role, f.now.Add(15*time.Minute))
			m, err := p.Mint(t.Context(), r.MintRequest)
			if err == nil || m != nil || !strings.Contains(err.Error(), c.wants) || strings.Contains(err.Error(), "hidden") {
				t.Fatalf("minted %+v, %v, wanted %q", m, err, c.wants)
			}
			o := r.revoke(t, p)
			if o.State != c.state || o.State != broker.Revoked && o.Until.IsZero() {
				t.Errorf("revoking it: %+v, wanted %s", o, c.state)
			}
			if f.lease == "" && strings.Contains(o.Note, "if there is a lease") {
				t.Errorf("it is known that there is none: %s", o.Note)
			}
			if len(f.children)+len(f.leases) > 0 {
				t.Errorf("left behind: %v, %v", f.children, f.leases)
			}
		})
	}
}

// A real Vault leases to a token that ended while the engine was at it.
func TestACredentialWithoutItsChildIsNotHandedOut(t *testing.T) {
	t.Parallel()
	f := newFake()
	p := on(t, f)
	r := ask(t, p, "database", "reader", f.now.Add(15*time.Minute))
	note := r.Note
	r.Note = func(handle []byte) error {
		if r.notes == 1 {
			clear(f.children)
		}
		return note(handle)
	}
	if m, err := p.Mint(t.Context(), r.MintRequest); !errors.Is(err, broker.ErrNotFound) || m != nil {
		t.Fatalf("%+v, %v", m, err)
	}
	if o := r.revoke(t, p); o.State != broker.Revoked || len(f.leases) > 0 {
		t.Errorf("%+v, left %v", o, f.leases)
	}
}

func TestMintedLeases(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		life  time.Duration // of the lease
		left  time.Duration // of what is asked
		wants time.Duration
	}{
		"end with the child":                             {time.Hour, 15 * time.Minute, 15*time.Minute - time.Second},
		"end earlier if the engine says so":              {5 * time.Minute, 15 * time.Minute, 5 * time.Minute},
		"end with the child if the engine says nothing":  {0, 15 * time.Minute, 15*time.Minute - time.Second},
		"never live longer than the settings let them":   {24 * time.Hour, 365 * 24 * time.Hour, time.Hour - time.Second},
		"live whole seconds":                             {time.Hour, 10*time.Second + 900*time.Millisecond, 9 * time.Second},
		"live as short as the description says they can": {time.Hour, 5 * time.Second, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.life = c.life
			p := on(t, f)
			begun := f.now
			r := ask(t, p, "database", "reader", f.now.Add(c.left))
			m, err := p.Mint(t.Context(), r.MintRequest)
			if err != nil {
				t.Fatal(err)
			}
			d := read(t, m)
			if got := m.Expires.Sub(begun); got != c.wants || !d.ExpiresAt.Equal(m.Expires) {
				t.Errorf("lives for %s, says until %s", got, d.ExpiresAt)
			}
			if m.Evidence != broker.Echoed || !m.Granted.Equal(r.Grant) || m.Upstream["lease"] != "database/creds/reader/x1" || string(m.Handle) != string(r.noted) || r.notes != 2 {
				t.Errorf("%+v after %d notes", m, r.notes)
			}
			if d.Role != "reader" || d.Mount != "database" || d.Path != "creds/reader" || !d.Revocable || d.Fields["password"] != "hidden" || len(d.Fields) != 2 {
				t.Errorf("document %+v", d)
			}
			if f.params != nil {
				t.Errorf("what is read is sent %v", f.params)
			}
			if got := strings.Join(f.asked, ", "); got != "create stint-reader, generate database/creds/reader" {
				t.Errorf("asked: %s", got)
			}
		})
	}
	f := newFake()
	p := on(t, f)
	for _, bad := range []func(*broker.MintRequest){
		func(r *broker.MintRequest) { r.Expires = f.now.Add(time.Second) },
		func(r *broker.MintRequest) { r.Lease = "no id" },
		func(r *broker.MintRequest) {
			r.Rendered = slices.Concat(r.Rendered[:len(r.Rendered)-1], []byte(`,"x":1}`))
		},
	} {
		r := ask(t, p, "database", "reader", f.now.Add(time.Minute))
		bad(&r.MintRequest)
		if _, err := p.Mint(t.Context(), r.MintRequest); err == nil || len(f.asked) > 0 {
			t.Errorf("%v after %q", err, f.asked)
		}
	}
}

func TestWhatCannotBeRevokedSaysSo(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		role   string
		change func(*fake)
		ends   time.Duration
		asked  broker.Evidence
	}{
		"seconds since 1970": {"web", func(f *fake) {
			f.lease, f.made["expiration"] = "", strconv.FormatInt(f.now.Add(10*time.Minute).Unix(), 10)
		}, 10 * time.Minute, broker.Asserted},
		"RFC 3339": {"web", func(f *fake) {
			f.lease, f.made["expiration"] = "", f.now.Add(10*time.Minute).Format(time.RFC3339)
		}, 10 * time.Minute, broker.Asserted},
		"a lease that takes nothing back": {"sts", func(f *fake) {
			f.lease, f.life = "aws/prod/sts/deploy/", 10*time.Minute
		}, 10 * time.Minute, broker.Echoed},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			c.change(f)
			p := on(t, f)
			begun := f.now
			r := ask(t, p, roles()[c.role].Mount, c.role, f.now.Add(15*time.Minute))
			m, err := p.Mint(t.Context(), r.MintRequest)
			if err != nil {
				t.Fatal(err)
			}
			if m.Evidence != c.asked || !m.Expires.Equal(begun.Add(c.ends)) || read(t, m).Revocable {
				t.Errorf("%+v", m)
			}
			if f.params["ttl"] != "898s" { // a second for each of the two calls
				t.Errorf("sent %v", f.params)
			}
			for range 2 {
				if o := r.revoke(t, p); o.State != broker.NotRevocableUntil || !o.Until.Equal(m.Expires) {
					t.Errorf("revoked: %+v", o)
				}
			}
			if len(f.children) > 0 {
				t.Errorf("left behind: %v", f.children)
			}
			f.now = m.Expires
			if o := r.revoke(t, p); o.State != broker.AlreadyDead {
				t.Errorf("after its end: %+v", o)
			}
		})
	}
}

// Nothing is asked of an engine that could not be found again, and nothing that
// was made stays if it cannot be noted.
func TestWhatCannotBeNotedIsEndedAtOnce(t *testing.T) {
	t.Parallel()
	for from, asked := range map[int]string{
		1: "create stint-reader,revoke child",
		2: "create stint-reader,generate database/creds/reader,revoke lease,revoke child",
	} {
		f := newFake()
		p := on(t, f)
		r := ask(t, p, "database", "reader", f.now.Add(15*time.Minute))
		r.err, r.from = broker.ErrConflict, from
		ctx, cancel := context.WithCancel(t.Context())
		note := r.Note
		r.Note = func(handle []byte) error {
			err := note(handle)
			if err != nil {
				cancel() // whoever asked has gone
			}
			return err
		}
		if m, err := p.Mint(ctx, r.MintRequest); !errors.Is(err, broker.ErrConflict) || m != nil {
			t.Errorf("%d: %+v, %v", from, m, err)
		}
		if got := strings.Join(f.asked, ","); got != asked || len(f.children)+len(f.leases) > 0 {
			t.Errorf("%d: asked %s, left %v and %v", from, got, f.children, f.leases)
		}
	}
}

// Whoever gives up in the middle of a call gets its answer all the same: it may
// be all that the credential can be ended by.
func TestGivingUpLosesNoAnswer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		when  string // the call in which whoever asks gives up
		asked string
		state broker.OutcomeState
	}{
		"while the token is made":      {"create stint-reader", "create stint-reader", broker.UnknownUntil},
		"while the credential is made": {"generate database/creds/reader", "create stint-reader,generate database/creds/reader", broker.Revoked},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			p := on(t, f)
			ctx, cancel := context.WithCancel(t.Context())
			f.during = func(what string) {
				if what == c.when {
					cancel()
				}
			}
			r := ask(t, p, "database", "reader", f.now.Add(15*time.Minute))
			if _, err := p.Mint(ctx, r.MintRequest); broker.CodeOf(err) != broker.Unavailable || strings.Join(f.asked, ",") != c.asked {
				t.Errorf("%v after %q", err, f.asked)
			}
			if o := r.revoke(t, p); o.State != c.state || len(f.children)+len(f.leases) > 0 {
				t.Errorf("%+v, left %v and %v", o, f.children, f.leases)
			}
			f.asked = nil
			if _, err := p.Mint(ctx, r.MintRequest); broker.CodeOf(err) != broker.Unavailable || len(f.asked) > 0 {
				t.Errorf("no time, and %v after %q", err, f.asked)
			}
		})
	}
}

func TestParseReadsWhatIsSentAndNothingElse(t *testing.T) {
	t.Parallel()
	r := roles()
	r["reader-too"] = vault.Role{Mount: "database", Path: "creds/reader", Policy: "stint-reader-too"}
	p := open(t, r, deps{Engine: newFake(), Now: time.Now})
	for text, want := range map[string]string{
		`{"lifetime":"","method":"read","mount":"database","params":{},"path":"creds/reader","policy":"stint-reader"}`:                          `{"mount":"database","role":"reader"}`,
		`{"lifetime":"","method":"read","mount":"database","params":{},"path":"creds/reader","policy":"stint-reader-too"}`:                      `{"mount":"database","role":"reader-too"}`,
		`{"lifetime":"ttl","method":"write","mount":"pki","params":{"common_name":"web.test"},"path":"issue/web","policy":"stint-web"}`:         `{"mount":"pki","role":"web"}`,
		`{"lifetime":"ttl","method":"write","mount":"pki","params":{"common_name":"too.test"},"path":"issue/web","policy":"stint-web"}`:         `{"mount":"pki","role":"web-too"}`,
		`{"lifetime":"ttl","method":"write","mount":"pki","params":{"common_name":"evil.test"},"path":"issue/web","policy":"stint-web"}`:        "",
		`{"lifetime":"ttl","method":"write","mount":"pki","params":{"common_name":"web.test","x":"y"},"path":"issue/web","policy":"stint-web"}`: "",
		`{"lifetime":"","method":"read","mount":"database","params":{},"path":"creds/reader","policy":"stint-web"}`:                             "",
		`{"lifetime":"","method":"read","mount":"database/creds","params":{},"path":"reader","policy":"stint-reader"}`:                          "",
		`{"lifetime":"","method":"read","mount":"database","params":null,"path":"creds/reader","policy":"stint-reader"}`:                        "",
		`{"lifetime":"","method":"read","mount":"database","path":"creds/reader","policy":"stint-reader"}`:                                      "",
		`{"method":"read","mount":"database","params":{},"path":"creds/reader","policy":"stint-reader"}`:                                        "",
		`{"lifetime":"","method":"read","mount":"database","params":{},"path":"creds/reader","policy":"stint-reader","policy":"stint-reader"}`:  "",
		`{"lifetime":"","method":"read","mount":"database","namespace":"","params":{},"path":"creds/reader","policy":"stint-reader"}`:           "",
	} {
		g, err := p.Parse([]byte(text))
		if (err == nil) != (want != "") || err == nil && g.String() != want {
			t.Errorf("%s reads as %s (%v)", text, g, err)
		}
		if err != nil {
			continue
		}
		if back, err := p.Render(g); err != nil || string(back) != text {
			t.Errorf("%s is sent as %s (%v)", g, back, err)
		}
	}
}
