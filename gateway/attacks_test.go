package gateway

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker"
)

// Nothing that a caller brings to prove anything, nor what only a proxy may say, goes
// upstream: not in a header, not in another's, not by way of Connection.
func TestAttackPassthrough(t *testing.T) {
	w := newWorld(t)
	bad := []string{
		"Cookie: session=canary", "Proxy-Authorization: Basic canary", "Proxy-Connection: canary", "DPoP: canary", "X-Forwarded-For: canary", "X-Forwarded-Host: canary",
		"X-Forwarded-User: canary", "Forwarded: for=canary", "X-Real-IP: canary", "Via: canary", "TE: trailers", "Keep-Alive: canary", "X-Original-URL: /canary",
		"X-Rewrite-URL: /canary", "X-HTTP-Method-Override: DELETE", "X-HTTP-Method: DELETE", "X-Method-Override: DELETE", "Referer: canary", "Origin: canary", "Range: bytes=0-1",
		"Accept-Encoding: br", "X-Auth-Request-User: canary", "X-Amz-Security-Token: canary", "X-Api-Key: canary", "PRIVATE-TOKEN: canary", "User-Agent: canary", "Sec-Fetch-Site: canary",
		"X-Stint-Internal: canary", "Upgrade: canary", "Expect: canary"[:0] + "X-Whatever: canary",
	}
	resp, body := w.get("/", bad...)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	r, _ := w.last()
	for name, values := range r.Header {
		switch name {
		case "Authorization", "User-Agent", "Accept-Encoding": // ours, and that of Go's client, which unpacks
			if strings.Join(values, "") == "canary" || name == "Accept-Encoding" && values[0] != "gzip" {
				t.Errorf("%s: %q", name, values)
			}
		default:
			t.Errorf("%s went upstream: %q", name, values)
		}
	}
	if strings.Contains(r.Header.Get("Authorization"), "tok") {
		t.Error("our own token went upstream")
	}
}

// GHSA-w9mr-28mw-j8hg (Oathkeeper): Connection names headers that a proxy is then to
// leave out. What we set stays, and what it is about is refused.
func TestAttackHopByHop(t *testing.T) {
	w := newWorld(t)
	for _, named := range []string{"Authorization", "authorization, X-Custom", "close, Authorization", "User-Agent"} {
		resp, _ := w.raw("GET /auth/call/static/api.test/x HTTP/1.1\nHost: s\nConnection: " + named + "\nAuthorization: Bearer tok\nX-Custom: canary\n\n")
		if r, _ := w.last(); resp.StatusCode != http.StatusOK || r.Header.Get("Authorization") != "Bearer "+key || r.Header.Get("X-Custom") != "" || r.Header.Get("Connection") != "" {
			t.Errorf("%q: %d %v", named, resp.StatusCode, r.Header)
		}
	}
	n := w.count()
	if resp, _ := w.raw("GET /auth/call/static/api.test/x HTTP/1.1\nHost: s\nConnection: Accept, If-Match\nAuthorization: Bearer tok\nIf-Match: x\n\n"); resp.StatusCode != http.StatusBadRequest || w.count() != n {
		t.Errorf("%d", resp.StatusCode)
	}
}

// What the upstream answers does nothing at our origin: no cookies, no permissions for
// browsers, no orders for the proxy in front of us, and no page.
func TestAttackAnswersThatActHere(t *testing.T) {
	w := newWorld(t)
	bad := []string{
		"Set-Cookie", "Set-Cookie2", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Strict-Transport-Security", "Clear-Site-Data", "Refresh", "Alt-Svc",
		"X-Accel-Redirect", "X-Sendfile", "X-Lighttpd-Send-File", "Service-Worker-Allowed", "Public-Key-Pins", "Report-To", "Nel", "Www-Authenticate", "Proxy-Authenticate",
		"X-Forwarded-For", "Surrogate-Control", "Sourcemap", "X-Frame-Options", "Server", "Trailer", "Upgrade", "Connection", "Keep-Alive", "Stint-Lease-Of-Another",
	}
	w.answer = func(out http.ResponseWriter, _ *http.Request) {
		for _, name := range bad {
			out.Header().Set(name, "canary")
		}
		out.Header().Set("Content-Security-Policy", "script-src *")
		out.Header().Set("Cache-Control", "public, max-age=1")
		out.Header().Set("X-Request-Id", "canary")
		out.Header().Set("Stint-Lease", "canary")
		out.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(out, "<script>")
	}
	resp, _ := w.get("/")
	for name, values := range resp.Header {
		if strings.Contains(strings.Join(values, ""), "canary") {
			t.Errorf("%s: %q", name, values)
		}
	}
	if resp.Header.Get("Content-Security-Policy") != "default-src 'none'; sandbox; frame-ancestors 'none'" || resp.Header.Get("X-Content-Type-Options") != "nosniff" ||
		resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("Stint-Lease") != "lease1" || resp.Header.Get("X-Request-Id") != "req-1" {
		t.Errorf("%v", resp.Header)
	}
}

