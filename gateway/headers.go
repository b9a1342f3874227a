package gateway

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
)

// sent are the headers of a request that every upstream gets. Accept-Encoding and Range
// are not among them: an answer in parts, or packed, could not be searched.
var sent = []string{
	"Accept", "Accept-Language", "Content-Language", "Content-Type", "Idempotency-Key",
	"If-Match", "If-Modified-Since", "If-None-Match", "If-Unmodified-Since", "Prefer",
}

// never are those that no provider can have passed: credentials, what only a proxy may
// say (RFC 7239 and those before it), what is the connection's (RFC 9110 section 7.6.1),
// what makes another request of it, and what we set.
var never = []string{
	"Accept-Encoding", "Authorization", "Connection", "Content-Encoding", "Content-Length", "Cookie", "Cookie2", "Date", "Dpop", "Expect",
	"Forwarded", "Host", "Http2-Settings", "Keep-Alive", "Max-Forwards", "Origin", "Range", "If-Range", "Referer", "Set-Cookie", "Te", "Trailer",
	"Transfer-Encoding", "True-Client-Ip", "Upgrade", "User-Agent", "Via", "X-Client-Cert", "X-Http-Method", "X-Http-Method-Override",
	"X-Method-Override", "X-Original-Host", "X-Original-Method", "X-Original-Url", "X-Real-Ip", "X-Rewrite-Url",
}

// neverBegin are how others of these begin.
var neverBegin = []string{"Proxy-", "X-Forwarded-", "X-Envoy-", "X-Amzn-Oidc-", "X-Goog-Iap-", "X-Auth-Request-", "X-Ssl-", "Sec-", "Cf-", "Access-Control-"}

// back are the headers of an answer that the caller gets, and backBegin how others begin.
// Not among them is whatever would have a browser, or a proxy in front of us, do something.
var (
	back = []string{
		"Content-Disposition", "Content-Language", "Content-Type", "Etag", "Last-Modified", "Link", "Location", "Retry-After",
		"X-Next-Page", "X-Page", "X-Per-Page", "X-Prev-Page", "X-Total", "X-Total-Count", "X-Total-Pages",
	}
	backBegin = []string{"Ratelimit", "X-Ratelimit-"}
)

func forbidden(name string) bool {
	return slices.Contains(never, name) || begins(neverBegin, name)
}

func begins(list []string, name string) bool {
	return slices.ContainsFunc(list, func(p string) bool { return strings.HasPrefix(name, p) })
}

// incoming is what of the headers of a request is looked at: what the hop before has not
// said to be its own, and each once.
func incoming(h http.Header) (map[string][]string, error) {
	if coding := h["Content-Encoding"]; len(coding) > 0 {
		return nil, broker.Fail(broker.BadRequest, nil, "the body is not to be encoded")
	}
	hop := map[string]bool{}
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			hop[textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))] = true
		}
	}
	out := make(map[string][]string)
	for name, values := range h {
		switch {
		case forbidden(name):
		case hop[name] && slices.Contains(sent, name):
			// It would be gone for us, and perhaps not for everybody before us.
			return nil, broker.Fail(broker.BadRequest, nil, "Connection names a header that is not the connection's")
		case hop[name]:
		case len(values) > 1:
			return nil, broker.Fail(broker.BadRequest, nil, "a header is repeated")
		default:
			out[name] = values
		}
	}
	return out, nil
}

// passed is what of them the upstream gets.
func passed(h map[string][]string, more []string) http.Header {
	out := http.Header{"User-Agent": {"stint"}}
	for _, name := range slices.Concat(sent, more) {
		name = textproto.CanonicalMIMEHeaderKey(name)
		if values := h[name]; len(values) > 0 && !forbidden(name) {
			out[name] = values
		}
	}
	return out
}

// returned is what of an answer's headers the caller gets.
func returned(resp *http.Response) http.Header {
	out := http.Header{}
	for name, values := range resp.Header {
		if slices.Contains(back, name) || begins(backBegin, name) {
			out[name] = slices.Clone(values)
		}
	}
	if to := out.Get("Location"); to != "" {
		// Relative, it would lead to us.
		out.Del("Location")
		if u, err := resp.Request.URL.Parse(to); err == nil && (u.Scheme == "https" || u.Scheme == "http") {
			out.Set("Location", u.String())
		}
	}
	return out
}
