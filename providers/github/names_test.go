package github_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/providers/github"
	"github.com/stint-dev/stint/scopes/grant"
)

func TestNamesBecomeIDs(t *testing.T) {
	h := newHub(t)
	p := h.open(t, nil)
	web, api := fmt.Sprintf("%d/%d", h.Owner, h.Repositories["web"]), fmt.Sprintf("%d/%d", h.Owner, h.Repositories["api"])
	every := fmt.Sprintf("%d/*", h.Owner)
	for name, c := range map[string]struct {
		resources []string
		details   []map[string]any
		want      string // the repositories asked for, or a code
	}{
		"a repository":                {[]string{"github://main/acme/web"}, nil, `["` + web + `"]`},
		"by the API's own URI":        {[]string{h.URL + "/repos/acme/web"}, nil, `["` + web + `"]`},
		"two":                         {[]string{"github://main/acme/web", "github://main/acme/api"}, nil, `["` + web + `","` + api + `"]`},
		"an owner":                    {[]string{"github://main/acme"}, nil, `["` + every + `"]`},
		"details":                     {nil, []map[string]any{{"repositories": []any{"acme/web"}, "permissions": map[string]any{"issues": "read"}, "account": map[string]any{}}}, `["` + web + `"]`},
		"one that there is not":       {[]string{"github://main/acme/none"}, nil, "bad_target"},
		"an owner without the App":    {[]string{"github://main/other/web"}, nil, "bad_target"},
		"a path that climbs":          {[]string{"github://main/acme/.."}, nil, "bad_target"},
		"a path that is escaped":      {[]string{"github://main/acme/%2e%2e"}, nil, "bad_target"},
		"a path below":                {[]string{"github://main/acme/web/contents"}, nil, "bad_target"},
		"a query":                     {[]string{"github://main/acme/web?x"}, nil, "bad_target"},
		"a star":                      {[]string{"github://main/acme/*"}, nil, "bad_target"},
		"nothing":                     {[]string{"github://main/"}, nil, "bad_target"},
		"another provider's":          {[]string{"github://other/acme/web"}, nil, "bad_target"},
		"details without a dimension": {nil, []map[string]any{{"repositories": []any{"acme/web"}}}, "bad_details"},
		"a permission that is none":   {nil, []map[string]any{{"repositories": []any{"acme/web"}, "permissions": map[string]any{"contentz": "read"}, "account": map[string]any{}}}, "bad_details"},
		"a level that is none":        {nil, []map[string]any{{"repositories": []any{"acme/web"}, "permissions": map[string]any{"contents": "admin"}, "account": map[string]any{}}}, "bad_details"},
		"details beyond the resource": {[]string{"github://main/acme/api"}, []map[string]any{{"repositories": []any{"acme/web"}, "permissions": map[string]any{"issues": "read"}, "account": map[string]any{}}}, "bad_details"},
		"details of another provider": {nil, []map[string]any{{"provider": "x", "repositories": []any{"acme/web"}, "permissions": map[string]any{}, "account": map[string]any{}}}, "bad_details"},
		"a repository by id, by name": {[]string{"github://main/" + web}, nil, "bad_target"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := p.Resolve(t.Context(), broker.ResolveRequest{Resources: c.resources, Details: c.details, Live: true})
			got := string(broker.CodeOf(err))
			if err == nil {
				got = out.Request.String()
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("%s (%v), want %s", got, err, c.want)
			}
		})
	}

	out, err := p.Resolve(t.Context(), broker.ResolveRequest{
		Live: true, Grants: []grant.Grant{parse(t, p, `{"repositories":["acme/*","acme/none","other/x"],"permissions":{"issues":"read"},"account":{}}`)},
	})
	if err != nil || out.Grants[0].String() != `{"account":{},"permissions":{"issues":"read"},"repositories":["`+every+`"]}` || out.Names["acme/*"] != every {
		t.Errorf("%+v, %v", out, err)
	}
	if claims := p.Describe().Claims; !claims(h.URL+"/repos/acme/web") || claims(h.URL+"/users/acme") || claims("https://elsewhere.example/repos/acme/web") {
		t.Error("it claims what is not its own")
	}
}

