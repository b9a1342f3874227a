package aws_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	mrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/aws"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/scopes/grant"
)

const (
	dataRole = "arn:aws:iam::123456789012:role/data/stint-data"
	denyRole = "arn:aws:iam::123456789012:role/stint-revoker"
)

// issuer signs as Stint does, and shows its keys as Stint's metadata does.
type issuer struct {
	key *ecdsa.PrivateKey
	url string
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	s := httptest.NewServer(i)
	t.Cleanup(s.Close)
	i.url = s.URL
	return i
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := map[string]any{
		"issuer": i.url, "jwks_uri": i.url + "/jwks", "token_endpoint": i.url + "/token",
		"id_token_signing_alg_values_supported": []string{"ES256"}, "response_types_supported": []string{"id_token"},
	}
	if r.URL.Path == "/jwks" {
		point := func(n *big.Int) string { return base64.RawURLEncoding.EncodeToString(n.FillBytes(make([]byte, 32))) }
		answer = map[string]any{"keys": []any{map[string]any{
			"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "one", "x": point(i.key.X), "y": point(i.key.Y),
		}}}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (i *issuer) sign(_ context.Context, claims map[string]any) (secret.String, error) {
	c := jwt.MapClaims(maps.Clone(claims))
	c["iss"], c["iat"] = i.url, time.Now().Unix()
	t := jwt.NewWithClaims(jwt.SigningMethodES256, c)
	t.Header["kid"] = "one"
	text, err := t.SignedString(i.key)
	return secret.New(text), err
}

func (i *issuer) verify(token string) (map[string]any, error) {
	c := jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(token, c, func(*jwt.Token) (any, error) { return &i.key.PublicKey, nil },
		jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer(i.url))
	return c, err
}

// cloud is a double of AWS with the roles of these tests.
func cloud(t *testing.T, i *issuer) *doubles.AWS {
	t.Helper()
	a := doubles.NewAWS(t)
	a.Verify = i.verify
	a.Keys["AKIASTINT"] = "the-key-of-stint"
	a.Roles[dataRole] = doubles.AWSRole{ID: "AROADATA", Longest: 2 * time.Hour}
	a.Roles[denyRole] = doubles.AWSRole{ID: "AROADENY", Longest: time.Hour}
	return a
}

// kept is a store of secrets in memory.
type kept struct {
	mu       sync.Mutex
	fields   map[string]map[string]secret.String
	versions map[string]int
}

func (k *kept) Read(_ context.Context, path string) (map[string]secret.String, int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.versions[path] == 0 {
		return nil, 0, broker.ErrNotFound
	}
	return k.fields[path], k.versions[path], nil
}

func (k *kept) Write(_ context.Context, path string, fields map[string]secret.String, version int) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.versions[path] != version {
		return 0, broker.ErrConflict
	}
	k.fields[path] = fields
	k.versions[path]++
	return k.versions[path], nil
}

type open struct{}

func (open) Seal(plain []byte, _ string) ([]byte, error)  { return plain, nil }
func (open) Open(sealed []byte, _ string) ([]byte, error) { return sealed, nil }

func deps(i *issuer, now func() time.Time) upstream.Deps {
	store := &kept{fields: map[string]map[string]secret.String{}, versions: map[string]int{}}
	return upstream.Deps{
		Self: i.url, Assert: i.sign, Now: now, Log: slog.New(slog.DiscardHandler),
		HTTP: func([]string, []byte) (*http.Client, error) { return &http.Client{Timeout: 20 * time.Second}, nil },
		Secret: func(_ context.Context, ref string) (secret.String, error) {
			return secret.New(map[string]string{"vault:id": "AKIASTINT", "vault:key": "the-key-of-stint\n"}[ref]), nil
		},
		Parents: upstream.NewParents(upstream.ParentConfig{
			Store: store, Now: now,
			Sealer: func(context.Context) (broker.Sealer, error) { return open{}, nil },
			Index:  func(_ context.Context, s string) (string, error) { return "x", nil },
		}),
	}
}

// byKeys and byToken are the two ways in.
func byToken(endpoint string) aws.Config {
	return aws.Config{Role: dataRole, Region: "eu-west-1", Endpoint: endpoint}
}

func byKeys(endpoint string) aws.Config {
	c := byToken(endpoint)
	c.Auth, c.AccessKey, c.SecretKey = "assume_role", "vault:id", "vault:key"
	return c
}

func denying(c aws.Config) aws.Config {
	c.Revocation = "deny_policy"
	c.Deny = aws.Deny{Role: denyRole, Endpoint: c.Endpoint, Settle: upstream.Duration{Duration: time.Nanosecond}}
	return c
}

func opened(t *testing.T, c aws.Config, d upstream.Deps) broker.Provider {
	t.Helper()
	p, err := aws.Open(t.Context(), "cloud", func(v any) error { *v.(*aws.Config) = c; return nil }, d)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The world of the random grants, and of the acts that tell them apart.
var (
	buckets  = []string{"warehouse", "archive"}
	prefixes = []string{"", "a/", "a/b/", "ab/", "c d/"}
	keys     = []string{"k", "a/k", "a/b/k", "ab/k", "c d/k", "b/k"}
	tagged   = []string{"arn:aws:s3:::warehouse/a/", "arn:aws:s3:::warehouse/a/k", "arn:aws:s3:::archive/"}
)

func must(t testing.TB, g grant.Grant, err error) grant.Grant {
	if err != nil {
		t.Helper()
		t.Fatal(err)
	}
	return g
}

func parse(t testing.TB, v any) grant.Grant {
	t.Helper()
	g, err := aws.Describe().Schema.ParseValue(v)
	return must(t, g, err)
}

func objectsOf(entries ...any) any { return map[string]any{"s3": entries, "actions": []any{}} }

func entry(verb any, bucket, prefix string) any {
	return map[string]any{"verbs": verb, "bucket": bucket, "prefix": prefix}
}

// some is a random grant.
func some(t testing.TB) func(r *mrand.Rand) grant.Grant {
	pick := func(r *mrand.Rand, from []string) string { return from[r.IntN(len(from))] }
	return func(r *mrand.Rand) grant.Grant {
		for {
			s3, actions := []any{}, []any{}
			for range r.IntN(4) {
				s3 = append(s3, entry(pick(r, []string{"get", "put", "delete", "list"}), pick(r, buckets), pick(r, prefixes)))
			}
			for range r.IntN(3) {
				actions = append(actions, map[string]any{"actions": pick(r, []string{"s3:GetObjectTagging", "s3:PutObjectTagging"}), "resource": pick(r, tagged)})
			}
			if g := parse(t, map[string]any{"s3": s3, "actions": actions}); !g.IsNothing() {
				return g
			}
		}
	}
}

// act is something to do at S3.
type act struct {
	action, bucket, key string
	prefix              string
}

func (a act) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s/%s %s", a.action, a.bucket, a.key, a.prefix))
}

// acts are all there are, each with the least grant that allows it. Some name what is
// beside what they are at, so that the least grant is exact enough to tell.
func acts(t testing.TB) (map[string]act, map[string]grant.Grant) {
	all, least := map[string]act{}, map[string]grant.Grant{}
	add := func(a act, g any) {
		all[a.String()] = a
		least[a.String()] = parse(t, g)
	}
	for _, bucket := range buckets {
		for _, p := range prefixes {
			add(act{action: "s3:GetObject", bucket: bucket, key: p + "k"}, objectsOf(entry("get", bucket, p)))
			add(act{action: "s3:PutObject", bucket: bucket, key: p + "new"}, objectsOf(entry("put", bucket, p)))
			add(act{action: "s3:DeleteObject", bucket: bucket, key: p + "gone"}, objectsOf(entry("delete", bucket, p)))
			add(act{action: "s3:ListBucket", bucket: bucket, prefix: p}, objectsOf(entry("list", bucket, p)))
		}
	}
	for _, where := range []string{"warehouse/a/k", "warehouse/a/b/k", "archive/a/k"} {
		bucket, key, _ := strings.Cut(where, "/")
		for _, action := range []string{"s3:GetObjectTagging", "s3:PutObjectTagging"} {
			add(act{action: action, bucket: bucket, key: key},
				map[string]any{"s3": []any{}, "actions": []any{map[string]any{"actions": action, "resource": "arn:aws:s3:::" + where}}})
		}
	}
	return all, least
}

// doc is a credential.
type doc struct {
	AccessKey    string `json:"access_key"`
	SecretKey    string `json:"secret_key"`
	SessionToken string `json:"session_token"`
}

func read(m *broker.Minted) (d doc, err error) {
	return d, json.Unmarshal([]byte(m.Document.Reveal()), &d)
}

// allowed are the numbers of the requests that a grant allows, by the policy that it is
// rendered as and an engine that is not ours.
func allowed(p broker.Provider, g grant.Grant, of []act) (map[int]bool, error) {
	text, err := p.Render(g)
	if err != nil {
		return nil, err
	}
	allows, err := doubles.Engine(string(text))
	if err != nil {
		return nil, err
	}
	out := map[int]bool{}
	for i, a := range of {
		if allows(a.action, a.bucket, a.key, a.conditions()) {
			out[i] = true
		}
	}
	return out, nil
}

func (a act) conditions() map[string][]string {
	if a.action != "s3:ListBucket" || a.prefix == "" {
		return nil
	}
	return map[string][]string{"prefix": {a.prefix}}
}

// within asks the engine about every act there is, and some beside them.
func within(p broker.Provider) func(context.Context, grant.Grant, grant.Grant) (bool, error) {
	requests := requests()
	return func(_ context.Context, x, y grant.Grant) (bool, error) {
		of, err1 := allowed(p, x, requests)
		by, err2 := allowed(p, y, requests)
		for i := range of {
			if !by[i] {
				return false, errors.Join(err1, err2)
			}
		}
		return true, errors.Join(err1, err2)
	}
}

func requests() (out []act) {
	for _, bucket := range append([]string{"warehous", "warehousea"}, buckets...) {
		for _, key := range append([]string{"aa", "a/bk", "c/k", "a/b/c/k"}, keys...) {
			for _, action := range []string{"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:GetObjectTagging", "s3:PutObjectTagging"} {
				out = append(out, act{action: action, bucket: bucket, key: key})
			}
		}
		for _, prefix := range append([]string{"a", "a/b", "b/", "a/b/c/"}, prefixes...) {
			out = append(out, act{action: "s3:ListBucket", bucket: bucket, prefix: prefix})
		}
	}
	return out
}

// atDouble is a credential in use at the double.
type atDouble struct {
	a     *doubles.AWS
	token string
	all   map[string]act
}

func (s *atDouble) Do(_ context.Context, name string) error {
	a := s.all[name]
	ok, err := s.a.Allowed(s.token, a.action, a.bucket, a.key, a.conditions())
	if err == nil && !ok {
		err = providertest.ErrRefused
	}
	return err
}

func (s *atDouble) Close() {}

// harness is the suite's, at the double.
func harness(t *testing.T, a *doubles.AWS, p broker.Provider) providertest.Harness {
	all, least := acts(t)
	session := func(m *broker.Minted) (*doubles.AWSSession, error) {
		d, err := read(m)
		for _, s := range a.Sessions() {
			if s.Token == d.SessionToken && s.Key == d.AccessKey && s.Secret == d.SecretKey {
				return s, err
			}
		}
		return nil, errors.Join(errors.New("no such session"), err)
	}
	return providertest.Harness{
		Provider: p, Subject: "https://idp.example#ada", Grant: some(t), Acts: least,
		Inexpressible: inexpressible(t), Within: within(p), Pairs: 3200,
		Upstream: "our double of STS and IAM", Oracle: "MinIO's policy engine",
		Open: func(_ context.Context, m *broker.Minted) (providertest.Session, error) {
			s, err := session(m)
			if err != nil {
				return nil, err
			}
			if doc, _ := a.Inline("stint-data", "stint-deny"); strings.Contains(doc, `"*:`+s.Name+`"`) {
				return nil, providertest.ErrRefused
			}
			return &atDouble{a: a, token: s.Token, all: all}, nil
		},
		Ends: func(_ context.Context, m *broker.Minted) (time.Time, error) {
			s, err := session(m)
			if err != nil {
				return time.Time{}, err
			}
			return s.Expires, nil
		},
		Remains: func(context.Context) ([]string, error) { return nil, nil }, // sessions end by themselves
	}
}

func inexpressible(t testing.TB) (out []grant.Grant) {
	long := make([]any, 0, 60)
	for i := range 60 {
		long = append(long, entry("get", "warehouse", fmt.Sprintf("a-rather-long-prefix-number-%d/", i)))
	}
	arn := func(action, resource string) any {
		return map[string]any{"s3": []any{}, "actions": []any{map[string]any{"actions": action, "resource": resource}}}
	}
	for _, v := range []any{
		"*", map[string]any{"s3": "*", "actions": []any{}}, map[string]any{"s3": []any{}, "actions": "*"},
		objectsOf(long...), objectsOf(entry("get", "Warehouse", "")), objectsOf(entry("get", "ware/house", "")), objectsOf(entry("list", "a/b", "")),
		objectsOf(entry("get", "warehouse", "a/../b/")), objectsOf(entry("get", "warehouse", "a//")), objectsOf(entry("get", "warehouse", "/")),
		objectsOf(entry("get", "warehouse", "ä/")), objectsOf(entry("get", "warehouse", `a"/`)),
		arn("s3:GetObject", "arn:aws:s3:::warehouse/k"), arn("s3:getobject", "arn:aws:s3:::warehouse/k"), arn("s3:GetObjectTagging", "*"),
		arn("dynamodb:PutItem", "*"), arn("everything", "arn:aws:s3:::x"), arn("s3:GetObjectTagging", "arn:aws:"), arn("s3:GetObjectTagging", "arn:aws-cn:s3:::x/y"),
		arn("s3:GetObjectTagging", "warehouse/"),
	} {
		out = append(out, parse(t, v))
	}
	return out
}
