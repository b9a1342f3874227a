package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/stint-dev/stint/scopes"
)

// Listen says where and how to listen.
type Listen struct {
	// Address is where the public endpoints listen: HOST:PORT or :PORT.
	Address string `yaml:"address" check:"required,hostport"`
	// TLS is the certificate. Without it only loopback addresses are listened on,
	// unless behind_proxy is set.
	TLS *TLS `yaml:"tls,omitempty"`
	// BehindProxy allows plain HTTP on any address: a proxy in front speaks TLS,
	// and nobody else can reach this one.
	BehindProxy bool `yaml:"behind_proxy,omitempty"`
	// Ops is where health in full and metrics listen, plain HTTP on a loopback
	// address or a private network. Absent: 127.0.0.1:9464.
	Ops string `yaml:"ops,omitempty" check:"hostport"`
	// Socket is the path of the local socket for operators. Absent: stint.sock in
	// the data folder.
	Socket string `yaml:"socket,omitempty"`
	// Drain is how long everything is still served after the server was asked to
	// stop, while /readyz says 503: what spreads requests over several servers has so
	// long to notice, instead of finding nobody there. In Kubernetes, where a pod gets
	// requests for some seconds after its SIGTERM, 10s; terminationGracePeriodSeconds
	// is then at least 30, for the requests in flight have 15s more. Absent: no time.
	Drain scopes.Duration `yaml:"drain,omitempty" check:"min=100ms,max=5m"`
}

// TLS is a certificate and how it is used.
type TLS struct {
	// Certificate and Key are PEM files. They are read again when they change.
	Certificate string `yaml:"certificate" check:"required"`
	Key         string `yaml:"key" check:"required"`
	// MinVersion is the lowest version that is spoken: 1.3, or 1.2 if it must be.
	// Absent: 1.3.
	MinVersion string `yaml:"min_version,omitempty" check:"oneof=1.2|1.3"`
	// ClientCA is a file of certificates in PEM: the authorities that sign those of
	// clients with the method tls_client_auth which name none themselves.
	ClientCA string `yaml:"client_ca,omitempty"`

	// AskClients asks callers for a certificate, which they need not have; Hints are the
	// authorities that they are told, nil for any. Set where clients authenticate so.
	AskClients bool           `yaml:"-"`
	Hints      *x509.CertPool `yaml:"-"`
}

// Bounds of what a caller shows in a handshake.
const (
	maxChain     = 6        // certificates
	maxChainSize = 24 << 10 // bytes
)

var errChain = errors.New("more certificates than are looked at")

// asking makes a server ask for certificates. That the caller has the key is seen to by
// the handshake; whose they are is looked at when a client names itself, since some are
// signed by nobody. Every connection is to prove its key: none is taken up again.
func (t TLS) asking(cfg *tls.Config) {
	if !t.AskClients {
		return
	}
	cfg.ClientAuth, cfg.ClientCAs, cfg.SessionTicketsDisabled = tls.RequestClientCert, t.Hints, true
	cfg.VerifyPeerCertificate = func(raw [][]byte, _ [][]*x509.Certificate) error {
		size := 0
		for _, c := range raw {
			size += len(c)
		}
		if len(raw) > maxChain || size > maxChainSize {
			return errChain
		}
		return nil
	}
}

// Check says what is wrong with where to listen.
func (l *Listen) Check() error {
	host, _, err := net.SplitHostPort(l.Address)
	if l.TLS != nil && (l.TLS.ClientCA != "" || l.TLS.AskClients) && l.TLS.MinVersion == "1.2" {
		return errors.New("tls: clients' certificates are for TLS 1.3 alone, and min_version is 1.2")
	}
	if err == nil && l.TLS == nil && !l.BehindProxy && !loopback(host) {
		return fmt.Errorf("address %s: plain HTTP is for loopback addresses; give tls a certificate, or set behind_proxy", l.Address)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// certificate keeps a certificate up to date with its files.
type certificate struct {
	cfg    TLS
	log    *slog.Logger
	now    func() time.Time
	mu     sync.Mutex
	looked time.Time
	stamp  [2]time.Time
	cert   atomic.Pointer[tls.Certificate]
}

// lookEvery is how often the files are looked at, when connections come in.
const lookEvery = 10 * time.Second

func (t TLS) load(log *slog.Logger, now func() time.Time) (*certificate, error) {
	c := &certificate{cfg: t, log: log, now: now, looked: now()}
	return c, c.read()
}

func (c *certificate) read() error {
	stamp, err := c.stamps()
	if err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(c.cfg.Certificate, c.cfg.Key)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	c.stamp = stamp
	c.cert.Store(&cert)
	return nil
}

func (c *certificate) stamps() (s [2]time.Time, err error) {
	for i, path := range []string{c.cfg.Certificate, c.cfg.Key} {
		info, err := os.Stat(path)
		if err != nil {
			return s, fmt.Errorf("certificate: %w", err)
		}
		s[i] = info.ModTime()
	}
	return s, nil
}

// get returns the certificate, read again if its files changed. Files that are
// broken keep the old one in use.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.mu.TryLock() {
		defer c.mu.Unlock()
		if now := c.now(); now.Sub(c.looked) >= lookEvery {
			c.looked = now
			if s, err := c.stamps(); err != nil || s != c.stamp {
				if err = c.read(); err != nil {
					c.log.Error("the new certificate cannot be used; the old one stays", "error", err)
				} else {
					c.log.Info("certificate read again")
				}
			}
		}
	}
	return c.cert.Load(), nil
}

