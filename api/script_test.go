package api_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
)

// TestScripts plays testdata/*.txtar against a server. A script begins with a
// sentence that says what it shows. Its sections are:
//
//	-- token NAME ISSUER TYP --     a token, as JSON of the claims that differ from alice's
//	-- assertion NAME --            the same for a client assertion of the gateway
//	-- with --                      headers, a blank line, parameters of all requests that follow
//	-- request WHAT IT SHOWS --     METHOD [ops:|socket:]PATH, headers, a blank line, parameters
//	-- response --                  status, headers, a blank line, body
//	-- claims [NAME] --             of the access_token just issued, or of a text kept before
//	-- do --                        clock DURATION | store down | code down | code up;
//	                                clock+ if nothing will be current afterwards
//
// In a request a line NAME=VALUE replaces what "with" has under that name, and
// !NAME leaves it out. With a Content-Type given the body is sent as it is
// written. {{NAME}} stands for a token or for what was kept; {{exchange}},
// {{type T}}, {{basic ID [SECRET]}} and {{secret}} for what they say. In a
// response "{{*}}" is any value, and "{{=NAME}}" any that is kept. Members that
// are not written must not be there.
func TestScripts(t *testing.T) {
	t.Parallel()
	files := must(filepath.Glob("testdata/*.txtar"))(t)
	if len(files) < 28 {
		t.Fatalf("only %d scripts", len(files))
	}
	doc := loadDocument(t)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive := must(txtar.ParseFile(file))(t)
			if len(bytes.TrimSpace(archive.Comment)) == 0 {
				t.Fatal("a script begins with a sentence")
			}
			s := &script{world: newWorld(t, options{}), doc: doc, vars: map[string]string{"exchange": exchange}}
			for _, section := range archive.Files {
				s.play(section.Name, strings.TrimSpace(string(section.Data)))
			}
		})
	}
}

// script is a script that is played.
type script struct {
	*world
	doc    *document
	vars   map[string]string
	header http.Header // of "with"
	params [][2]string
	what   string // the request that was sent
	got    *answer
}

// answer is a response that was read.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (s *script) play(name, text string) {
	s.Helper()
	words := strings.Fields(name)
	switch strings.TrimSuffix(words[0], ":") {
	case "token":
		s.vars[words[1]] = s.token(words[2], strings.Join(words[3:], ""), s.object(text))
	case "assertion":
		s.vars[words[1]] = s.assertion(s.object(text))
	case "with":
		head, params, _ := strings.Cut(text+"\n", "\n\n")
		if strings.Contains(strings.SplitN(head, "\n", 2)[0], "=") {
			head, params = "", text
		}
		s.header, s.params = headers(head), pairs(params)
	case "request":
		if s.got != nil {
			s.Fatalf("%s: no response is written", s.what)
		}
		s.what = name
		s.request(text)
	case "response":
		s.response(text)
		s.got = nil
	case "claims":
		s.claims(append(words, "access_token")[1], text)
	case "do":
		s.do(text)
	default:
		s.Fatalf("no such section: %s", name)
	}
}

func (s *script) object(text string) (v map[string]any) {
	s.Helper()
	if text == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(s.expand(text)), &v); err != nil {
		s.Fatalf("%s: %v", text, err)
	}
	return v
}

func (s *script) do(text string) {
	s.Helper()
	what, arg, _ := strings.Cut(text, " ")
	switch what + " " + arg {
	case "store down":
		_ = s.store.Close()
	case "code down":
		s.code.Break(io.ErrUnexpectedEOF)
	case "code up":
		s.code.Break(nil)
	default:
		if what != "clock" && what != "clock+" {
			s.Fatalf("cannot do %q", text)
		}
		if s.clock.move(must(time.ParseDuration(arg))(s)); what == "clock" {
			s.settle()
		}
	}
}

func headers(text string) http.Header {
	h := http.Header{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			h[http.CanonicalHeaderKey(name)] = append(h[http.CanonicalHeaderKey(name)], strings.TrimSpace(value))
		}
	}
	return h
}

// pairs reads lines NAME=VALUE.
func pairs(text string) (out [][2]string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			name, value, _ := strings.Cut(line, "=")
			out = append(out, [2]string{name, value})
		}
	}
	return out
}

var placeholder = regexp.MustCompile(`\{\{([^{}]+)\}\}`)

