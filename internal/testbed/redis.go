package testbed

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// RedisOptions says what kind of Redis a test needs. The zero value is one that
// keeps everything in memory, over plain TCP, where everybody may do everything.
type RedisOptions struct {
	// AppendOnly writes and syncs every change before it is answered, so that
	// [RedisServer.Restart] loses nothing that was.
	AppendOnly bool
	// ReplicaOf makes it a replica, ready when it is in step with its master. Not
	// with TLS: each server has an authority of its own.
	ReplicaOf *RedisServer
	// TLS makes it take nothing but TLS, and ask for the client's certificate.
	TLS bool
	// Cluster makes it a cluster of one node, which refuses what touches keys of
	// several hash slots.
	Cluster bool
	// Config is appended to redis.conf, for instance users. The user testbed, who
	// may do everything, exists whatever it says.
	Config string
}

// RedisServer is a running Redis.
type RedisServer struct {
	// Addr is HOST:PORT. It stays the same over restarts, as does Dir, where the
	// server keeps its files.
	Addr, Dir string
	// Process is the present process; Restart replaces it.
	Process *Process
	// CA, Certificate and Key are PEM: the authority that signed the server's
	// certificate, and a certificate with its key for a client. Empty without TLS.
	CA, Certificate, Key string

	t    testing.TB
	opts RedisOptions
	path string
	tls  *tls.Config
}

// Redis starts a Redis, or skips the test if there is none.
func Redis(t testing.TB, opts RedisOptions) *RedisServer {
	t.Helper()
	s := &RedisServer{t: t, opts: opts, Dir: t.TempDir()}
	s.path = Find(t, "apt-get install redis-server", "redis-server")
	port := FreePort(t)
	s.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	if opts.TLS {
		s.certify()
	}
	if err := os.WriteFile(s.file("redis.conf"), []byte(s.config(port)), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.start(); opts.Cluster {
		s.Do("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
		s.settle()
	}
	return s
}

// settle waits until the cluster has found that it is complete.
func (s *RedisServer) settle() {
	s.t.Helper()
	s.await(func() error { return s.expect("cluster_state:ok", "CLUSTER", "INFO") })
}

func (s *RedisServer) file(name string) string { return filepath.Join(s.Dir, name) }

func (s *RedisServer) config(port int) string {
	lines := []string{
		"bind 127.0.0.1", "dir " + s.Dir, `save ""`, "user testbed on nopass ~* &* +@all",
		"masteruser testbed", "masterauth any", "repl-diskless-sync-delay 0",
	}
	if s.opts.TLS {
		lines = append(lines, "port 0", fmt.Sprint("tls-port ", port), "tls-replication yes", "tls-cluster yes",
			"tls-ca-cert-file "+s.file("ca.pem"), "tls-cert-file "+s.file("server.pem"), "tls-key-file "+s.file("server.key"))
	} else {
		lines = append(lines, fmt.Sprint("port ", port))
	}
	if s.opts.AppendOnly {
		lines = append(lines, "appendonly yes", "appendfsync always")
	}
	if m := s.opts.ReplicaOf; m != nil {
		host, port, _ := net.SplitHostPort(m.Addr)
		lines = append(lines, "replicaof "+host+" "+port)
	}
	if s.opts.Cluster {
		lines = append(lines, "cluster-enabled yes", fmt.Sprint("cluster-port ", FreePort(s.t)))
	}
	return strings.Join(append(lines, s.opts.Config), "\n") + "\n"
}

func (s *RedisServer) start() {
	s.t.Helper()
	s.Process = Start(s.t, exec.Command(s.path, s.file("redis.conf")), func() error {
		if s.opts.ReplicaOf != nil {
			return s.expect("master_link_status:up", "INFO", "replication")
		}
		return s.expect("PONG", "PING")
	})
}

// Restart kills the server, if it still runs, and starts it again on the same
// files. What it was not told to keep is gone.
func (s *RedisServer) Restart() {
	s.t.Helper()
	s.Process.Kill()
	if s.start(); s.opts.Cluster {
		s.settle()
	}
}

// Do runs a command as the user testbed and returns its reply; those of several
// parts have a line for each. An error of Redis fails the test.
func (s *RedisServer) Do(args ...string) string {
	s.t.Helper()
	reply, err := s.do(args...)
	if err != nil {
		s.t.Fatalf("redis %s: %v", args[0], err)
	}
	return reply
}

// expect returns nil once the reply to a command contains a text.
func (s *RedisServer) expect(text string, args ...string) error {
	reply, err := s.do(args...)
	if err == nil && !strings.Contains(reply, text) {
		err = fmt.Errorf("no %q in the reply to %s", text, strings.Join(args, " "))
	}
	return err
}

func (s *RedisServer) await(ready func() error) {
	s.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for err := ready(); err != nil; err = ready() {
		if time.Now().After(deadline) {
			s.t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *RedisServer) do(args ...string) (string, error) {
	c, err := net.DialTimeout("tcp", s.Addr, time.Second)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if s.tls != nil {
		c = tls.Client(c, s.tls)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(c)
	for _, command := range [][]string{{"AUTH", "testbed", "any"}, args} {
		text := fmt.Sprintf("*%d\r\n", len(command))
		for _, a := range command {
			text += fmt.Sprintf("$%d\r\n%s\r\n", len(a), a)
		}
		if _, err := io.WriteString(c, text); err != nil {
			return "", err
		}
		reply, err := readReply(r)
		if err != nil || command[0] != "AUTH" {
			return reply, err
		}
	}
	return "", nil
}

// readReply reads a reply of the Redis protocol, version 2.
func readReply(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimRight(line[1:], "\r\n")
	switch kind {
	case '+', ':':
		return rest, nil
	case '-':
		return "", errors.New(rest)
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < 0 {
		return "", err
	}
	if kind == '$' {
		data := make([]byte, n+2)
		_, err := io.ReadFull(r, data)
		return string(data[:n]), err
	}
	parts := make([]string, n)
	for i := range parts {
		if parts[i], err = readReply(r); err != nil {
			return "", err
		}
	}
	return strings.Join(parts, "\n"), nil
}

// certify makes an authority and, signed by it, certificates of server and client.
func (s *RedisServer) certify() {
	s.t.Helper()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "testbed authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	s.CA, _ = s.sign(ca, ca, caKey, caKey)
	leaf := func(serial int64, name string, use x509.ExtKeyUsage) (cert, key string) {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			s.t.Fatal(err)
		}
		return s.sign(&x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use, x509.ExtKeyUsageClientAuth},
		}, ca, own, caKey)
	}
	server, serverKey := leaf(2, "redis.test", x509.ExtKeyUsageServerAuth)
	s.Certificate, s.Key = leaf(3, "client.test", x509.ExtKeyUsageClientAuth)
	for name, text := range map[string]string{"ca.pem": s.CA, "server.pem": server, "server.key": serverKey} {
		if err := os.WriteFile(s.file(name), []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair([]byte(s.Certificate), []byte(s.Key))
	if err != nil {
		s.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(s.CA))
	s.tls = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, ServerName: "redis.test"}
}

func (s *RedisServer) sign(cert, parent *x509.Certificate, own, signer *ecdsa.PrivateKey) (certPEM, keyPEM string) {
	s.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, &own.PublicKey, signer)
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
}
