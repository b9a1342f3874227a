package aws_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/scopes/grant"
)

const theLease = "lease0123456789abcdefghi"

// asked is a mint as the broker asks for it.
func asked(t *testing.T, p broker.Provider, g grant.Grant) broker.MintRequest {
	t.Helper()
	rendered, err := p.Render(g)
	if err != nil {
		t.Fatal(err)
	}
	return broker.MintRequest{
		Lease: theLease, Grant: g, Rendered: rendered, Expires: time.Now().Add(20 * time.Minute),
		Subject: "https://idp.example#ada", Pseudonym: "p5eudonym", Actor: "claude desktop#1", Client: "files-mcp",
		Note: func([]byte) error { return nil },
	}
}

func reading(t testing.TB) grant.Grant {
	return parse(t, objectsOf(entry([]any{"get", "list"}, "warehouse", "a/")))
}

func TestASessionSaysWhomItIsFor(t *testing.T) {
	i := newIssuer(t)
	for name, settings := range map[string]func(string) broker.Provider{
		"by keys":  func(endpoint string) broker.Provider { return opened(t, byKeys(endpoint), deps(i, time.Now)) },
		"by token": func(endpoint string) broker.Provider { return opened(t, byToken(endpoint), deps(i, time.Now)) },
	} {
		t.Run(name, func(t *testing.T) {
			a := cloud(t, i)
			p := settings(a.URL)
			m, err := p.Mint(t.Context(), asked(t, p, reading(t)))
			if err != nil {
				t.Fatal(err)
			}
			s := a.Sessions()[0]
			tags := map[string]string{"stint-subject": "p5eudonym", "stint-agent": "claude desktop_1", "stint-client": "files-mcp", "stint-lease": theLease}
			for key, want := range tags {
				if s.Tags[key] != want || !slices.Contains(s.Transitive, key) {
					t.Errorf("%s is %q, transitive are %q", key, s.Tags[key], s.Transitive)
				}
			}
			if s.SourceIdentity != "p5eudonym" || s.Name != theLease || len(s.Tags) != len(tags) {
				t.Errorf("%+v", s)
			}
			if strings.Contains(s.Policy+s.SourceIdentity, "ada") {
				t.Error("the subject itself is in the request")
			}
			if m.Evidence != broker.Asserted || m.Upstream["arn"] != s.ARN || !m.Expires.Equal(s.Expires) {
				t.Errorf("%+v", m)
			}
			if d, err := read(m); err != nil || d.AccessKey != s.Key || d.SecretKey != s.Secret || d.SessionToken != s.Token {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
}

// Tags, source identity and name are never given up for room: what does not fit is
// refused.
func TestWhatIsTooLargeIsRefusedAndIdentityIsNeverDropped(t *testing.T) {
	i := newIssuer(t)
	a := cloud(t, i)
	a.MaxPacked = 200
	p := opened(t, byKeys(a.URL), deps(i, time.Now))
	var noted []byte
	r := asked(t, p, reading(t))
	r.Note = func(h []byte) error { noted = slices.Clone(h); return nil }
	_, err := p.Mint(t.Context(), r)
	if e := broker.AsError(err); err == nil || e.Code != broker.BadScope || strings.Contains(e.Public, "reach nobody") {
		t.Errorf("%+v", err)
	}
	if n := len(a.Sessions()); n != 0 {
		t.Errorf("%d sessions were made all the same", n)
	}
	if o, err := p.Revoke(t.Context(), broker.RevokeLease{Lease: theLease, Handle: noted, Expires: r.Expires}); err != nil || o.State != broker.AlreadyDead {
		t.Errorf("what was refused is said to be %s, %v", o.State, err)
	}
}

func TestRefusalsAreTold(t *testing.T) {
	i := newIssuer(t)
	for code, want := range map[string]broker.Code{
		"AccessDenied": broker.Unavailable, "MalformedPolicyDocument": broker.BadScope, "PackedPolicyTooLarge": broker.BadScope,
		"ExpiredTokenException": broker.Unavailable, "RegionDisabledException": broker.Unavailable, "IDPRejectedClaim": broker.Unavailable,
		"InvalidIdentityToken": broker.Unavailable, "IDPCommunicationError": broker.Unavailable, "Throttling": broker.Limited,
		"SomethingNobodyHasHeardOf": broker.Unavailable,
	} {
		t.Run(code, func(t *testing.T) {
			a := cloud(t, i)
			a.Refuse = code
			p := opened(t, byToken(a.URL), deps(i, time.Now))
			_, err := p.Mint(t.Context(), asked(t, p, reading(t)))
			if got := broker.CodeOf(err); err == nil || got != want {
				t.Errorf("%s: %v", got, err)
			}
			if err != nil && strings.Contains(err.Error(), "reach nobody") {
				t.Errorf("the upstream's own text: %v", err)
			}
		})
	}
}

// An answer that cannot be read is one to a session that there may be.
func TestAnswersAreReadStrictly(t *testing.T) {
	i := newIssuer(t)
	const creds = `<Credentials><AccessKeyId>A</AccessKeyId><SecretAccessKey>B</SecretAccessKey><SessionToken>C</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>`
	wrap := func(inner string) string {
		return `<AssumeRoleResponse><AssumeRoleResult>` + inner + `</AssumeRoleResult></AssumeRoleResponse>`
	}
	for name, body := range map[string]string{
		"nothing":                     "",
		"no XML":                      "keys: none",
		"JSON":                        `{"Credentials":{}}`,
		"another answer":              `<GetSessionTokenResponse><AssumeRoleResult>` + creds + `</AssumeRoleResult></GetSessionTokenResponse>`,
		"keys twice":                  wrap(creds + creds),
		"a result twice":              strings.Replace(wrap(creds), "</AssumeRoleResponse>", "<AssumeRoleResult/></AssumeRoleResponse>", 1),
		"a document type":             `<!DOCTYPE x [<!ENTITY e "y">]>` + wrap(creds),
		"more after the end":          wrap(creds) + "<x/>",
		"no session token":            wrap(strings.Replace(creds, "<SessionToken>C</SessionToken>", "", 1)),
		"a key that is two":           wrap(strings.Replace(creds, "<AccessKeyId>", "<AccessKeyId>Z</AccessKeyId><AccessKeyId>", 1)),
		"no end":                      wrap(strings.Replace(creds, "2099-01-01T00:00:00Z", "soon", 1)),
		"keys, and nobody's":          wrap(creds),
		"deeper than any answer":      wrap(strings.Repeat("<a>", 50) + strings.Repeat("</a>", 50)),
		"an entity that is not known": wrap(strings.Replace(creds, ">A<", ">&e;<", 1)),
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }))
			defer s.Close()
			p := opened(t, byKeys(s.URL), deps(i, time.Now))
			var noted []byte
			r := asked(t, p, reading(t))
			r.Note = func(h []byte) error { noted = slices.Clone(h); return nil }
			if m, err := p.Mint(t.Context(), r); err == nil {
				t.Fatalf("minted %+v", m)
			}
			want := broker.UnknownUntil
			if name == "keys, and nobody's" { // which there are
				want = broker.NotRevocableUntil
			}
			o, err := p.Revoke(t.Context(), broker.RevokeLease{Lease: theLease, Handle: noted, Expires: r.Expires})
			if err != nil || o.State != want || o.Until.Before(time.Now().Add(15*time.Minute)) {
				t.Errorf("%+v, %v", o, err)
			}
		})
	}
}

