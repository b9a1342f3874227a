// Package github vends tokens of GitHub, each for some repositories and some
// permissions.
//
// An entry of the configuration has one of two modes. In the mode app a credential is an
// installation token of a GitHub App: what it does is done by the App, and what the
// subject may do is asked of GitHub first (entitlement). In the mode user it is a token
// of the subject's own, narrowed from an account that the subject has linked: GitHub
// intersects it with the subject's rights, and its log names the subject.
//
// A grant names repositories as OWNER/NAME, or OWNER/* for all of an owner's; both become
// GitHub's immutable ids before anything is compared. A token is of one installation, so
// of one owner. Permissions on the owner itself, which no repository bounds, stand in a
// dimension of their own, account, that has to be spelled.
//
// What is never sent is a request without repositories, unless the grant is OWNER/* of
// just that installation: to GitHub, an empty list is all of them.
//
// A token lives as long as GitHub likes: an hour, or eight for a user's. Stint ends it
// when its lease is over.
package github

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

// Signer signs with keys that never leave where they are: Vault's transit engine.
type Signer interface {
	// Sign returns an RSA signature (PKCS #1 v1.5, SHA-256) of a message by a key.
	Sign(ctx context.Context, key string, message []byte) ([]byte, error)
}

type provider struct {
	name   string
	cfg    Config
	deps   upstream.Deps
	ask    *upstream.Client
	signer Signer
	about  broker.Description
	// rights are what GitHub said of users at repositories.
	rights *upstream.Memory[[2]string, string]

	mu      sync.Mutex
	apps    []*app
	owners  map[string]*owner      // by lower-case name
	byID    map[string]*owner      // by account id
	known   map[string]*repository // by lower-case owner/name
	lookups map[*installation]lookup
}

var _ broker.Provider = (*provider)(nil)

// schema is the shape of grants.
var schema = grant.MustSchema("github", 1, grant.Dimension{
	Name: "repositories", Type: grant.OwnedSet,
	About: "OWNER/NAME, or OWNER/* for all that an installation has. A token is of one owner.",
}, grant.Dimension{
	Name: "permissions", Type: grant.LevelMap, Levels: repositoryPermissions, Reads: []string{"read"},
	About: "Permissions on these repositories. metadata: read comes with every token.",
}, grant.Dimension{
	Name: "account", Type: grant.LevelMap, Levels: accountPermissions, Reads: []string{"read"}, Optional: true,
	About: "Permissions on the owner, or on the user's own account: no repository bounds them. {} is none.",
})

// Describe is what all providers of this kind say of themselves.
func Describe() broker.Description {
	return broker.Description{
		Kind: "github", About: "GitHub tokens, each for some repositories and permissions: an App's, or the user's own",
		Class: broker.Exact, Modes: []broker.Mode{broker.Vend}, Schema: schema, Scheme: "github", Details: "github", TokenType: "Bearer",
		MinLifetime: time.Second, MaxLifetime: time.Hour, Revokes: "token", Evidence: broker.Attested, Links: true,
		Reads: "the level read, of GitHub's own table of permissions (" + permissionsVersion + ")",
		Identity: []string{
			"hashed_token in GitHub's audit log: the token, by the digest in the record",
			"mode user: the user, who acts",
		},
	}
}

// On returns what makes a provider of its settings; s signs for Apps whose keys are in
// Vault's transit engine, and may be nil. GitHub is asked nothing yet.
func On(s Signer) func(ctx context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
	return func(_ context.Context, name string, decode func(any) error, d upstream.Deps) (broker.Provider, error) {
		p := &provider{
			name: name, deps: d, signer: s, rights: upstream.NewMemory[[2]string, string](d.Now),
			owners: make(map[string]*owner), byID: make(map[string]*owner), known: make(map[string]*repository),
			lookups: make(map[*installation]lookup),
		}
		if err := decode(&p.cfg); err != nil {
			return nil, err
		}
		if err := p.cfg.Check(); err != nil {
			return nil, err
		}
		return p, p.open()
	}
}

func (p *provider) open() error {
	var roots []byte
	if p.cfg.CA != "" {
		pem, err := p.deps.Secret(context.Background(), p.cfg.CA)
		if err != nil {
			return fmt.Errorf("ca: %w", err)
		}
		roots = []byte(pem.Reveal())
	}
	var hosts []string
	for _, text := range []string{p.cfg.URL, p.cfg.Web} {
		u, err := url.Parse(text)
		if err != nil {
			return fmt.Errorf("%q is no URL", text)
		}
		hosts = append(hosts, u.Hostname())
	}
	client, err := p.deps.HTTP(hosts, roots)
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	p.ask = upstream.NewClient(p.name, client)
	for _, a := range p.cfg.Apps {
		if a.TransitKey != "" && p.signer == nil {
			return fmt.Errorf("apps: %s: transit_key needs secrets in Vault (secrets.kind)", a.ClientID)
		}
		p.apps = append(p.apps, &app{App: a})
	}
	p.about = Describe()
	p.about.Ready, p.about.Claims, p.about.Check = p.ready, p.claims, p.check
	if p.cfg.Mode == modeUser {
		p.about.MaxLifetime = userLife
	}
	if p.about.Links = p.linking().linked(); p.about.Links {
		p.about.Link = p.link()
	}
	return nil
}

// Describe implements [broker.Provider].
func (p *provider) Describe() broker.Description { return p.about }

// claims reports whether a URI is a repository's at this GitHub's API.
func (p *provider) claims(uri string) bool { return strings.HasPrefix(uri, p.cfg.URL+"/repos/") }

// check refuses what no token can be asked for: repositories that have no name.
func (p *provider) check(g grant.Grant) error {
	_, atoms := g.Dimension("repositories")
	for _, a := range atoms {
		who, what, _ := strings.Cut(a[0], "/")
		if !isName(who) || what != "*" && !isName(what) {
			return fmt.Errorf("repositories: %q is no name of a repository", a[0])
		}
	}
	return nil
}

// ready asks GitHub who the App is: its key works, and GitHub answers.
func (p *provider) ready(ctx context.Context) error {
	a, err := p.asApp(ctx, p.apps[0], http.MethodGet, "/app", nil)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("GitHub does not take the key of the App %s: status %d", p.apps[0].ClientID, a.Status)
	}
	return err
}
