package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/vault"
)

// The states of a finding.
const (
	findingGood = "good"
	findingWarn = "warn" // it works, and should not stay so
	findingBad  = "bad"  // it does not work, or is not safe
)

// finding is something that the doctor has looked at.
type finding struct {
	About  string `json:"about"`
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
	// Do is what to change.
	Do string `json:"do,omitempty"`
}

func newDoctor(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Look over an installation, and say what to change",
		Long: `Looks over the installation that a configuration describes, from where it runs, and says of
each thing that is wrong, or works and should not stay so, what to change. First all that
stint check --live tries; then

- the issuer as clients see it: reachable, what it says it is, TLS and its certificate;
- clocks: this machine's, Redis's and the issuers';
- Redis: whether it keeps what it takes, and whether its user may do more than it needs;
- Vault: the policies of Stint's token;
- files: who else may read secrets or write the configuration;
- signing keys: how old they are.

It changes nothing. It exits with 0 if nothing is bad, warnings or not, and with 1 if
something is; a configuration that cannot be used is refused with 3, as by stint check.`,
		Example: "  stint doctor --config /etc/stint/stint.yaml\n  stint doctor -o json | jq '.[] | select(.state != \"good\")'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r := check(c.Context(), g.config, checkLive)
			if len(r.Mistakes) > 0 {
				if err := g.print(c, r, r.text); err != nil {
					return err
				}
				return r.err()
			}
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			d := &doctor{cfg: cfg, found: tried(r.Dependencies)}
			d.look(c.Context(), g.config)
			if err := g.print(c, d.found, d.text); err != nil {
				return err
			}
			if n := d.count(findingBad); n > 0 {
				return fmt.Errorf("%s bad", count(n, "finding")+map[bool]string{true: " is", false: " are"}[n == 1])
			}
			return nil
		},
	}
}

// tried makes findings of what stint check has tried.
func tried(all []dependency) (out []finding) {
	for _, d := range all {
		f := finding{About: d.Name, State: findingGood, Detail: d.Detail}
		if d.State == stateMissing {
			f.State = findingBad
			if strings.HasPrefix(d.Name, "issuer ") || strings.HasPrefix(d.Name, "keys of ") {
				f.Do = "let this machine reach it, or correct its address; network.ca is for authorities of one's own"
			}
		}
		out = append(out, f)
	}
	return out
}

// doctor looks at an installation.
type doctor struct {
	cfg   *config.Config
	found []finding
}

func (d *doctor) add(state, about, detail, do string) {
	d.found = append(d.found, finding{about, state, oneLine(detail), do})
}

func (d *doctor) count(state string) (n int) {
	for _, f := range d.found {
		if f.State == state {
			n++
		}
	}
	return n
}

func (d *doctor) look(ctx context.Context, file string) {
	d.files(file)
	d.issuer(ctx)
	d.clocks(ctx)
	l := &liveCheck{cfg: d.cfg}
	defer l.close()
	open := l.openFile
	if d.cfg.Secrets.Kind == vault.KindVault {
		open = l.openVault
	}
	if err := open(); err != nil {
		return // which stint check has said
	}
	d.vault(ctx, l.secrets)
	if d.cfg.Store.Kind != store.KindEmbedded {
		d.redis(ctx, l)
	}
	d.keys(ctx)
}

// files looks at who else may read or write.
func (d *doctor) files(file string) {
	private := map[string]string{d.cfg.Data: "the data folder"}
	if f := d.cfg.Secrets.File; f != nil {
		private[d.cfg.Path(f.Identity)], private[d.cfg.Path(f.Path)] = "the identity that opens the secrets", "the sealed secrets"
	}
	if t := d.cfg.Listen.TLS; t != nil {
		private[t.Key] = "the private key of the certificate"
	}
	for path, what := range private {
		info, err := os.Stat(path)
		if err != nil {
			continue // which stint check has said, where it matters
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			d.add(findingBad, "file "+path, fmt.Sprintf("%s: others may read it, its mode is %o", what, mode), "chmod go= "+shellQuote(path))
			continue
		}
		d.add(findingGood, "file "+path, what+", its owner's alone", "")
	}
	for _, path := range []string{file, d.cfg.Mappings} {
		info, err := os.Stat(path)
		if err == nil && info.Mode().Perm()&0o022 != 0 {
			d.add(findingBad, "file "+path, fmt.Sprintf("others may change it: its mode is %o", info.Mode().Perm()), "chmod go-w "+shellQuote(path))
		}
	}
}

