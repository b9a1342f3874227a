package token

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/stint-dev/stint/internal/strictjson"
)

// Bounds of fetching keys.
const (
	maxDiscovery = 256 << 10        // bytes
	fetchTime    = 5 * time.Second  // for one document
	waitTime     = 3 * time.Second  // that a request waits for a fetch
	minInterval  = 30 * time.Second // between fetches that requests ask for
	minFresh     = 5 * time.Minute  // a set is good for at least this
	maxFresh     = 1 * time.Hour    // and at most for this, whatever its issuer says
	staleFor     = 24 * time.Hour   // that a set is used when it cannot be renewed
	maxUnknown   = 1024             // key ids that are remembered as unknown
	maxWaiting   = 64               // requests for the keys of one source: each holds a slot of the server
)

// errKeys is wrapped by errors that mean that keys could not be had, so that
// nothing can be said about a signature.
var errKeys = errors.New("keys unavailable")

// source is where a party's keys come from.
type source struct {
	issuer  string // for discovery: OpenID Connect, else RFC 8414
	jwksURI string // known without discovery
	algs    []string
	kind    KeyKind
	client  *http.Client
	now     func() time.Time

	mu       sync.Mutex
	set      *Set
	fetched  time.Time // when set was fetched
	fresh    time.Time // until when it need not be fetched again
	tried    time.Time // when a fetch was last begun
	failure  error     // of the last fetch
	running  chan struct{}
	waiting  int                  // requests, for the fetch that runs
	unknown  map[string]time.Time // key ids that the set of that time did not have
	digest   [32]byte             // of the set's text
	replaced uint64               // how often the set changed
}

// fixed returns a source with keys that were given.
func fixed(s *Set) *source { return &source{set: s} }

// find returns the key for a header. A fetch is made when there is no set, when
// it is no longer fresh (in the background), or when the key is unknown and the
// last fetch is a while ago. Whatever the number of requests, there is one fetch
// at a time, and requests wait for it only so long.
func (s *source) find(ctx context.Context, h joseHeader) (*Key, uint64, error) {
	s.mu.Lock()
	if s.client == nil { // fixed
		defer s.mu.Unlock()
		return s.set.find(h), 0, nil
	}
	now := s.now()
	usable := s.set != nil && now.Before(s.fetched.Add(staleFor))
	if usable {
		if k := s.set.find(h); k != nil {
			if now.After(s.fresh) && now.After(s.tried.Add(minInterval)) {
				s.begin(now)
			}
			defer s.mu.Unlock()
			return k, s.replaced, nil
		}
		if at, known := s.unknown[h.kid]; known && at.Equal(s.fetched) || now.Before(s.tried.Add(minInterval)) && s.running == nil {
			defer s.mu.Unlock()
			return nil, s.replaced, nil
		}
	} else if s.running == nil && now.Before(s.tried.Add(minInterval)) && s.failure != nil {
		defer s.mu.Unlock()
		return nil, 0, fmt.Errorf("%w: %w", errKeys, s.failure)
	}
	if s.running == nil {
		s.begin(now)
	}
	if s.waiting == maxWaiting { // whoever waits holds up others
		defer s.mu.Unlock()
		return nil, 0, fmt.Errorf("%w: too many wait for them", errKeys)
	}
	s.waiting++
	running := s.running
	s.mu.Unlock()
	return s.await(ctx, running, h)
}