// Serve listens and serves until ctx is done, goes on for as long as l.Drain says,
// and then finishes what is being worked on, for at most grace. ready is called once
// everything listens, with the addresses.
func (s *Server) Serve(ctx context.Context, l Listen, grace time.Duration, ready func(public, ops string)) error {
	if err := l.Check(); err != nil {
		return err
	}
	var listeners []net.Listener
	closeAll := func() {
		for _, in := range listeners {
			_ = in.Close()
		}
	}
	public, err := s.listenPublic(l)
	if err != nil {
		return err
	}
	listeners = append(listeners, public)
	ops, err := net.Listen("tcp", l.Ops)
	if err != nil {
		closeAll()
		return fmt.Errorf("listen for operators: %w", err)
	}
	listeners = append(listeners, ops)
	local, err := listenLocal(l.Socket)
	if err != nil {
		closeAll()
		return err
	}
	servers := []*http.Server{s.server(s.Public()), s.server(s.Ops()), s.server(s.Local())}
	servers[2].ConnContext = peer
	failed := make(chan error, len(servers))
	for i, in := range append(listeners, local) {
		go func() { failed <- servers[i].Serve(in) }()
	}
	ready(public.Addr().String(), ops.Addr().String())
	select {
	case <-ctx.Done():
		s.Drain()
		err = servedFor(l.Drain.Duration, failed)
	case err = <-failed:
		s.Drain()
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	for _, srv := range servers {
		err = errors.Join(err, ignoreClosed(srv.Shutdown(stop)))
		_ = srv.Close() // what did not end in time
	}
	return ignoreClosed(err)
}

// servedFor waits, unless serving fails.
func servedFor(d time.Duration, failed <-chan error) error {
	if d <= 0 {
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case err := <-failed:
		return err
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *Server) listenPublic(l Listen) (net.Listener, error) {
	in, err := net.Listen("tcp", l.Address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	in = limitConnections(in, mostConnections())
	if l.TLS == nil {
		return in, nil
	}
	cert, err := l.TLS.load(s.log, s.now)
	if err != nil {
		_ = in.Close()
		return nil, err
	}
	lowest := uint16(tls.VersionTLS13)
	if l.TLS.MinVersion == "1.2" {
		lowest = tls.VersionTLS12
	}
	cfg := &tls.Config{MinVersion: lowest, GetCertificate: cert.get, NextProtos: []string{"h2", "http/1.1"}}
	l.TLS.asking(cfg)
	return tls.NewListener(in, cfg), nil
}

// listenLocal opens the local socket, for its owner alone. What a dead process
// left is removed; a socket in use is not.
func listenLocal(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("local socket %s is in use by another process", path)
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("local socket: %w", err)
	case info.Mode().Type() != os.ModeSocket:
		return nil, fmt.Errorf("local socket: %s is there and is no socket; it stays as it is", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("local socket: %w", err)
		}
	}
	in, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("local socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = in.Close()
		return nil, fmt.Errorf("local socket: %w", err)
	}
	return in, nil
}

func (s *Server) server(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 60 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

type peerKey struct{}

// peerName names the user at the other end of the local socket.
func peerName(c echo.Context) string {
	if uid, ok := c.Request().Context().Value(peerKey{}).(uint32); ok {
		return "uid:" + strconv.FormatUint(uint64(uid), 10)
	}
	return "local"
}