func (s *script) expand(text string) string {
	s.Helper()
	return placeholder.ReplaceAllStringFunc(text, func(m string) string {
		words := strings.Fields(m[2 : len(m)-2])
		switch words[0] {
		case "type":
			return "urn:ietf:params:oauth:token-type:" + words[1]
		case "secret":
			return s.secret.Reveal()
		case "basic":
			word := append(words, s.secret.Reveal())[2]
			return "Basic " + base64.StdEncoding.EncodeToString([]byte(words[1]+":"+word))
		}
		v, ok := s.vars[words[0]]
		if !ok {
			s.Fatalf("%s: nothing is called %s", s.what, m)
		}
		return v
	})
}

// request sends a request.
func (s *script) request(text string) {
	s.Helper()
	first, rest, _ := strings.Cut(text, "\n")
	head, body, _ := strings.Cut("\n"+rest, "\n\n")
	method, path, _ := strings.Cut(first, " ")
	h := headers(s.expand(head))
	if h.Get("Content-Type") == "" && method == http.MethodPost {
		var form []string
		given := pairs(body)
		for _, p := range s.params {
			if !slices.ContainsFunc(given, func(g [2]string) bool { return g[0] == p[0] || g[0] == "!"+p[0] }) {
				given = append(given, p)
			}
		}
		for _, p := range given {
			if !strings.HasPrefix(p[0], "!") {
				form = append(form, url.QueryEscape(p[0])+"="+url.QueryEscape(s.expand(p[1])))
			}
		}
		h.Set("Content-Type", "application/x-www-form-urlencoded")
		body = strings.Join(form, "&")
	} else {
		body = s.expand(body)
	}
	for name, values := range s.header {
		if h[name] == nil && h["No-"+name] == nil {
			h[name] = []string{s.expand(values[0])}
		}
	}
	maps.DeleteFunc(h, func(name string, _ []string) bool { return strings.HasPrefix(name, "No-") })
	s.send(method, path, h, body)
}

func (s *script) send(method, path string, h http.Header, body string) {
	s.Helper()
	client, base := s.http, "http://"+s.public
	if p, ok := strings.CutPrefix(path, "ops:"); ok {
		base, path = "http://"+s.ops, p
	} else if p, ok := strings.CutPrefix(path, "socket:"); ok {
		client, base, path = s.local, "http://stint", p
	}
	req := must(http.NewRequest(method, base+path, strings.NewReader(body)))(s)
	req.Header = h
	s.got = s.doRequest(client, req)
	if problem := s.doc.check(req, []byte(body), s.got); problem != nil {
		s.Errorf("%s: against openapi.yaml: %v", s.what, problem)
	}
	s.invariants(req, s.got)
}

func (w *world) doRequest(client *http.Client, req *http.Request) *answer {
	w.Helper()
	resp, err := client.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body := must(io.ReadAll(resp.Body))(w)
	return &answer{resp.StatusCode, resp.Header, body}
}

// describable is what error_description may hold (RFC 6749 section 5.2).
var describable = regexp.MustCompile(`^[\x20-\x21\x23-\x5B\x5D-\x7E]+$`)

// invariants are what holds for every answer.
func (s *script) invariants(req *http.Request, a *answer) {
	s.Helper()
	if problem := invariant(req, a); problem != "" {
		s.Errorf("%s: %s\n%v\n%s", s.what, problem, a.header, a.body)
	}
}

func invariant(req *http.Request, a *answer) string {
	is := func(name, want string) bool { return a.header.Get(name) == want }
	public := (req.Method == http.MethodGet || req.Method == http.MethodHead) && (strings.Contains(req.URL.Path, "/.well-known/") || strings.HasSuffix(req.URL.Path, "/jwks")) && a.status == 200
	var e struct {
		Error       *string `json:"error"`
		Description string  `json:"error_description"`
		Code        string  `json:"code"` // of problem details (RFC 9457)
	}
	_ = json.Unmarshal(a.body, &e)
	if e.Code != "" {
		name := oauthName[e.Code]
		e.Error = &name
	}
	retry, _ := strconv.Atoi(a.header.Get("Retry-After"))
	switch {
	case !regexp.MustCompile("^[0-9a-f]{16}$").MatchString(a.header.Get("X-Request-Id")):
		return "it has no request id"
	case !is("X-Content-Type-Options", "nosniff"):
		return "it may be sniffed"
	case public != is("Cache-Control", "public, max-age=300"), !public && !is("Cache-Control", "no-store"):
		return "Cache-Control is wrong"
	case strings.Contains(req.URL.Path, "/oauth2/") && !public && !is("Pragma", "no-cache"), public && a.header.Get("Pragma") != "": // RFC 6749 section 5.1
		return "Pragma is wrong"
	case (a.status == 401) != (a.header.Get("WWW-Authenticate") != ""):
		return "WWW-Authenticate goes with 401 and nothing else"
	case a.status >= 400 && a.status != 503 && e.Error == nil && req.Method != http.MethodHead:
		return "an error without its name"
	case e.Error != nil && (*e.Error == "temporarily_unavailable") != (retry >= 1):
		return "Retry-After goes with temporarily_unavailable"
	case e.Error != nil && a.status < 400:
		return "an error with a good status"
	case e.Description != "" && !describable.MatchString(e.Description):
		return "error_description holds what it may not (RFC 6749 section 5.2)"
	case (a.status == 405) != (a.header.Get("Allow") != "") && req.Method != http.MethodOptions:
		return "Allow goes with 405"
	}
	return ""
}