// await waits for a fetch and looks again.
func (s *source) await(ctx context.Context, running chan struct{}, h joseHeader) (*Key, uint64, error) {
	timer := time.NewTimer(waitTime)
	defer timer.Stop()
	select {
	case <-running:
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waiting--
		return nil, 0, fmt.Errorf("%w: %w", errKeys, ctx.Err())
	case <-timer.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting--
	if s.set == nil || !s.now().Before(s.fetched.Add(staleFor)) {
		failure := s.failure
		if failure == nil {
			failure = errors.New("no answer in time")
		}
		return nil, 0, fmt.Errorf("%w: %w", errKeys, failure)
	}
	k := s.set.find(h)
	if k == nil && s.failure == nil {
		if len(s.unknown) >= maxUnknown {
			clear(s.unknown)
		}
		s.unknown[h.kid] = s.fetched
	}
	return k, s.replaced, nil
}

// begin starts a fetch. The lock is held.
func (s *source) begin(now time.Time) {
	if s.running != nil {
		return
	}
	done := make(chan struct{})
	s.running, s.tried = done, now
	if s.unknown == nil {
		s.unknown = make(map[string]time.Time)
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*fetchTime)
		defer cancel()
		set, digest, fresh, err := s.fetch(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.failure = err
		if err == nil {
			s.set, s.fetched = set, s.now()
			s.fresh = s.fetched.Add(fresh)
			if digest != s.digest {
				s.digest = digest
				s.replaced++
			}
		}
		s.running = nil
		close(done)
	}()
}

// fetch gets the metadata if it has to, and then the keys.
func (s *source) fetch(ctx context.Context) (set *Set, digest [32]byte, fresh time.Duration, err error) {
	uri := s.jwksURI
	if uri == "" {
		if uri, err = s.discover(ctx); err != nil {
			return nil, digest, 0, err
		}
	}
	data, fresh, err := get(ctx, s.client, uri, maxKeySet)
	if err != nil {
		return nil, digest, 0, err
	}
	if set, err = parseKind(data, s.kind, s.algs, false); err != nil {
		err = fmt.Errorf("%s: %w", uri, err)
	}
	if s.kind == JWTBundle || s.kind == X509Bundle {
		fresh = refreshed(data, fresh)
	}
	return set, sha256.Sum256(data), fresh, err
}

// discover finds the key set's address in the issuer's metadata: OpenID Connect
// Discovery section 4, else RFC 8414 section 3.
func (s *source) discover(ctx context.Context) (string, error) {
	base := strings.TrimSuffix(s.issuer, "/")
	scheme, rest, _ := strings.Cut(base, "://")
	host, path, hasPath := strings.Cut(rest, "/")
	if hasPath {
		path = "/" + path
	}
	var failures []error
	for _, address := range []string{
		base + "/.well-known/openid-configuration",
		scheme + "://" + host + "/.well-known/oauth-authorization-server" + path,
	} {
		data, _, err := get(ctx, s.client, address, maxDiscovery)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		var doc struct {
			Issuer  string `json:"issuer"`
			JWKSURI string `json:"jwks_uri"`
		}
		if err := strictjson.DecodeKnown(data, &doc); err != nil {
			return "", fmt.Errorf("%s: %w", address, err)
		}
		// Letter by letter (OpenID Connect Discovery section 4.3): anything else
		// is somebody else's metadata.
		if doc.Issuer != s.issuer {
			return "", fmt.Errorf("%s is of issuer %q", address, printable(doc.Issuer))
		}
		if err := checkJWKSURI(doc.JWKSURI, scheme); err != nil {
			return "", fmt.Errorf("%s: %w", address, err)
		}
		return doc.JWKSURI, nil
	}
	return "", errors.Join(failures...)
}

// checkJWKSURI holds an address that an issuer gave to the scheme of the issuer.
// Which hosts and networks may be asked is the client's to say.
func checkJWKSURI(uri, scheme string) error {
	if !strings.HasPrefix(uri, "https://") && (scheme != "http" || !strings.HasPrefix(uri, "http://")) {
		return fmt.Errorf("jwks_uri %q is not https", printable(uri))
	}
	return nil
}

// get fetches a JSON document of a bounded size, and says for how long it is
// fresh.
func get(ctx context.Context, client *http.Client, address string, most int64) ([]byte, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("fetch %s: %w", address, err)
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json") // of the latter alone Kubernetes has its keys
	resp, err := client.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("fetch: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("fetch %s: status %d", address, resp.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return nil, 0, fmt.Errorf("fetch %s: %w", address, err)
	}
	if int64(len(data)) > most {
		return nil, 0, fmt.Errorf("fetch %s: more than %d bytes", address, most)
	}
	return data, freshness(resp.Header.Get("Cache-Control")), nil
}

// refreshed is how long a bundle is fresh: no longer than it says itself (SPIFFE Trust
// Domain and Bundle section 4.1.2).
func refreshed(data []byte, fresh time.Duration) time.Duration {
	var doc struct {
		Hint int `json:"spiffe_refresh_hint"`
	}
	if err := strictjson.DecodeKnown(data, &doc); err != nil || doc.Hint <= 0 {
		return fresh
	}
	return max(min(fresh, time.Duration(min(doc.Hint, 86400))*time.Second), minRefresh)
}

func freshness(control string) time.Duration {
	for part := range strings.SplitSeq(control, ",") {
		if age, ok := strings.CutPrefix(strings.TrimSpace(strings.ToLower(part)), "max-age="); ok {
			if n, err := strconv.Atoi(age); err == nil {
				return min(max(time.Duration(n)*time.Second, minFresh), maxFresh)
			}
		}
	}
	return minFresh
}
