package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// A collector that was not written by us is sent the spans of a request, under the
// trace that the caller began, and nothing of the request's secrets.
func TestSpansAreExported(t *testing.T) {
	var mu sync.Mutex
	var sent bytes.Buffer
	spans := map[string]string{} // name -> trace
	c := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var in collector.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(body, &in) != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("no export: %s, %v", r.URL.Path, err)
		}
		mu.Lock()
		defer mu.Unlock()
		sent.Write(body)
		for _, rs := range in.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					spans[s.Name] = fmt.Sprintf("%x", s.TraceId)
				}
			}
		}
	}))
	defer c.Close()
	const trace, canary = "0af7651916cd43dd8448eb211c80319c", "canary-token-3f6a"
	secret := ""
	t.Run("a request", func(t *testing.T) { // the server stops with it, and sends what it has
		dir := filepath.Join(t.TempDir(), "etc")
		out, code := stintCLI(t, "init", dir, "-o", "json")
		var made initOutput
		if err := json.Unmarshal([]byte(out), &made); code != 0 || err != nil {
			t.Fatalf("%d, %v: %s", code, err, out)
		}
		file := filepath.Join(dir, "stint.yaml")
		shortSocket(t, file)
		edit(t, file, "", "\ntelemetry:\n  endpoint: "+c.URL+"/v1/traces\n")
		address := serving(t, file)
		for _, path := range []string{"/oauth2/token", "/" + canary} {
			form := url.Values{
				"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {canary},
				"subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"}, "resource": {"https://api.example/notes"}, "scope": {"notes:read"},
			}
			req, err := http.NewRequest(http.MethodPost, "http://"+address+path, strings.NewReader(form.Encode()))
			if err != nil {
				t.Fatal(err)
			}
			req.SetBasicAuth("notes-mcp", made.Secret)
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("Traceparent", "00-"+trace+"-b7ad6b7169203331-01")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
		}
		secret = made.Secret
	})
	mu.Lock()
	defer mu.Unlock()
	for _, name := range []string{"POST /oauth2/token", "broker.exchange", "other"} {
		if spans[name] != trace {
			t.Errorf("span %q is of the trace %q; there are %v", name, spans[name], spans)
		}
	}
	if secret == "" || bytes.Contains(sent.Bytes(), []byte(canary)) || bytes.Contains(sent.Bytes(), []byte(secret)) {
		t.Error("what the request held was sent")
	}
}
