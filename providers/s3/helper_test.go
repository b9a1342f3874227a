package s3_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/internal/upstream"
	"github.com/stint-dev/stint/providers/providertest"
	"github.com/stint-dev/stint/providers/s3"
	"github.com/stint-dev/stint/scopes/grant"
)

// The world of the random grants, and of the acts that tell them apart.
var (
	buckets  = []string{"warehouse", "archive"}
	prefixes = []string{"", "a/", "a/b/", "ab/", "c d+e/"}
)

// store is a MinIO with objects, and a user whose keys a provider has.
type store struct {
	m    *testbed.MinIOServer
	user testbed.AWSKeys
}

func newStore(t *testing.T) *store {
	t.Helper()
	s := &store{m: testbed.MinIO(t, testbed.MinIOSetup{IfCached: true})}
	var objects []string
	for _, p := range prefixes {
		objects = append(objects, escaped(p+"k"), escaped(p+"gone"))
	}
	for _, b := range append([]string{"secret"}, buckets...) {
		s.m.Bucket(t, b, objects...)
	}
	s.user = s.m.User(t, "stint", map[string]any{"Version": "2012-10-17", "Statement": []any{map[string]any{
		"Effect": "Allow", "Action": []string{"s3:*"},
		"Resource": []string{"arn:aws:s3:::warehouse", "arn:aws:s3:::warehouse/*", "arn:aws:s3:::archive", "arn:aws:s3:::archive/*"},
	}}})
	return s
}

// escaped writes a path as it is signed.
func escaped(path string) string {
	return strings.ReplaceAll((&url.URL{Path: path}).EscapedPath(), "+", "%2B")
}

func (s *store) config(kind string) s3.Config {
	return s3.Config{Endpoint: s.m.Addr, STS: kind, AccessKey: "vault:id", SecretKey: "vault:key"}
}