// response compares the answer with what is written.
func (s *script) response(text string) {
	s.Helper()
	if s.got == nil {
		s.Fatal("a response to no request")
	}
	head, body, _ := strings.Cut(text, "\n\n")
	status, head, _ := strings.Cut(head, "\n")
	if status != strconv.Itoa(s.got.status) {
		s.Fatalf("%s: status %d, want %s\n%s", s.what, s.got.status, status, s.got.body)
	}
	for name, want := range headers(head) {
		if got := s.got.header.Get(name); got != want[0] && want[0] != "{{*}}" {
			s.Errorf("%s: %s: %q, want %q", s.what, name, got, want[0])
		}
	}
	if body == "" || !strings.HasPrefix(body, "{") {
		if got := strings.TrimSpace(string(s.got.body)); got != body && body != "{{*}}" {
			s.Errorf("%s: body %q, want %q", s.what, got, body)
		}
		return
	}
	if ct := s.got.header.Get("Content-Type"); ct != "application/json" && ct != "application/jwk-set+json" && ct != "application/problem+json" {
		s.Errorf("%s: content type %q", s.what, ct)
	}
	s.compare(body, s.got.body)
	var doc map[string]any
	if json.Unmarshal(s.got.body, &doc) == nil {
		if text, ok := doc["access_token"].(string); ok {
			s.vars["access_token"] = text
		}
	}
}

func (s *script) compare(want string, got []byte) {
	s.Helper()
	var w, g any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		s.Fatalf("%s: what is written is no JSON: %v\n%s", s.what, err, want)
	}
	if err := json.Unmarshal(got, &g); err != nil {
		s.Fatalf("%s: the answer is no JSON: %v\n%s", s.what, err, got)
	}
	if diff := s.match("", w, g); diff != "" {
		s.Errorf("%s: %s\n%s", s.what, diff, got)
	}
}

// match returns where an answer differs from what is written.
func (s *script) match(at string, want, got any) string {
	s.Helper()
	switch w := want.(type) {
	case string:
		if w == "{{*}}" {
			return ""
		}
		if name, ok := strings.CutPrefix(w, "{{="); ok {
			s.vars[strings.TrimSuffix(name, "}}")] = fmt.Sprint(got)
			return ""
		}
		want = s.expand(w)
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			break
		}
		for name := range g {
			if _, written := w[name]; !written {
				return fmt.Sprintf("%s/%s is there, and should not be", at, name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(w)) {
			if _, there := g[name]; !there {
				return fmt.Sprintf("%s/%s is missing", at, name)
			}
			if diff := s.match(at+"/"+name, w[name], g[name]); diff != "" {
				return diff
			}
		}
		return ""
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			break
		}
		for i := range w {
			if diff := s.match(at+"/"+strconv.Itoa(i), w[i], g[i]); diff != "" {
				return diff
			}
		}
		return ""
	}
	if !reflect.DeepEqual(want, got) {
		return fmt.Sprintf("%s is %v, want %v", at, got, want)
	}
	return ""
}

// claims compares the claims of a JWT with what is written. Times are written as
// seconds from now.
func (s *script) claims(name, text string) {
	s.Helper()
	parts := strings.Split(s.vars[name], ".")
	if len(parts) != 3 {
		s.Fatalf("%s: %s is no JWT", s.what, name)
	}
	payload := must(base64.RawURLEncoding.DecodeString(parts[1]))(s)
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		s.Fatal(err)
	}
	for _, n := range []string{"iat", "exp", "auth_time"} {
		if v, ok := claims[n].(float64); ok {
			claims[n] = v - float64(s.clock.Now().Unix())
		}
	}
	s.compare(text, must(json.Marshal(claims))(s))
}