const (
	soonExpires = 14 * 24 * time.Hour // of a certificate
	oldKey      = 180 * 24 * time.Hour
	offClock    = 5 * time.Second
)

// issuer looks at the issuer as clients see it.
func (d *doctor) issuer(ctx context.Context) {
	const about = "issuer, as clients see it"
	u, err := url.Parse(d.cfg.Issuer)
	if err != nil {
		return // it was checked
	}
	address := u.Scheme + "://" + u.Host + "/.well-known/oauth-authorization-server" + u.Path
	client := &http.Client{Timeout: reachTime, Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: d.roots()}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		d.add(findingBad, about, err.Error(), "correct issuer in the configuration")
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		d.add(findingWarn, about, "it cannot be reached from here: "+err.Error(), "start the server, or look at what is in front of it: names, proxies, certificates")
		return
	}
	defer func() { _ = resp.Body.Close() }()
	var doc struct {
		Issuer string `json:"issuer"`
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&doc)
	switch {
	case err != nil || resp.StatusCode != http.StatusOK:
		d.add(findingBad, about, fmt.Sprintf("%s answers %s, and no metadata", address, resp.Status), "have what is in front of Stint pass the paths of the issuer on")
	case doc.Issuer != d.cfg.Issuer:
		d.add(findingBad, about, fmt.Sprintf("who answers there says that it is %q", doc.Issuer), "make issuer in the configuration, and the name that clients use, the same, letter by letter")
	default:
		d.add(findingGood, about, "it answers, and is who it says", "")
	}
	if resp.TLS == nil {
		return
	}
	if v := resp.TLS.Version; v < tls.VersionTLS13 {
		d.add(findingWarn, "TLS", "clients get "+tls.VersionName(v), "allow TLS 1.3 in what is in front of Stint")
	}
	left := time.Until(resp.TLS.PeerCertificates[0].NotAfter)
	state, do := findingGood, ""
	if left < soonExpires {
		state, do = findingWarn, "renew it; Stint reads the files again when they change"
	}
	d.add(state, "certificate", fmt.Sprintf("it is valid for %d days more", int(left.Hours()/24)), do)
}

// roots are the authorities that the certificate may be of: those of the system, and that
// of the configuration.
func (d *doctor) roots() *x509.CertPool {
	pool, err := x509.SystemCertPool()
	if err != nil || d.cfg.Network.CA == "" {
		return pool
	}
	if pem, err := os.ReadFile(d.cfg.Path(d.cfg.Network.CA)); err == nil {
		pool.AppendCertsFromPEM(pem)
	}
	return pool
}

// clocks holds the issuers' clocks against this one.
func (d *doctor) clocks(ctx context.Context) {
	p := &plan{cfg: d.cfg}
	client, err := p.fetcher()
	if err != nil {
		return
	}
	for _, i := range d.cfg.Issuers {
		if i.Tokens.JWKSFile != "" {
			continue // it is not asked
		}
		began := time.Now()
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, i.Policy.Issuer, nil)
		if err != nil {
			continue
		}
		resp, err := client.Do(req)
		if err != nil {
			continue // which stint check has said
		}
		_ = resp.Body.Close()
		if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			d.clock("clock of issuer "+i.Policy.Issuer, at, began, time.Second+d.cfg.Revocation.ClockSkew.Duration)
		}
	}
}