// An App may do more than the user for whom it acts. The user's own rights are asked for,
// and are in the meet.
func TestAnAppIsHeldToItsUsersRights(t *testing.T) {
	h := newHub(t)
	h.Users["alice"].Rights = map[string]string{"web": "write", "api": "read"}
	h.Users["bob"] = &doubles.GitHubUser{ID: 78, Rights: map[string]string{"docs": "admin"}}
	p := h.open(t, func(c *github.Config) {
		c.Entitlement, c.Logins = "collaborator", map[string]string{"https://idp.example#bob": "bob"}
	})
	entitled := func(subject string, resources ...string) (grant.Grant, error) {
		out, err := p.Resolve(t.Context(), broker.ResolveRequest{
			Subject: subject, Resources: resources, Live: true,
			Grants: []grant.Grant{parse(t, p, `{"repositories":["acme/*"],"permissions":"*","account":"*"}`)},
		})
		if err != nil {
			return grant.Grant{}, err
		}
		return out.Entitlement, nil
	}
	if _, err := entitled(alice, "github://main/acme/web"); broker.CodeOf(err) != broker.NeedsLink {
		t.Errorf("nobody knows who she is: %v", err)
	}
	h.link(t, p)
	may := func(subject string, permissions map[string]any, name string, others ...string) bool {
		t.Helper()
		uris := []string{"github://main/acme/" + name}
		for _, o := range others {
			uris = append(uris, "github://main/acme/"+o)
		}
		g, err := entitled(subject, uris...)
		if err != nil {
			t.Fatal(err)
		}
		within, _ := grant.Leq(h.of(t, p, permissions, name), g)
		return within
	}
	for name, c := range map[string]struct {
		subject, repository string
		permissions         map[string]any
		want                bool
	}{
		"who may write writes":               {alice, "web", map[string]any{"contents": "write"}, true},
		"and does not administer":            {alice, "web", map[string]any{"administration": "write"}, false},
		"nor see secrets":                    {alice, "web", map[string]any{"secrets": "read"}, false},
		"who may read reads":                 {alice, "api", map[string]any{"contents": "read"}, true},
		"and does not write":                 {alice, "api", map[string]any{"contents": "write"}, false},
		"who may nothing does nothing":       {alice, "docs", map[string]any{"metadata": "read"}, false},
		"an administrator administers":       {"https://idp.example#bob", "docs", map[string]any{"administration": "write", "secrets": "write"}, true},
		"elsewhere he is nobody":             {"https://idp.example#bob", "web", map[string]any{"metadata": "read"}, false},
		"a client that acts for itself does": {"robot", "web", map[string]any{"administration": "write"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := may(c.subject, c.permissions, c.repository); got != c.want {
				t.Errorf("%t", got)
			}
		})
	}
	if !may(alice, map[string]any{"contents": "read"}, "web", "api") || !may(alice, map[string]any{"contents": "write"}, "web") {
		t.Fatal("this shows nothing")
	}
	if may(alice, map[string]any{"contents": "write"}, "web", "api") {
		t.Error("the right on one repository is lent on another")
	}
	if g, err := entitled(alice, "github://main/acme"); err != nil || !g.IsNothing() {
		t.Errorf("all of an owner's, of which nothing is known: %s, %v", g, err)
	}
	// Names can be changed, and given to others: a link is to an account.
	h.Users["mallory"], h.Users["alice"] = h.Users["alice"], &doubles.GitHubUser{ID: 99, Rights: map[string]string{"docs": "admin"}}
	p = h.open(t, func(c *github.Config) { c.Entitlement = "collaborator" }) // which remembers nothing
	if may(alice, map[string]any{"contents": "read"}, "docs") {
		t.Error("who has her old name has lent her his rights")
	}
}

