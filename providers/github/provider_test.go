package github_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/providers/github"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/scopes/grant"
)

// session uses a token.
type session struct {
	h     *hub
	t     testing.TB
	token string
}

func (session) Close() {}

// Do does one of: read contents, read issues, write issues, at a repository.
func (s session) Do(_ context.Context, act string) error {
	what, name, _ := strings.Cut(act, " at ")
	method, path, body := http.MethodGet, "/repos/acme/"+name, ""
	switch what {
	case "read contents":
		path += "/contents/README.md"
	case "read issues":
		path += "/issues"
	case "write issues":
		method, path, body = http.MethodPost, path+"/issues", `{"title":"x"}`
	case "write contents":
		method, path = http.MethodPut, path+"/contents/x"+fmt.Sprint(rand.Int64())+".txt"
		body = `{"message":"x","content":"eA=="}`
	}
	status, answer := s.h.do(s.t, s.h.URL, method, path, s.token, body)
	switch {
	case status < 300:
		return nil
	case status == http.StatusForbidden || status == http.StatusNotFound || status == http.StatusUnauthorized:
		return fmt.Errorf("%d: %w", status, providertest.ErrRefused)
	}
	return fmt.Errorf("%s: %d %s", act, status, answer)
}

var whats = map[string]map[string]any{
	"read contents": {"contents": "read"}, "write contents": {"contents": "write"}, "read issues": {"issues": "read"}, "write issues": {"issues": "write"},
}

func (h *hub) harness(t *testing.T, p broker.Provider, repositories ...string) providertest.Harness {
	warm(t, p)
	acts := make(map[string]grant.Grant)
	for what, permissions := range whats {
		for _, name := range repositories {
			acts[what+" at "+name] = h.of(t, p, permissions, name)
		}
	}
	return providertest.Harness{
		Provider: p, Subject: alice, Acts: acts, Rounds: 6,
		Upstream: "emulate 0.12, with its end of tokens and users' tokens before it", Oracle: "emulate's enforcement",
		Grant: func(r *rand.Rand) grant.Grant {
			permissions := map[string]any{}
			for len(permissions) == 0 {
				for _, key := range []string{"contents", "issues"} {
					if level := []string{"none", "read", "write"}[r.IntN(3)]; level != "none" {
						permissions[key] = level
					}
				}
			}
			n := r.Perm(len(repositories))
			var some []string
			for _, i := range n[:1+r.IntN(len(n)-1)] { // never all: a token for all is always too much
				some = append(some, repositories[i])
			}
			return h.of(t, p, permissions, some...)
		},
		Named: func(g grant.Grant) grant.Grant {
			text := g.String()
			for name, id := range h.Repositories {
				text = strings.ReplaceAll(text, fmt.Sprintf(`"%d/%d"`, h.Owner, id), `"acme/`+name+`"`)
			}
			return parse(t, p, text)
		},
		Inexpressible: []grant.Grant{
			p.Describe().Schema.Everything(),
			parse(t, p, `{"repositories":["1/2","3/4"],"permissions":{"issues":"read"},"account":{}}`),
			parse(t, p, `{"repositories":["1/2"],"permissions":"*","account":{}}`),
			parse(t, p, `{"repositories":"*","permissions":{"issues":"read"},"account":{}}`),
			parse(t, p, `{"repositories":["1/2"],"permissions":{"issues":"read"},"account":"*"}`),
		},
		Open: func(_ context.Context, m *broker.Minted) (providertest.Session, error) {
			token := m.Token.Reveal()
			if status, _ := h.do(t, h.URL, http.MethodGet, "/rate_limit", token, ""); status == http.StatusUnauthorized {
				return nil, providertest.ErrRefused
			}
			return session{h, t, token}, nil
		},
		Ends:    func(_ context.Context, m *broker.Minted) (time.Time, error) { return h.Ends(m.Token.Reveal()), nil },
		Remains: func(context.Context) ([]string, error) { return h.Alive(), nil },
		// What one token may do and another may not, is tried at emulate.
		Within: h.within(t, p, repositories),
	}
}

func parse(t testing.TB, p broker.Provider, text string) grant.Grant {
	t.Helper()
	g, err := p.Describe().Schema.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// within compares what two tokens can do, by trying all of it.
func (h *hub) within(t testing.TB, p broker.Provider, repositories []string) func(context.Context, grant.Grant, grant.Grant) (bool, error) {
	can := func(g grant.Grant) (map[string]bool, error) {
		permissions := map[string]string{}
		_, atoms := g.Dimension("permissions")
		for _, a := range atoms {
			permissions[a[0]] = a[1]
		}
		var ids []int64
		_, atoms = g.Dimension("repositories")
		for _, a := range atoms {
			var owner, id int64
			if _, err := fmt.Sscanf(a[0], "%d/%d", &owner, &id); err != nil {
				return nil, err
			}
			ids = append(ids, id)
		}
		token, _ := h.App(permissions, ids) // asked of emulate itself
		out := make(map[string]bool)
		for what := range whats {
			for _, name := range repositories {
				act := what + " at " + name
				s := session{h, t, token}
				s.h = &hub{GitHub: &doubles.GitHub{Server: h.Server}}
				out[act] = s.Do(context.Background(), act) == nil
			}
		}
		return out, nil
	}
	return func(_ context.Context, a, b grant.Grant) (bool, error) {
		x, err := can(a)
		if err != nil {
			return false, err
		}
		y, err := can(b)
		for act := range x {
			if x[act] && !y[act] {
				return false, err
			}
		}
		return true, err
	}
}

// overgrants are providers before GitHubs that give too much.
func (h *hub) overgrants(t *testing.T, change func(*github.Config), ways ...string) map[string]broker.Provider {
	out := make(map[string]broker.Provider)
	for _, way := range ways {
		out[way] = overly{h.open(t, change), h, way}
		warm(t, out[way].(overly).Provider)
	}
	return out
}

// overly has GitHub misbehave while it mints.
type overly struct {
	broker.Provider
	h   *hub
	way string
}

func (o overly) Mint(ctx context.Context, r broker.MintRequest) (*broker.Minted, error) {
	o.h.Over(o.way)
	defer o.h.Over("")
	return o.Provider.Mint(ctx, r)
}

func TestProvider(t *testing.T) {
	h := newHub(t)
	p := h.open(t, nil)
	c := h.harness(t, p, "web", "api", "docs")
	c.Variant, c.Pairs = "app", 40
	c.Overgrants = h.overgrants(t, nil, doubles.GitHubAllRepositories, doubles.GitHubMorePermission, doubles.GitHubHigherLevel,
		doubles.GitHubLastsLonger, doubles.GitHubSaysNothing)
	providertest.Run(t, c)
}

func TestProviderOfUsers(t *testing.T) {
	h := newHub(t)
	user := func(c *github.Config) { c.Mode, c.Entitlement = "user", "" }
	h.Users["alice"].Rights = map[string]string{"web": "write", "api": "write", "docs": "write"}
	p := h.open(t, user)
	if a := h.link(t, p); a.ID != "77" || a.Name != "alice" {
		t.Errorf("%+v", a)
	}
	c := h.harness(t, p, "web", "api", "docs")
	c.Variant, c.Pairs = "user", 20
	c.Overgrants = h.overgrants(t, user, doubles.GitHubAllRepositories, doubles.GitHubMorePermission, doubles.GitHubLastsLonger,
		doubles.GitHubSaysNothing, doubles.GitHubAnotherOwner)
	providertest.Run(t, c)
}