// clock compares a time that was told with ours.
func (d *doctor) clock(about string, told, began time.Time, bound time.Duration) {
	off := told.Sub(began.Add(time.Since(began) / 2)).Round(time.Millisecond)
	switch {
	case off.Abs() > bound:
		d.add(findingBad, about, fmt.Sprintf("it is %s off, and %s is the most", off, bound), "have both follow a time server (NTP)")
	case off.Abs() > offClock:
		d.add(findingWarn, about, fmt.Sprintf("it is %s off", off), "have both follow a time server (NTP)")
	default:
		d.add(findingGood, about, fmt.Sprintf("it is %s off", off), "")
	}
}

func (d *doctor) redis(ctx context.Context, l *liveCheck) {
	s, err := openStore(ctx, d.cfg, l.resolve)
	if err != nil {
		return // which stint check has said
	}
	defer func() { _ = s.Close() }()
	r, ok := s.(*store.Redis)
	if !ok {
		return
	}
	advice, err := r.Advise(ctx)
	if err != nil {
		return // as above
	}
	for _, a := range advice {
		d.add(findingWarn, "Redis", a.Detail, a.Do)
	}
	if len(advice) == 0 {
		d.add(findingGood, "Redis", "it keeps what it takes, and its user may do what it needs and no more", "")
	}
	began := time.Now()
	if at, err := r.Clock(ctx); err == nil {
		d.clock("clock of Redis", at, began, d.cfg.Revocation.MaxClockOffset.Duration)
	}
	if r := d.cfg.Store.Redis; r.TLS == nil && !onLoopback(r.Address) {
		d.add(findingBad, "Redis", "it is asked in clear over a network", "set store.redis.tls")
	}
}

func onLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func (d *doctor) vault(ctx context.Context, secrets vault.Store) {
	t, err := vault.LookUp(ctx, secrets)
	if t == nil || err != nil {
		return // no Vault, or stint check has said it
	}
	switch {
	case slices.Contains(t.Policies, "root"):
		d.add(findingBad, "Vault", "Stint has a root token", "log in by AppRole, with the policy of deploy/vault/stint.hcl")
	case t.Life == 0:
		d.add(findingWarn, "Vault", "Stint's token lives for ever", "log in by AppRole, Kubernetes or JWT")
	default:
		d.add(findingGood, "Vault", "Stint's token has the policies "+strings.Join(t.Policies, ", "), "")
	}
	if more := slices.DeleteFunc(slices.Clone(t.Policies), func(p string) bool { return p == "stint" || p == "default" || p == "root" }); len(more) > 0 {
		d.add(findingWarn, "Vault", "Stint's token has the policies "+strings.Join(more, ", ")+" as well", "deploy/vault/stint.hcl is all that it needs")
	}
}

func (d *doctor) keys(ctx context.Context) {
	keys := sealedKeys(ctx, d.cfg)
	if len(keys) == 0 {
		return // they are made at the first start
	}
	for _, k := range keys {
		age := time.Since(k.Active)
		if k.State != "active" {
			continue
		}
		state, do := findingGood, ""
		if age > oldKey {
			state, do = findingWarn, "stint keys rotate"
		}
		d.add(state, "signing key", fmt.Sprintf("%s has signed for %d days", k.ID, max(0, int(age.Hours()/24))), do)
	}
}

// text writes the findings for people, what is bad first.
func (d *doctor) text(p *printer) {
	order := []string{findingBad, findingWarn, findingGood}
	all := slices.Clone(d.found)
	slices.SortStableFunc(all, func(a, b finding) int { return cmp.Compare(slices.Index(order, a.State), slices.Index(order, b.State)) })
	for _, f := range all {
		p.row(f.State, f.About, f.Detail)
		if f.Do != "" {
			p.row("", "", "-> "+f.Do)
		}
	}
	p.flush()
	p.line("\n%d bad, %d to be mended, %d good", d.count(findingBad), d.count(findingWarn), d.count(findingGood))
}
