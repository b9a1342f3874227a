package main

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/scopes"
)

// warnings are what the server would start with, and hardly anybody means.
func (p *plan) warnings() (out []mistake) {
	warn := func(at scopes.Pos, format string, args ...any) {
		out = append(out, mistake{at.File, at.Line, at.Column, fmt.Sprintf(format, args...)})
	}
	about := func(format string, args ...any) { out = append(out, mistakes(p.cfg.Errorf(format, args...))...) }
	for _, i := range p.cfg.Issuers {
		if p.unknownAgents(&i.Policy) {
			warn(i.Policy.Pos, "issuer %s: no agent and no client has an identity there, and any_agent is not set: tokens that it issued to software are refused", i.Policy.Issuer)
		}
	}
	for i, c := range p.cfg.Clients {
		if len(c.Targets) == 0 && len(c.GrantTypes) > 0 {
			warn(c.Pos, "client %s: without targets it can be given nothing", c.ID)
		}
		for j, t := range c.Targets {
			at := func() scopes.Pos { return p.cfg.Pos(fmt.Sprintf("clients[%d]", i), fmt.Sprintf("targets[%d]", j)) }
			switch provider := p.registry.Providers[t] != nil; {
			case !provider && !p.resources[t]:
				warn(at(), "client %s: its target %q is no resource of a mapping and no provider", c.ID, t)
			case provider && !p.resources[c.Resource]:
				warn(at(), "client %s: no mapping is of its resource %q, so that nothing says what it may be vended of %s", c.ID, c.Resource, t)
			}
		}
	}
	l := p.cfg.Listen
	if strings.HasPrefix(p.cfg.Issuer, "https://") && l.TLS == nil && !l.BehindProxy {
		about("listen: address: the issuer is https, and this address speaks plain HTTP, so that clients do not get here by the issuer: give tls a certificate, or set behind_proxy if a proxy in front speaks TLS")
	}
	if u, err := url.Parse(p.cfg.Issuer); err == nil && u.Scheme == "http" && !l.BehindProxy {
		if _, port, err := net.SplitHostPort(l.Address); err == nil && port != "0" && port != cmp.Or(u.Port(), "80") {
			about("listen: address: the issuer is %s, and this is another port, so that clients do not get here by the issuer", p.cfg.Issuer)
		}
	}
	if l.BehindProxy && len(p.cfg.Limits.TrustedProxies) == 0 {
		about("listen: behind_proxy: without limits.trusted_proxies, all requests count as the proxy's own: its address is in the record, and has one rate limit for everybody")
	}
	if t := p.cfg.Telemetry; t != nil && len(t.Headers) > 0 && strings.HasPrefix(t.Endpoint, "http://") {
		about("telemetry: endpoint: plain http shows the headers, which are secrets, to the network")
	}
	if l.TLS != nil {
		if err := certificateFor(l.TLS.Certificate, p.cfg.Issuer, time.Now()); err != nil {
			about("listen: tls: certificate: %v", err)
		}
	}
	return p.warnOfAuthorities(out)
}

// warnOfAuthorities adds those whose certificates count for clients and are not good.
func (p *plan) warnOfAuthorities(out []mistake) []mistake {
	for _, c := range p.cfg.Clients {
		keys, err := p.clientKeys(c)
		if err != nil || keys.Authorities == nil {
			continue
		}
		all, _ := token.ParseAuthorities(keys.Authorities) // it has been read
		for _, a := range all {
			if err := goodAt(a, time.Now()); err != nil {
				out = append(out, mistake{c.Pos.File, c.Pos.Line, c.Pos.Column, fmt.Sprintf("client %s: the authority %q: %v", c.ID, a.Subject, err)})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b mistake) int { return cmp.Compare(a.Line, b.Line) })
	return out
}

// unknownAgents reports whether every token that an issuer issued to software is
// refused.
func (p *plan) unknownAgents(i *broker.Issuer) bool {
	if i.AnyAgent || !slices.Contains(i.Accept, string(broker.AccessToken)) && !slices.Contains(i.Accept, string(broker.IDToken)) {
		return false
	}
	known := func(identities map[string]string) bool { return identities[i.Issuer] != "" }
	for _, c := range p.cfg.Clients {
		if known(c.Identities) {
			return false
		}
	}
	for a := range maps.Values(p.registry.Agents) {
		if known(a.Identities) {
			return false
		}
	}
	return true
}

// certificateFor says why clients would refuse a certificate; whether they trust
// who signed it is not asked.
func certificateFor(path, issuer string, now time.Time) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	u, err := url.Parse(issuer)
	if block == nil || err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	if err := goodAt(cert, now); err != nil {
		return err
	}
	return cert.VerifyHostname(u.Hostname())
}

// goodAt says why a certificate is not good at a time.
func goodAt(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.After(cert.NotAfter):
		return fmt.Errorf("it expired on %s", cert.NotAfter.Format(time.DateTime))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("it is good only from %s on", cert.NotBefore.Format(time.DateTime))
	}
	return nil
}
