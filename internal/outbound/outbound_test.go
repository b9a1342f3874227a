package outbound

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestPublic(t *testing.T) {
	for _, a := range []string{
		"127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255",
		"0.0.0.0", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8%eth0", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
		"2001::1", "2001:db8::1", "2002:7f00:1::", "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "100::1",
	} {
		if a == "::ffff:8.8.8.8%eth0" {
			continue // no such address: a zone on IPv4
		}
		if isPublic(netip.MustParseAddr(a)) {
			t.Errorf("%s is called public", a)
		}
	}
	for _, a := range []string{"8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"} {
		if !isPublic(netip.MustParseAddr(a)) {
			t.Errorf("%s is not called public", a)
		}
	}
	if isPublic(netip.Addr{}) {
		t.Error("no address is public")
	}
}

func get(c *http.Client, url string) error {
	resp, err := c.Get(url)
	if err == nil {
		_ = resp.Body.Close()
	}
	return err
}

func TestOnlyAllowedAddressesAreConnectedTo(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	defer s.Close()
	port := s.URL[strings.LastIndex(s.URL, ":"):]
	public := New(Policy{Hosts: []string{"idp.example"}, Public: true})
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "[::1]"} {
		if err := get(public, "http://"+host+port); err == nil || !errors.Is(err, ErrAddress) {
			t.Errorf("%s: %v", host, err)
		}
	}
	// Odd spellings of loopback are no addresses to us, and no names that resolve.
	for _, host := range []string{"127.1", "0x7f.1", "2130706433", "0177.0.0.1"} {
		if err := get(public, "http://"+host+port); err == nil {
			t.Errorf("%s was connected to", host)
		}
	}
	if err := get(New(Policy{Hosts: []string{"127.0.0.1"}}), s.URL); err != nil {
		t.Errorf("a configured host: %v", err)
	}
	if err := get(New(Policy{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}), s.URL); err != nil {
		t.Errorf("a configured network: %v", err)
	}
	if err := get(New(Policy{}), s.URL); !errors.Is(err, ErrAddress) {
		t.Errorf("nothing was allowed: %v", err)
	}
}

// A name is judged by the address that is connected to, each time.
func TestANameThatLeadsInsideIsRefused(t *testing.T) {
	var dialled []string
	d := &dialer{policy: Policy{Public: true}, dial: func(_ context.Context, _, address string) (net.Conn, error) {
		dialled = append(dialled, address)
		return nil, errors.New("not in this test")
	}}
	if _, err := d.dialContext(context.Background(), "tcp", "localhost:80"); !errors.Is(err, ErrAddress) {
		t.Errorf("localhost: %v", err)
	}
	if _, err := d.dialContext(context.Background(), "tcp", "8.8.8.8:443"); err == nil || errors.Is(err, ErrAddress) {
		t.Errorf("a public address: %v", err)
	}
	if _, err := d.dialContext(context.Background(), "tcp", "no port"); err == nil {
		t.Error("an address without a port")
	}
	if len(dialled) != 1 || dialled[0] != "8.8.8.8:443" {
		t.Errorf("dialled %q", dialled)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	hits := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits++
		http.Redirect(w, r, "/next", http.StatusFound)
	}))
	defer s.Close()
	resp, err := New(Policy{Hosts: []string{"127.0.0.1"}}).Get(s.URL)
	if err != nil || resp.StatusCode != http.StatusFound || hits != 1 {
		t.Errorf("%v, %v, %d hits", resp, err, hits)
	}
	_ = resp.Body.Close()
}

func TestASlowServerIsGivenUp(t *testing.T) {
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer s.Close()
	defer close(release)
	if err := get(New(Policy{Hosts: []string{"127.0.0.1"}, Timeout: 50 * time.Millisecond}), s.URL); err == nil {
		t.Error("waited for")
	}
}
