package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/scopes"
)

func TestSecrets(t *testing.T) {
	w := newWorld(t)
	good := broker.Credentials{Method: "client_secret_basic", ID: "desktop", Secret: goodSecret}
	if c, err := w.b.AuthenticateClient(context.Background(), good); err != nil || c.ID != "desktop" {
		t.Fatal(c, err)
	}
	for name, change := range map[string]func(*broker.Credentials){
		"a wrong secret":                  func(c *broker.Credentials) { c.Secret = secret.New("x") },
		"no secret":                       func(c *broker.Credentials) { c.Secret = secret.String{} },
		"the hash in place of the secret": func(c *broker.Credentials) { c.Secret = secret.New(goodHash) },
		"a client that does not exist":    func(c *broker.Credentials) { c.ID = "nobody" },
		"no client":                       func(c *broker.Credentials) { c.ID = "" },
		"a disabled client":               func(c *broker.Credentials) { c.ID = "off" },
		"another way than is registered":  func(c *broker.Credentials) { c.Method = "client_secret_post" },
		"no way":                          func(c *broker.Credentials) { c.Method = "" },
		"a client with keys":              func(c *broker.Credentials) { c.ID = "gateway" },
	} {
		c := good
		change(&c)
		_, err := w.b.AuthenticateClient(context.Background(), c)
		if broker.CodeOf(err) != broker.BadClient || broker.AsError(err).Public != "client authentication failed" {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(fmt.Sprint(err), goodSecret.Reveal()) {
			t.Errorf("%s: the error shows the secret", name)
		}
	}
	second, hash := broker.NewClientSecret(secretKey)
	w.reg.Clients["desktop"].Auth.SecretHashes = append(w.reg.Clients["desktop"].Auth.SecretHashes, hash)
	for _, s := range []secret.String{goodSecret, second} {
		if _, err := w.b.AuthenticateClient(context.Background(), broker.Credentials{Method: "client_secret_basic", ID: "desktop", Secret: s}); err != nil {
			t.Errorf("while a secret is replaced: %v", err)
		}
	}
}

func TestAssertions(t *testing.T) {
	w := newWorld(t)
	n := 0
	present := func(change func(*broker.Token), id string) (*broker.Client, error) {
		n++
		k := &broker.Token{
			Issuer: "gateway", Subject: "gateway", Audience: []string{self}, ID: fmt.Sprint("jti", n), Type: "client-authentication+jwt",
			Expires: w.clock.Now().Add(time.Minute), IssuedAt: w.clock.Now(),
		}
		if change != nil {
			change(k)
		}
		return w.b.AuthenticateClient(context.Background(), broker.Credentials{Method: "private_key_jwt", ID: id, Assertion: w.tokens.put(k)})
	}
	for name, change := range map[string]func(*broker.Token){
		"as it should be": nil, "without a type": func(k *broker.Token) { k.Type = "" }, "of the old type": func(k *broker.Token) { k.Type = "JWT" },
	} {
		for _, id := range []string{"", "gateway"} {
			if c, err := present(change, id); err != nil || c.ID != "gateway" {
				t.Errorf("%s, client_id %q: %v", name, id, err)
			}
		}
	}
	for name, change := range map[string]func(*broker.Token){
		"of another issuer":               func(k *broker.Token) { k.Issuer = "desktop" },
		"for another client":              func(k *broker.Token) { k.Subject = "desktop" },
		"for the token endpoint":          func(k *broker.Token) { k.Audience = []string{self + "/oauth2/token"} },
		"for us and somebody else":        func(k *broker.Token) { k.Audience = []string{self, "https://evil.test"} },
		"for nobody":                      func(k *broker.Token) { k.Audience = nil },
		"for us with a slash":             func(k *broker.Token) { k.Audience = []string{self + "/"} },
		"of another type":                 func(k *broker.Token) { k.Type = "at+jwt" },
		"without an id":                   func(k *broker.Token) { k.ID = "" },
		"with an id of many bytes":        func(k *broker.Token) { k.ID = strings.Repeat("x", 257) },
		"valid for long":                  func(k *broker.Token) { k.Expires = w.clock.Now().Add(time.Hour) },
		"expired":                         func(k *broker.Token) { k.Expires = w.clock.Now() },
		"of a client that has no keys":    func(k *broker.Token) { k.Issuer, k.Subject = "desktop", "desktop" },
		"of a client that does not exist": func(k *broker.Token) { k.Issuer, k.Subject = "nobody", "nobody" },
	} {
		if c, err := present(change, ""); broker.CodeOf(err) != broker.BadClient {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	if _, err := present(nil, "desktop"); broker.CodeOf(err) != broker.BadClient {
		t.Errorf("with another client_id: %v", err)
	}
	// An assertion that was refused for another reason is not used up: nobody can
	// burn somebody else's.
	if _, err := present(func(k *broker.Token) { k.ID, k.Audience = "mine", []string{"https://evil.test"} }, ""); err == nil {
		t.Fatal("accepted")
	}
	if _, err := present(func(k *broker.Token) { k.ID = "mine" }, ""); err != nil {
		t.Errorf("it was burnt: %v", err)
	}
	w.reg.Clients["gateway"].Disabled = true
	if _, err := present(nil, ""); broker.CodeOf(err) != broker.BadClient {
		t.Errorf("a disabled client: %v", err)
	}
	w.reg.Clients["gateway"].Disabled = false
	w.tokens.down = errors.New("no keys")
	if _, err := present(nil, ""); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("keys that cannot be had: %v", err)
	}
	w.tokens.down = nil
	w.store.fail(errors.New("gone"))
	if _, err := present(nil, ""); broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("without the store: %v", err)
	}
}

// CVE-2020-15222 (fosite), CVE-2020-5300 (Hydra): an assertion is used once,
// however many present it, at whichever replica.
func TestAnAssertionIsUsedOnce(t *testing.T) {
	w := newWorld(t)
	other := w.broker("r2", &record{}, broker.Head{})
	raw := w.tokens.put(&broker.Token{Issuer: "gateway", Subject: "gateway", Audience: []string{self}, ID: "once", Expires: w.clock.Now().Add(time.Minute)})
	var wg sync.WaitGroup
	var mu sync.Mutex
	accepted := 0
	for i := range 100 {
		wg.Go(func() {
			_, err := []*broker.Broker{w.b, other}[i%2].AuthenticateClient(context.Background(), broker.Credentials{Method: "private_key_jwt", Assertion: raw})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				accepted++
			} else if broker.CodeOf(err) != broker.BadClient {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if accepted != 1 {
		t.Errorf("accepted %d times", accepted)
	}
}

func TestEntriesThatCannotBe(t *testing.T) {
	hash := []string{goodHash}
	secretAuth := broker.ClientAuth{Method: "client_secret_basic", SecretHashes: hash}
	for name, tc := range map[string]struct {
		c    broker.Client
		want string
	}{
		"an id with a #":               {broker.Client{ID: "a#b", Auth: secretAuth}, "id:"},
		"an id that is a URL":          {broker.Client{ID: "https://a", Auth: secretAuth}, "id:"},
		"a grant type that is unknown": {broker.Client{ID: "a", Auth: secretAuth, GrantTypes: []string{"password"}}, "grant_types"},
		"a resource with a fragment":   {broker.Client{ID: "a", Auth: secretAuth, Resource: "https://x/#y"}, "resource"},
		"keys and secrets":             {broker.Client{ID: "a", Auth: broker.ClientAuth{Method: "private_key_jwt", JWKSFile: "x", SecretHashes: hash}}, "nothing else"},
		"two places of keys":           {broker.Client{ID: "a", Auth: broker.ClientAuth{Method: "private_key_jwt", JWKSFile: "x", JWKSURI: "https://x"}}, "one of"},
		"no keys":                      {broker.Client{ID: "a", Auth: broker.ClientAuth{Method: "private_key_jwt"}}, "one of"},
		"no secrets":                   {broker.Client{ID: "a", Auth: broker.ClientAuth{Method: "client_secret_post"}}, "needs secret_hashes"},
		"keys for a secret":            {broker.Client{ID: "a", Auth: broker.ClientAuth{Method: "client_secret_post", SecretHashes: hash, JWKSFile: "x"}}, "nothing else"},
		"a secret in clear":            {broker.Client{ID: "a", Auth: broker.ClientAuth{Method: "client_secret_post", SecretHashes: []string{"hunter2"}}}, "is no hash"},
		"many secrets":                 {broker.Client{ID: "a", Auth: broker.ClientAuth{Method: "client_secret_post", SecretHashes: append(append(hash, hash...), append(hash, append(hash, hash...)...)...)}}, "more than four"},
	} {
		if err := tc.c.Check(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, i := range map[string]broker.Issuer{
		"a use that is unknown":    {Issuer: "https://x", Accept: []string{"saml"}},
		"a query":                  {Issuer: "https://x?y"},
		"sessions that end before": {Issuer: "https://x", MaxSubjectAge: scopes.Duration{Duration: 2 * time.Hour}, MaxSessionAge: scopes.Duration{Duration: time.Hour}},
	} {
		if err := i.Check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	c := func(id string, identities map[string]string) *broker.Client {
		return &broker.Client{ID: id, Auth: secretAuth, Identities: identities}
	}
	iss := func(id string) *broker.Issuer { return &broker.Issuer{Issuer: id} }
	for name, tc := range map[string]struct {
		clients []*broker.Client
		agents  []*broker.Agent
		issuers []*broker.Issuer
		want    string
	}{
		"a client twice":                   {[]*broker.Client{c("a", nil), c("a", nil)}, nil, nil, "there twice"},
		"an agent with a client's name":    {[]*broker.Client{c("a", nil)}, []*broker.Agent{{Name: "a"}}, nil, "has this name"},
		"an issuer twice":                  {nil, nil, []*broker.Issuer{iss("https://x"), iss("https://x")}, "there twice"},
		"ourselves as an issuer":           {nil, nil, []*broker.Issuer{iss(self)}, "our own"},
		"an identity at an unknown issuer": {[]*broker.Client{c("a", map[string]string{"https://y": "z"})}, nil, nil, "no configured issuer"},
		"one identity of two":              {[]*broker.Client{c("a", map[string]string{"https://x": "z"}), c("b", map[string]string{"https://x": "z"})}, nil, []*broker.Issuer{iss("https://x")}, "already"},
		"a delegate that does not exist":   {nil, nil, []*broker.Issuer{{Issuer: "https://x", Delegates: []string{"a"}}}, "there is no client"},
		"an actor that does not exist":     {nil, nil, []*broker.Issuer{{Issuer: "https://x", Actors: map[string]string{"s": "a"}}}, "no agent or client"},
	} {
		if _, err := broker.NewRegistry(self, tc.clients, tc.agents, tc.issuers, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var use broker.ScopeUse
	if err := use.UnmarshalText([]byte("all")); err == nil {
		t.Error("scopes: all")
	}
	if _, err := broker.New(broker.Config{}, broker.Deps{}); err == nil {
		t.Error("a broker of nothing")
	}
}
