// Package outbound makes the HTTP clients with which Stint asks others: one a
// purpose, each with bounded times and sizes, no redirects, and a say in which
// addresses it will connect to.
//
// The address is judged when it is connected to, after the name was resolved and
// for the very address used, so that a name cannot show one address and lead to
// another.
package outbound

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Policy says whom a client may ask.
type Policy struct {
	// Hosts are host names (without port) that an administrator has configured:
	// they may be anywhere, private networks and loopback included.
	Hosts []string
	// Public lets the client ask other hosts too, as long as they are at public
	// addresses: those that documents of the configured hosts point to.
	Public bool
	// Networks are further networks that may be asked.
	Networks []netip.Prefix
	// Roots are the certificate authorities; nil: those of the system.
	Roots *x509.CertPool
	// Timeout bounds a whole request; 0 means 10 seconds.
	Timeout time.Duration
}

// ErrAddress is wrapped by errors that say that an address may not be asked.
var ErrAddress = errors.New("address is not allowed")

// New returns a client for a purpose. It follows no redirects: the answer is the
// redirect. TLS is 1.2 at least, and verified.
func New(p Policy) *http.Client {
	if p.Timeout == 0 {
		p.Timeout = 10 * time.Second
	}
	d := &dialer{policy: p, dial: (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 30 * time.Second}).DialContext}
	return &http.Client{
		Timeout:       p.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:            d.dialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: p.Roots},
			ForceAttemptHTTP2:      true,
			TLSHandshakeTimeout:    3 * time.Second,
			ResponseHeaderTimeout:  5 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConns:           64,
			MaxIdleConnsPerHost:    16,
			IdleConnTimeout:        90 * time.Second,
		},
	}
}

type dialer struct {
	policy Policy
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
}

func (d *dialer) dialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	addrs, err := resolve(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", host, err)
	}
	failure := fmt.Errorf("connect to %s: %w: no public address among %v", host, ErrAddress, addrs)
	for _, a := range addrs {
		if !d.allowed(host, a) {
			continue
		}
		conn, err := d.dial(ctx, network, net.JoinHostPort(a.String(), port))
		if err == nil {
			return conn, nil
		}
		failure = err
	}
	return nil, failure
}

func resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// allowed reports whether an address of a host may be connected to.
func (d *dialer) allowed(host string, a netip.Addr) bool {
	if slices.ContainsFunc(d.policy.Hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
		return true
	}
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(d.policy.Networks, func(p netip.Prefix) bool { return p.Contains(a) }) ||
		d.policy.Public && isPublic(a)
}

// notPublic are the networks that lead inside, or nowhere: the special-purpose
// registries of RFC 6890, and the ways of writing an IPv4 address in IPv6.
var notPublic = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
	"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32",
	"2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// isPublic reports whether an address is one of the open Internet.
func isPublic(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return a.IsValid() && !slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(a) })
}