// wire keeps what is sent.
func wire(t *testing.T) (endpoint string, sent func() []url.Values) {
	var mu sync.Mutex
	var all []url.Values
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		mu.Lock()
		defer mu.Unlock()
		all = append(all, r.PostForm)
		w.WriteHeader(http.StatusInternalServerError)
	}))
	t.Cleanup(s.Close)
	return s.URL, func() []url.Values { mu.Lock(); defer mu.Unlock(); return all }
}

// A session without a policy has everything that the role has.
func TestNoRequestIsWithoutAPolicy(t *testing.T) {
	i := newIssuer(t)
	endpoint, sent := wire(t)
	p := opened(t, byKeys(endpoint), deps(i, time.Now))
	r := asked(t, p, reading(t))
	for name, rendered := range map[string]string{
		"nothing": "", "null": "null", "an empty object": "{}", "no statements": `{"Version":"2012-10-17","Statement":[]}`,
		"one that denies": `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":["s3:GetObject"],"Resource":["arn:aws:s3:::x/*"]}]}`,
		"one for all":     `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["*"],"Resource":["*"]}]}`,
	} {
		r.Rendered = []byte(rendered)
		if _, err := p.Mint(t.Context(), r); err == nil {
			t.Errorf("%s: minted", name)
		}
	}
	if n := len(sent()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
	r = asked(t, p, reading(t))
	if _, err := p.Mint(t.Context(), r); !errors.Is(err, upstream.ErrUncertain) || broker.CodeOf(err) != broker.Unavailable {
		t.Errorf("%v", err)
	}
	if got := sent(); len(got) != 1 || got[0].Get("Policy") != string(r.Rendered) {
		t.Errorf("sent was %v: once, and as it was rendered", got)
	}
}

func TestNothingIsAskedForThatCannotBeEnded(t *testing.T) {
	i := newIssuer(t)
	endpoint, sent := wire(t)
	p := opened(t, byToken(endpoint), deps(i, time.Now))
	for name, change := range map[string]func(*broker.MintRequest){
		"a handle that cannot be kept":           func(r *broker.MintRequest) { r.Note = func([]byte) error { return errors.New("no room") } },
		"less than a quarter of an hour":         func(r *broker.MintRequest) { r.Expires = time.Now().Add(15 * time.Minute) },
		"a pseudonym that is no source identity": func(r *broker.MintRequest) { r.Pseudonym = "https://idp.example#ada" },
		"a lease that is no session's name":      func(r *broker.MintRequest) { r.Lease = "a/b" },
	} {
		r := asked(t, p, reading(t))
		change(&r)
		if _, err := p.Mint(t.Context(), r); err == nil {
			t.Errorf("%s: minted", name)
		}
	}
	if n := len(sent()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

// The external id is for roles that somebody else owns.
func TestExternalIDs(t *testing.T) {
	i := newIssuer(t)
	a := cloud(t, i)
	a.Roles[dataRole] = doubles.AWSRole{ID: "AROADATA", Longest: time.Hour, ExternalID: "agreed/1"}
	for id, ok := range map[string]bool{"agreed/1": true, "another": false, "": false} {
		c := byKeys(a.URL)
		c.ExternalID = id
		p := opened(t, c, deps(i, time.Now))
		if _, err := p.Mint(t.Context(), asked(t, p, reading(t))); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
}
