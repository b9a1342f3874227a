package api_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"github.com/labstack/echo/v4"
)

// document is openapi.yaml, against which every exchange of the scripts is held.
type document struct {
	*openapi3.T
	router routers.Router
}

var registerDecoders = sync.OnceFunc(func() {
	openapi3filter.RegisterBodyDecoder("application/jwk-set+json", openapi3filter.JSONBodyDecoder)
	openapi3filter.RegisterBodyDecoder("text/html", openapi3filter.PlainBodyDecoder)
})

// answered are the answers that were held against the document, by any test.
var answered sync.Map

// Every answer that the document has is one that some test has had, if all were run.
func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if code == 0 && flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.fuzz").Value.String() == "" {
		if missing := unanswered(); len(missing) > 0 {
			fmt.Fprintf(os.Stderr, "openapi.yaml has answers that no test has provoked:\n%s\n", strings.Join(missing, "\n"))
			code = 1
		}
	}
	os.Exit(code)
}

func unanswered() (missing []string) {
	doc, err := openapi3.NewLoader().LoadFromFile("../openapi.yaml")
	if err != nil {
		return []string{err.Error()}
	}
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			for status := range op.Responses.Map() { // as 200 or 2XX
				if _, ok := answered.Load(op.OperationID + " " + status); !ok {
					missing = append(missing, op.OperationID+" "+status)
				}
			}
		}
	}
	slices.Sort(missing)
	return missing
}

// document returns openapi.yaml, read once.
func (w *world) document() *document {
	w.Helper()
	if w.doc == nil {
		w.doc = loadDocument(w)
	}
	return w.doc
}

func loadDocument(t testing.TB) *document {
	t.Helper()
	doc := must(openapi3.NewLoader().LoadFromFile("../openapi.yaml"))(t)
	if err := doc.Validate(context.Background()); err != nil {
		t.Fatalf("openapi.yaml: %v", err)
	}
	registerDecoders()
	doc.Servers = nil // whatever the server is called here
	return &document{doc, must(legacy.NewRouter(doc))(t)}
}

// check reports where a request and its answer are not what the document says.
// A request that was answered with an error need not be.
func (d *document) check(sent *http.Request, body []byte, a *answer) error {
	req := sent.Clone(context.Background())
	req.URL = &url.URL{Scheme: "http", Host: "stint", Path: sent.URL.Path, RawQuery: sent.URL.RawQuery}
	if strings.HasPrefix(req.URL.Path, "/call/") { // whose path has more segments than OpenAPI can say
		req.URL.Path = "/call/provider/host/path"
	}
	if form, err := url.ParseQuery(string(body)); err == nil && strings.HasPrefix(sent.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		for name, values := range form { // empty ones count as absent, as the document says in words
			if values = slices.DeleteFunc(values, func(v string) bool { return v == "" }); len(values) == 0 {
				delete(form, name)
			} else {
				form[name] = values
			}
		}
		body = []byte(form.Encode())
	}
	req.Body, req.GetBody, req.ContentLength = io.NopCloser(bytes.NewReader(body)), nil, int64(len(body))
	if req.Method == http.MethodHead { // what GET has, without a body
		req.Method = http.MethodGet
	}
	route, params, err := d.router.FindRoute(req)
	if err == nil {
		answered.Store(route.Operation.OperationID+" "+strconv.Itoa(a.status), true)
		answered.Store(route.Operation.OperationID+" "+strconv.Itoa(a.status/100)+"XX", true)
	}
	if a.status == http.StatusNotFound { // each listener has its part of the paths
		return nil
	}
	if err != nil {
		if a.status == http.StatusMethodNotAllowed || req.Method == http.MethodOptions {
			return nil
		}
		return fmt.Errorf("%s %s is answered %d and not in the document: %w", req.Method, req.URL.Path, a.status, err)
	}
	in := &openapi3filter.RequestValidationInput{
		Request: req, PathParams: params, Route: route,
		Options: &openapi3filter.Options{
			AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true,
			ExcludeResponseBody: sent.Method == http.MethodHead,
		},
	}
	if a.status < http.StatusBadRequest {
		if err := openapi3filter.ValidateRequest(req.Context(), in); err != nil {
			return fmt.Errorf("request: %w", err)
		}
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: a.status, Header: a.header, Options: in.Options}
	if err := openapi3filter.ValidateResponse(req.Context(), out.SetBodyBytes(a.body)); err != nil {
		return fmt.Errorf("response %d: %w", a.status, err)
	}
	return nil
}