// A redirect is answered, not followed, and never leads to us.
func TestAttackRedirects(t *testing.T) {
	w := newWorld(t)
	strange := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer strange.Close()
	for to, want := range map[string]string{
		strange.URL + "/x": strange.URL + "/x", "/login": w.upstream.URL + "/login", "//" + strange.Listener.Addr().String() + "/": strange.URL + "/",
		"javascript:alert(1)": "", "data:text/html,x": "", "": "", "other": w.upstream.URL + "/a/other",
	} {
		for _, status := range []int{301, 302, 303, 307, 308, 201} {
			w.answer = func(out http.ResponseWriter, _ *http.Request) {
				out.Header().Set("Location", to)
				out.WriteHeader(status)
			}
			if resp, _ := w.get("/a/b"); resp.StatusCode != status || resp.Header.Get("Location") != want {
				t.Errorf("%d to %q: %d to %q", status, to, resp.StatusCode, resp.Header.Get("Location"))
			}
		}
	}
}

// Requests go where the broker says, however the address is written, and the path is the
// one that the broker has seen.
func TestAttackPathsAreSentAsTheyWereHeld(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{
		"/a/../b", "/a/%2e%2e/b", "/%2E%2E/", "//evil.test/", "/a//b", "/a%2Fb", "/a%5Cb", "/%00", "/a;/b", "/%41", "/a%20b", "/.", "/a/.", "/%C3%A9", "/a:b@c", "/a%252e", "/~", "/%7E",
	} {
		w.asked = nil
		n := w.count()
		resp, _ := w.get(path + "?" + "x=%2e%2e")
		if w.asked == nil || w.asked.Path != path || w.asked.Query != "x=%2e%2e" || w.asked.Host != "api.test" {
			t.Errorf("%q: the broker was asked %+v", path, w.asked)
			continue
		}
		if w.count() == n { // refused here: what would be sent is another
			if resp.StatusCode < 400 {
				t.Errorf("%q: %d", path, resp.StatusCode)
			}
			continue
		}
		if r, _ := w.last(); r.RequestURI != path+"?x=%2e%2e" {
			t.Errorf("%q was sent as %q", path, r.RequestURI)
		}
	}
	for _, target := range []string{"http://evil.test/auth/call/static/api.test/x", "/auth/../auth/call/static/api.test/x", "//auth/call/static/api.test/x", `/auth\call/static/api.test/x`} {
		n := w.count()
		if resp, _ := w.raw("GET " + target + " HTTP/1.1\nHost: s\nConnection: close\nAuthorization: Bearer tok\n\n"); resp.StatusCode != http.StatusBadRequest || w.count() != n {
			t.Errorf("%q: %d", target, resp.StatusCode)
		}
	}
}

// CVE-2026-33495 (Oathkeeper) and GHSA-g53w-w6mj-hrpp (Kuadrant): no header chooses the
// upstream, or lets anybody past the check.
func TestAttackHeadersThatChoose(t *testing.T) {
	w := newWorld(t)
	resp, _ := w.raw("GET /auth/call/static/api.test/x HTTP/1.1\nHost: evil.test\nConnection: close\nAuthorization: Bearer tok\n" +
		"X-Forwarded-Host: evil.test\nX-Forwarded-Proto: http\nX-Forwarded-Uri: /y\nX-Forwarded-Method: DELETE\nX-Original-Host: evil.test\nX-Original-Method: DELETE\n\n")
	if r, _ := w.last(); resp.StatusCode != http.StatusOK || r.Method != http.MethodGet || r.RequestURI != "/x" || r.Host != w.upstream.Listener.Addr().String() || w.asked.Host != "api.test" || w.asked.Method != http.MethodGet {
		t.Errorf("%d %+v", resp.StatusCode, w.asked)
	}
	w.refuse = broker.Fail(broker.BadToken, nil, "no")
	n := w.count()
	for _, header := range []string{"X-Internal: true", "X-Stint-Lease: lease1", "Stint-Lease: lease1", "X-Forwarded-User: admin", "X-Mcp-Authorized: true"} {
		if resp, _ := w.get("/x", header); resp.StatusCode != http.StatusUnauthorized || w.count() != n {
			t.Errorf("%s: %d", header, resp.StatusCode)
		}
	}
}