func TestYesIsRememberedForAMinuteAndNoForFiveSeconds(t *testing.T) {
	h := newHub(t)
	now := time.Now()
	h.now = func() time.Time { return now }
	h.Users["alice"].Rights = map[string]string{"web": "write"}
	p := h.open(t, func(c *github.Config) { c.Entitlement, c.Logins = "collaborator", map[string]string{alice: "alice"} })
	may := func(name string) bool {
		out, err := p.Resolve(t.Context(), broker.ResolveRequest{
			Subject: alice, Resources: []string{"github://main/acme/" + name}, Live: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		return !out.Entitlement.IsNothing()
	}
	if !may("web") || may("api") {
		t.Fatal("it begins otherwise")
	}
	h.Users["alice"].Rights = map[string]string{"api": "write"}
	now = now.Add(4 * time.Second)
	if !may("web") || may("api") {
		t.Error("not remembered")
	}
	now = now.Add(2 * time.Second)
	if !may("web") || !may("api") {
		t.Error("a no is remembered for longer than five seconds")
	}
	now = now.Add(55 * time.Second)
	if may("web") {
		t.Error("a yes is remembered for longer than a minute")
	}
}

func TestWhatGitHubRefuses(t *testing.T) {
	h := newHub(t)
	p := h.open(t, nil)
	warm(t, p)
	ask := func(g grant.Grant) error {
		rendered, err := p.Render(g)
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Mint(t.Context(), broker.MintRequest{
			Lease: strings.Repeat("a", 24), Grant: g, Rendered: rendered, Expires: time.Now().Add(time.Hour), Note: func([]byte) error { return nil },
		})
		return err
	}
	if err := ask(h.of(t, p, map[string]any{"administration": "write"}, "web")); broker.CodeOf(err) != broker.BadScope || strings.Contains(fmt.Sprint(err), "installation") {
		t.Errorf("what the App was not granted: %v", err)
	}
	h.Over(doubles.GitHubIsLimited)
	err := ask(h.of(t, p, map[string]any{"issues": "read"}, "web"))
	if e := broker.AsError(err); e.Code != broker.Limited || e.RetryAfter < 80*time.Second || e.RetryAfter > 95*time.Second {
		t.Errorf("%v, try again after %s", err, e.RetryAfter)
	}
	h.Over(doubles.GitHubLosesAnswers)
	if err := ask(h.of(t, p, map[string]any{"issues": "read"}, "web")); err == nil {
		t.Error("an answer without a token is taken")
	}
	// Asked was for five minutes, and what GitHub may have made lives for its own hour.
	asked := time.Now().Add(5 * time.Minute)
	o, err := p.Revoke(t.Context(), broker.RevokeLease{Lease: strings.Repeat("a", 24), Expires: asked})
	if err != nil || o.State != broker.UnknownUntil || o.Until.Before(asked.Add(time.Hour)) {
		t.Errorf("%+v, %v", o, err)
	}
}

// A user's refresh token is used once, whoever asks at the same time.
func TestAUsersTokensAreRenewedOnce(t *testing.T) {
	h := newHub(t)
	now := time.Now()
	h.now, h.Now = func() time.Time { return now }, func() time.Time { return now }
	user := func(c *github.Config) { c.Mode, c.Entitlement = "user", "" }
	p := h.open(t, user)
	h.link(t, p)
	warm(t, p)
	now = now.Add(8 * time.Hour)
	g := h.of(t, p, map[string]any{"contents": "read"}, "web")
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	for i := range 8 {
		go func() {
			_, err := p.Mint(t.Context(), broker.MintRequest{
				Lease: fmt.Sprintf("%024d", i), Grant: g, Rendered: rendered, Subject: alice, Expires: now.Add(time.Hour), Note: func([]byte) error { return nil },
			})
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := h.Renewals(); n != 1 {
		t.Errorf("renewed %d times", n)
	}
	now = now.Add(8 * time.Hour)
	h.Over(doubles.GitHubRefusesRenewals)
	_, err = p.Mint(t.Context(), broker.MintRequest{
		Lease: strings.Repeat("b", 24), Grant: g, Rendered: rendered, Subject: alice, Expires: now.Add(time.Hour), Note: func([]byte) error { return nil },
	})
	if broker.CodeOf(err) != broker.NeedsLink {
		t.Errorf("%v", err)
	}
	a, err := p.Describe().Link.Linked(t.Context(), alice)
	if err != nil || a.Broken == "" {
		t.Errorf("%+v, %v", a, err)
	}
	h.Over("")
	if a := h.link(t, p); a.Broken != "" {
		t.Errorf("linked again, and %q", a.Broken)
	}
	if o, err := p.Describe().Link.Unlink(t.Context(), alice); err != nil || o.State != broker.Revoked {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := p.Describe().Link.Linked(t.Context(), alice); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// What GitHub says is held against what was asked, level by level.
func TestAHigherLevelIsNoticed(t *testing.T) {
	h := newHub(t)
	p := h.open(t, nil)
	warm(t, p)
	g := h.of(t, p, map[string]any{"contents": "read"}, "web")
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	h.Over(doubles.GitHubHigherLevel)
	m, err := p.Mint(t.Context(), broker.MintRequest{
		Lease: strings.Repeat("a", 24), Grant: g, Rendered: rendered, Expires: time.Now().Add(time.Hour), Note: func([]byte) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if within, _ := grant.Leq(m.Granted, g); within {
		t.Errorf("asked for %s, granted is %s", g, m.Granted)
	}
}