func opened(t testing.TB, c s3.Config, k testbed.AWSKeys) broker.Provider {
	t.Helper()
	p, err := s3.Open(t.Context(), "store", func(v any) error { *v.(*s3.Config) = c; return nil }, upstream.Deps{
		Now: time.Now, Log: slog.New(slog.DiscardHandler),
		HTTP: func([]string, []byte) (*http.Client, error) { return &http.Client{Timeout: 20 * time.Second}, nil },
		Secret: func(_ context.Context, ref string) (secret.String, error) {
			return secret.New(map[string]string{"vault:id": k.ID, "vault:key": k.Secret + "\n"}[ref]), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func parse(t testing.TB, v any) grant.Grant {
	t.Helper()
	g, err := s3.Describe().Schema.ParseValue(v)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func at(verb any, resource string) any { return map[string]any{"actions": verb, "resource": resource} }

func objects(entries ...any) any { return map[string]any{"objects": entries} }

func pick(r *mrand.Rand, from ...string) string { return from[r.IntN(len(from))] }

// some is a random grant of several things.
func some(t testing.TB) func(r *mrand.Rand) grant.Grant {
	return func(r *mrand.Rand) grant.Grant {
		var list []any
		for range 1 + r.IntN(4) {
			verb, where := pick(r, "get", "put", "delete", "list"), pick(r, buckets...)+"/"+pick(r, prefixes...)
			if verb != "list" && r.IntN(3) == 0 {
				where += "k"
			}
			list = append(list, at(verb, where))
		}
		return parse(t, objects(list...))
	}
}

// one is a random grant that a URL can have.
func one(t testing.TB) func(r *mrand.Rand) grant.Grant {
	return func(r *mrand.Rand) grant.Grant {
		return parse(t, objects(at(pick(r, "get", "put", "delete"), pick(r, buckets...)+"/"+pick(r, prefixes...)+pick(r, "k", "new", "gone"))))
	}
}

// act is something to do at the store.
type act struct{ verb, bucket, key string }

func (a act) String() string { return a.verb + " " + a.bucket + "/" + a.key }

func (a act) method() string {
	return map[string]string{"get": "GET", "put": "PUT", "delete": "DELETE", "list": "GET"}[a.verb]
}

func acts(t testing.TB, list bool) (all map[string]act, least map[string]grant.Grant) {
	all, least = map[string]act{}, map[string]grant.Grant{}
	add := func(a act) { all[a.String()], least[a.String()] = a, parse(t, objects(at(a.verb, a.bucket+"/"+a.key))) }
	for _, b := range buckets {
		for _, p := range prefixes {
			add(act{"get", b, p + "k"})
			add(act{"put", b, p + "new"})
			add(act{"put", b, p + "k"})
			add(act{"delete", b, p + "gone"})
			if list {
				add(act{"list", b, p})
			}
		}
	}
	return all, least
}

// answered reads what the store thinks of a request.
func answered(what string, status int, answer []byte, err error) error {
	switch {
	case err != nil:
		return err
	case status == http.StatusForbidden:
		return fmt.Errorf("%w: %s", providertest.ErrRefused, answer)
	case status == http.StatusNotFound && strings.Contains(string(answer), "NoSuchKey"):
		return nil // it may, and there is nothing any more
	case status >= 300:
		return fmt.Errorf("%s: status %d: %s", what, status, answer)
	}
	return nil
}

// keysInUse are temporary keys in use.
type keysInUse struct {
	s    *store
	keys testbed.AWSKeys
	all  map[string]act
}

func (k *keysInUse) Close() {}

func (k *keysInUse) Do(ctx context.Context, name string) error {
	a := k.all[name]
	path, body := escaped("/"+a.bucket+"/"+a.key), []byte(nil)
	if a.verb == "list" {
		path = "/" + a.bucket + "?list-type=2&prefix=" + strings.ReplaceAll(url.QueryEscape(a.key), "+", "%20")
	} else if a.verb == "put" {
		body = []byte("x")
	}
	status, answer, err := k.s.m.Do(ctx, k.keys, a.method(), path, body)
	return answered(name, status, answer, err)
}

// urlInUse is a presigned URL in use, for what it is for and for everything else.
type urlInUse struct {
	s   *store
	doc document
	all map[string]act
}

func (u *urlInUse) Close() {}

func (u *urlInUse) Do(ctx context.Context, name string) error {
	a := u.all[name]
	where, err := url.Parse(u.doc.URL)
	if err != nil {
		return err
	}
	own := u.doc.Method == a.method() && where.Path == "/"+a.bucket+"/"+a.key
	if !own { // with the signature of another
		where.Path, where.RawPath = "/"+a.bucket+"/"+a.key, escaped("/"+a.bucket+"/"+a.key)
	}
	r, err := http.NewRequestWithContext(ctx, a.method(), where.String(), strings.NewReader(map[bool]string{true: "x"}[a.verb == "put"]))
	if err != nil {
		return err
	}
	if own {
		r.URL, err = url.Parse(u.doc.URL)
	}
	if err != nil {
		return err
	}
	status, answer, err := u.s.m.Ask(r)
	return answered(name, status, answer, err)
}

type document struct {
	AccessKey    string `json:"access_key"`
	SecretKey    string `json:"secret_key"`
	SessionToken string `json:"session_token"`
	Endpoint     string `json:"endpoint"`
	Method       string `json:"method"`
	URL          string `json:"url"`
}

func read(m *broker.Minted) (d document, err error) {
	return d, json.Unmarshal([]byte(m.Document.Reveal()), &d)
}

// claims are those of a session token of MinIO's.
func claims(token string) (c struct {
	Exp    int64  `json:"exp"`
	Policy string `json:"sessionPolicy"`
}, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, errors.New("the session token is no JWT")
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	return c, errors.Join(err, json.Unmarshal(text, &c))
}

// within asks MinIO's engine about policies.
func within(p broker.Provider) func(context.Context, grant.Grant, grant.Grant) (bool, error) {
	var requests []act
	for _, b := range append([]string{"warehous", "warehousea"}, buckets...) {
		for _, key := range []string{"k", "kk", "a/k", "a/kk", "a/b/k", "ab/k", "c d+e/k", "b/k", "aa", "a/bk"} {
			for _, verb := range []string{"get", "put", "delete"} {
				requests = append(requests, act{verb, b, key})
			}
		}
		for _, prefix := range append([]string{"a", "a/b", "b/", "a/b/c/"}, prefixes...) {
			requests = append(requests, act{"list", b, prefix})
		}
	}
	actions := map[string]string{"get": "s3:GetObject", "put": "s3:PutObject", "delete": "s3:DeleteObject", "list": "s3:ListBucket"}
	allowed := func(g grant.Grant) ([]bool, error) {
		text, err := p.Render(g)
		if err != nil {
			return nil, err
		}
		allows, err := doubles.Engine(string(text))
		if err != nil {
			return nil, err
		}
		out := make([]bool, len(requests))
		for i, a := range requests {
			key, conditions := a.key, map[string][]string(nil)
			if a.verb == "list" {
				if key, conditions = "", nil; a.key != "" {
					conditions = map[string][]string{"prefix": {a.key}}
				}
			}
			out[i] = allows(actions[a.verb], a.bucket, key, conditions)
		}
		return out, nil
	}
	return func(_ context.Context, x, y grant.Grant) (bool, error) {
		of, err1 := allowed(x)
		by, err2 := allowed(y)
		for i := range of {
			if of[i] && !by[i] {
				return false, errors.Join(err1, err2)
			}
		}
		return true, errors.Join(err1, err2)
	}
}

// generous is a store that asks MinIO for more than it was asked for.
func generous(t testing.TB, s *store, change func(f url.Values)) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		f, _ := url.ParseQuery(string(body))
		change(f)
		body = []byte(f.Encode())
		again, err := http.NewRequestWithContext(r.Context(), http.MethodPost, s.m.Addr+"/", bytes.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		again.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		sum := sha256.Sum256(body)
		keys := awssdk.Credentials{AccessKeyID: s.user.ID, SecretAccessKey: s.user.Secret}
		if err := v4.NewSigner().SignHTTP(r.Context(), keys, again, hex.EncodeToString(sum[:]), "sts", "us-east-1", time.Now()); err != nil {
			t.Error(err)
		}
		status, answer, err := s.m.Ask(again)
		if err != nil || status != http.StatusOK {
			t.Errorf("status %d, %v: %s", status, err, answer)
		}
		w.WriteHeader(status)
		_, _ = w.Write(answer)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// urlEnds reads when a URL ends, which it says itself.
func urlEnds(text string) (time.Time, error) {
	u, err := url.Parse(text)
	if err != nil {
		return time.Time{}, err
	}
	began, err1 := time.Parse("20060102T150405Z", u.Query().Get("X-Amz-Date"))
	life, err2 := strconv.Atoi(u.Query().Get("X-Amz-Expires"))
	return began.Add(time.Duration(life) * time.Second), errors.Join(err1, err2)
}

func nobody(context.Context) ([]string, error) { return nil, nil } // what is made ends by itself

func parsed(t testing.TB, list []any) (out []grant.Grant) {
	for _, v := range list {
		out = append(out, parse(t, v))
	}
	return slices.Clip(out)
}