// Every route of the server is in the document, and every path of the document
// is a route of the server.
func TestTheDocumentHasTheRoutesOfTheServer(t *testing.T) {
	t.Parallel()
	w, doc := newWorld(t, options{calls: true, links: true}), loadDocument(t)
	served := map[string]bool{}
	for _, h := range []http.Handler{w.server.Public(), w.server.Ops(), w.server.Local()} {
		for _, r := range h.(*echo.Echo).Routes() {
			if r.Method != http.MethodHead { // goes with GET
				served[r.Method+" "+strings.NewReplacer(":id", "{id}", ":provider", "{provider}", "/call/*", "/call/{provider}/{host}/{path}").Replace(r.Path)] = true
			}
		}
	}
	described := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			described[method+" "+path] = true
		}
	}
	for r := range served {
		if !described[r] {
			t.Errorf("%s is not in openapi.yaml", r)
		}
	}
	for r := range described {
		if !served[r] {
			t.Errorf("%s is in openapi.yaml and not served", r)
		}
	}
	if len(served) < 12 {
		t.Errorf("only %d routes", len(served))
	}
}

// A document that says something else than the server is found out: the check
// of every script can fail.
func TestTheCheckAgainstTheDocumentCanFail(t *testing.T) {
	t.Parallel()
	doc := loadDocument(t)
	json := http.Header{"Content-Type": {"application/json"}, "X-Request-Id": {"0123456789abcdef"}}
	post := func(path string) *http.Request {
		r := must(http.NewRequest(http.MethodPost, "http://stint"+path, nil))(t)
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return r
	}
	good := []byte("grant_type=client_credentials&resource=a&resource=b")
	issued := `{"access_token":"x","issued_token_type":"` + access + `","token_type":"Bearer","expires_in":1,"scope":"a"`
	for name, c := range map[string]struct {
		path   string
		body   []byte
		answer answer
		ok     bool
	}{
		"what is right":               {"/oauth2/token", good, answer{200, json, []byte(issued + "}")}, true},
		"a member too many":           {"/oauth2/token", good, answer{200, json, []byte(issued + `,"refresh_token":"x"}`)}, false},
		"a member too few":            {"/oauth2/token", good, answer{200, json, []byte(`{"access_token":"x"}`)}, false},
		"an unknown token type":       {"/oauth2/token", good, answer{200, json, []byte(`{"access_token":"x","issued_token_type":"x","token_type":"Bearer","expires_in":1,"scope":"a"}`)}, false},
		"a status that is not listed": {"/oauth2/token", good, answer{418, json, []byte(`{"error":"invalid_request"}`)}, false},
		"an unknown error":            {"/oauth2/token", good, answer{400, json, []byte(`{"error":"invalid_grant"}`)}, false},
		"no WWW-Authenticate":         {"/oauth2/token", good, answer{401, json, []byte(`{"error":"invalid_client"}`)}, false},
		"a request id of another form": {"/oauth2/token", good,
			answer{400, http.Header{"Content-Type": {"application/json"}, "X-Request-Id": {"x"}}, []byte(`{"error":"invalid_request"}`)}, false},
		"a request without its grant type": {"/oauth2/token", []byte("scope=a"), answer{200, json, []byte(issued + "}")}, false},
		"inactive, and yet a subject":      {"/oauth2/introspect", []byte("token=a"), answer{200, json, []byte(`{"active":false,"sub":"a"}`)}, false},
		"inactive":                         {"/oauth2/introspect", []byte("token=a"), answer{200, json, []byte(`{"active":false}`)}, true},
		"an unknown path":                  {"/oauth2/authorize", good, answer{200, json, []byte(`{}`)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := doc.check(post(c.path), c.body, &c.answer); (err == nil) != c.ok {
				t.Errorf("the check says %v", err)
			}
		})
	}
}

// The enumerations of the document are those of the code: error names are the
// ones that the server can answer with, and no others.
func TestTheDocumentDoesNotAdvertiseWhatItHasNot(t *testing.T) {
	t.Parallel()
	doc := loadDocument(t)
	var names []string
	for _, v := range doc.Components.Schemas["Error"].Value.Properties["error"].Value.Enum {
		names = append(names, v.(string))
	}
	slices.Sort(names)
	want := []string{
		"interaction_required", "invalid_authorization_details", "invalid_client", "invalid_request", "invalid_scope",
		"invalid_target", "server_error", "temporarily_unavailable", "unauthorized_client", "unsupported_grant_type",
	}
	if !slices.Equal(names, want) {
		t.Errorf("error names %v, want %v", names, want)
	}
}
