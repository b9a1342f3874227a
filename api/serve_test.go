package api_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/api"
)

// certificate writes a certificate for 127.0.0.1 with a serial number, and its
// key, as files of a certain time.
func certificate(t testing.TB, dir string, serial int64, at time.Time) (cert, key string) {
	t.Helper()
	private := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private))(t)
	encoded := must(x509.MarshalPKCS8PrivateKey(private))(t)
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeAt(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), at)
	writeAt(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), at)
	return cert, key
}

func writeAt(t testing.TB, path string, data []byte, at time.Time) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// served returns the serial number of the certificate that a server shows now.
func (w *world) served(change func(*tls.Config)) (serial int64, state tls.ConnectionState, err error) {
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}} // which certificate it is is what is asked
	if change != nil {
		change(cfg)
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", w.public, cfg)
	if err != nil {
		return 0, state, err
	}
	defer func() { _ = conn.Close() }()
	state = conn.ConnectionState()
	return state.PeerCertificates[0].SerialNumber.Int64(), state, nil
}

func TestTLS(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		lowest   string
		most     uint16
		accepted bool
	}{
		"by default 1.3 is spoken":             {"", tls.VersionTLS13, true},
		"by default 1.2 is refused":            {"", tls.VersionTLS12, false},
		"1.2 is spoken where it is configured": {"1.2", tls.VersionTLS12, true},
		"1.1 never is":                         {"1.2", tls.VersionTLS11, false},
		"1.3 is asked for and 1.2 refused":     {"1.3", tls.VersionTLS12, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cert, key := certificate(t, t.TempDir(), 1, time.Now())
			w := newWorld(t, options{listen: func(l *api.Listen) {
				l.TLS = &api.TLS{Certificate: cert, Key: key, MinVersion: c.lowest}
			}})
			_, state, err := w.served(func(cfg *tls.Config) { cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS10, c.most })
			if (err == nil) != c.accepted {
				t.Fatalf("error %v", err)
			}
			if c.accepted && (state.Version != c.most || state.NegotiatedProtocol != "h2") {
				t.Errorf("version %x, protocol %s", state.Version, state.NegotiatedProtocol)
			}
		})
	}
}

// HTTP/2 is spoken over TLS, with the certificate verified, and the answer says
// that TLS is to stay.
func TestHTTP2(t *testing.T) {
	t.Parallel()
	cert, key := certificate(t, t.TempDir(), 1, time.Now())
	w := newWorld(t, options{listen: func(l *api.Listen) { l.TLS = &api.TLS{Certificate: cert, Key: key} }})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must(os.ReadFile(cert))(t))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	req := must(http.NewRequest(http.MethodPost, "https://"+w.public+"/oauth2/token", strings.NewReader(w.form().Encode())))(t)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("desktop", w.secret.Reveal())
	resp := must((&http.Client{Transport: transport}).Do(req))(t)
	defer func() { _ = resp.Body.Close() }()
	body := must(io.ReadAll(resp.Body))(t)
	if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
		t.Errorf("%s %d %s", resp.Proto, resp.StatusCode, body)
	}
	if got := resp.Header.Get("Strict-Transport-Security"); got != "max-age=31536000" {
		t.Errorf("Strict-Transport-Security %q", got)
	}
	if got := w.doRequest(w.http, must(http.NewRequest(http.MethodGet, "http://"+w.ops+"/livez", nil))(t)).header.Get("Strict-Transport-Security"); got != "" {
		t.Errorf("over plain HTTP: Strict-Transport-Security %q", got)
	}
}

// A certificate is read again when its files change, without a restart; what is
// broken leaves the old one in use.
func TestCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	dir, at := t.TempDir(), time.Now().Add(-time.Hour)
	cert, key := certificate(t, dir, 1, at)
	w := newWorld(t, options{listen: func(l *api.Listen) { l.TLS = &api.TLS{Certificate: cert, Key: key} }})
	shows := func(step string, want int64) {
		t.Helper()
		if got, _, err := w.served(nil); err != nil || got != want {
			t.Fatalf("%s: certificate %d, want %d; error %v", step, got, want, err)
		}
	}
	shows("at first", 1)
	certificate(t, dir, 2, at.Add(time.Minute))
	shows("the files were looked at a moment ago", 1)
	w.clock.move(10 * time.Second)
	shows("the files have changed", 2)

	writeAt(t, cert, []byte("no certificate"), at.Add(2*time.Minute))
	w.clock.move(10 * time.Second)
	shows("the certificate is broken", 2)
	if !strings.Contains(w.logs.String(), "the new certificate cannot be used; the old one stays") {
		t.Error("nobody is told")
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	w.clock.move(10 * time.Second)
	shows("the key is gone", 2)
	certificate(t, dir, 3, at.Add(2*time.Minute))
	w.clock.move(10 * time.Second)
	shows("it is mended", 3)
	w.clock.move(10 * time.Second)
	shows("nothing has changed", 3)
	if got := strings.Count(w.logs.String(), "certificate read again"); got != 2 {
		t.Errorf("read again %d times", got)
	}
}

func TestPlainHTTPIsForLoopback(t *testing.T) {
	t.Parallel()
	for address, ok := range map[string]bool{
		"127.0.0.1:0": true, "127.8.8.8:0": true, "[::1]:0": true, "localhost:0": true,
		":0": false, "0.0.0.0:0": false, "[::]:0": false, "10.0.0.1:0": false, "stint.example:0": false, "localhost.example:0": false,
	} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			l := api.Listen{Address: address}
			if err := l.Check(); (err == nil) != ok {
				t.Errorf("plain HTTP: %v", err)
			}
			l.BehindProxy = true
			if err := l.Check(); err != nil {
				t.Errorf("behind a proxy: %v", err)
			}
			l.BehindProxy, l.TLS = false, &api.TLS{Certificate: "c", Key: "k"}
			if err := l.Check(); err != nil {
				t.Errorf("with TLS: %v", err)
			}
		})
	}
}

// Serve listens where it can, or nowhere.
func TestServeRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	dir := t.TempDir()
	notASocket := filepath.Join(dir, "folder")
	if err := os.MkdirAll(filepath.Join(notASocket, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	good := api.Listen{Address: "127.0.0.1:0", Ops: "127.0.0.1:0", Socket: filepath.Join(w.dir, "t")}
	for name, c := range map[string]struct {
		change func(*api.Listen)
		want   string
	}{
		"plain HTTP on every address":         {func(l *api.Listen) { l.Address = ":0" }, "plain HTTP is for loopback"},
		"an address in use":                   {func(l *api.Listen) { l.Address = w.public }, "listen: "},
		"an address of operators in use":      {func(l *api.Listen) { l.Ops = w.ops }, "listen for operators"},
		"a socket in use":                     {func(l *api.Listen) { l.Socket = w.socket }, "in use by another process"},
		"something else where the socket was": {func(l *api.Listen) { l.Socket = notASocket }, "local socket"},
		"a socket in no folder":               {func(l *api.Listen) { l.Socket = filepath.Join(dir, "no", "folder") }, "local socket"},
		"no certificate": {func(l *api.Listen) {
			l.TLS = &api.TLS{Certificate: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k")}
		}, "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			l := good
			c.change(&l)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) // should it listen after all
			defer cancel()
			err := w.server.Serve(ctx, l, time.Second, func(string, string) { t.Error("it listens") })
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v", err)
			}
		})
	}
	if got := w.post("/oauth2/token", w.form()); got.status != 200 {
		t.Errorf("the server that runs answers %d", got.status)
	}
}

// The local socket is for its owner; a dead process's is replaced, and the caller
// is in the record.
func TestLocalSocket(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{listen: func(l *api.Listen) {
		left := must(net.ListenUnix("unix", &net.UnixAddr{Name: l.Socket, Net: "unix"}))(t)
		left.SetUnlinkOnClose(false)
		_ = left.Close()
	}})
	if mode := must(os.Stat(w.socket))(t).Mode(); mode.Perm() != 0o600 || mode.Type() != os.ModeSocket {
		t.Errorf("mode %s", mode)
	}
	req := must(http.NewRequest(http.MethodPost, "http://stint/admin/v1/revocations", strings.NewReader(`{"session":"abc","reason":"lost"}`)))(t)
	req.Header.Set("Content-Type", "application/json")
	if got := w.doRequest(w.local, req); got.status != 201 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if want := fmt.Sprintf(`"operator":"uid:%d"`, os.Getuid()); !strings.Contains(w.journalled(), want) {
		t.Errorf("the record has no %s", want)
	}
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(w.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// raw opens a connection to the public listener.
func (w *world) raw(send string) net.Conn {
	w.Helper()
	conn := must(net.Dial("tcp", w.public))(w)
	w.Cleanup(func() { _ = conn.Close() })
	must(io.WriteString(conn, send))(w)
	_ = conn.SetReadDeadline(time.Now().Add(40 * time.Second))
	return conn
}

const head = "POST /oauth2/token HTTP/1.1\r\nHost: stint\r\nContent-Type: application/x-www-form-urlencoded\r\n"

func TestSizesAreLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{limits: api.Limits{Body: 4096}})
	for name, c := range map[string]struct {
		send string
		want int
	}{
		"a body within the limit":         {head + "Content-Length: 4096\r\n\r\na=" + strings.Repeat("x", 4094), 400},
		"a body beyond the limit":         {head + "Content-Length: 4097\r\n\r\na=" + strings.Repeat("x", 4095), 413},
		"a body of unknown length":        {head + "Transfer-Encoding: chunked\r\n\r\n1001\r\n" + strings.Repeat("x", 4097) + "\r\n0\r\n\r\n", 413},
		"headers beyond the limit":        {head + "X-Filler: " + strings.Repeat("x", 32<<10) + "\r\n\r\n", 431},
		"many headers beyond the limit":   {head + strings.Repeat("X-Filler: xxxxxxxxxxxxxxxx\r\n", 2000) + "\r\n", 431},
		"an address beyond the limit":     {"GET /" + strings.Repeat("x", 32<<10) + " HTTP/1.1\r\nHost: stint\r\n\r\n", 431},
		"two lengths that do not agree":   {head + "Content-Length: 3\r\nContent-Length: 5\r\n\r\na=b", 400},
		"a length and chunks, to smuggle": {head + "Content-Length: 3\r\nTransfer-Encoding: gzip\r\n\r\na=b", 501},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resp := must(http.ReadResponse(bufio.NewReader(w.raw(c.send)), nil))(t)
			body := must(io.ReadAll(resp.Body))(t)
			if resp.StatusCode != c.want {
				t.Errorf("status %d, want %d: %s", resp.StatusCode, c.want, body)
			}
			if c.want == 413 && strings.TrimSpace(string(body)) != `{"error":"invalid_request","error_description":"the body is too large"}` {
				t.Errorf("body %s", body)
			}
		})
	}
	req := must(http.NewRequest(http.MethodPost, "http://stint/admin/v1/revocations", strings.NewReader(`{"reason":"`+strings.Repeat("x", 5000)+`"}`)))(t)
	req.Header.Set("Content-Type", "application/json")
	if got := w.doRequest(w.local, req); got.status != 413 {
		t.Errorf("on the local socket: %d %s", got.status, got.body)
	}
}

// Whoever sends slowly is cut off. The times are the network's own, which no
// clock of ours moves.
func TestSlowSendersAreCutOff(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes 15 seconds")
	}
	w := newWorld(t, options{})
	for name, c := range map[string]struct {
		send string
		most time.Duration
	}{
		"headers that do not end":   {"POST /oauth2/token HTTP/1.1\r\nHost: stint\r\nX-A: ", 10 * time.Second},
		"a connection without word": {"", 10 * time.Second},
		"a body that does not end":  {head + "Content-Length: 100\r\n\r\na=b", 25 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			conn := w.raw(c.send)
			go func() { // a byte now and then does not help
				for range 200 {
					time.Sleep(200 * time.Millisecond)
					if c.send == "" {
						continue
					}
					if _, err := conn.Write([]byte("x")); err != nil {
						return
					}
				}
			}()
			_, err := io.ReadAll(conn)
			if took := time.Since(began); took > c.most {
				t.Errorf("held for %s: %v", took, err)
			}
		})
	}
}

// block makes the next vending wait, and returns how to let it go on and how to
// know that it waits.
func (w *world) block() (waits <-chan struct{}, goOn func()) {
	reached, release := make(chan struct{}), make(chan struct{})
	w.code.set(func() { close(reached); <-release })
	return reached, func() { w.code.set(nil); close(release) }
}

// vending is a request for a credential of the upstream.
func (w *world) vending() url.Values {
	w.Helper()
	mine := issued(w, w.post("/oauth2/token", w.form()))
	return w.asFilesMCP(url.Values{
		"grant_type": {exchange}, "subject_token": {mine}, "subject_token_type": {access}, "resource": {"fake://code/web"}, "scope": {"files:read"},
	})
}

// A server that stops says so first, takes nothing new, and finishes what it has.
func TestStopFinishesWhatIsInFlight(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{grace: 20 * time.Second})
	form := w.vending()
	waits, goOn := w.block()
	flight := make(chan *answer, 1)
	go func() { flight <- w.post("/oauth2/token", form) }()
	<-waits
	stopped := make(chan error, 1)
	go func() { stopped <- w.stop() }()
	health := func() *answer {
		resp, err := http.Get("http://" + w.ops + "/readyz")
		if err != nil {
			t.Fatalf("the operators' listener is gone before the rest: %v", err)
		}
		defer func() { _ = resp.Body.Close() }()
		return &answer{resp.StatusCode, resp.Header, must(io.ReadAll(resp.Body))(t)}
	}
	eventually(t, "readyz says that the server is going away", func() bool { return health().status == 503 })
	if got := health(); !bytes.Contains(got.body, []byte(`"missing":["shutting down"]`)) {
		t.Errorf("readyz: %s", got.body)
	}
	eventually(t, "nothing new is taken", func() bool {
		conn, err := net.Dial("tcp", w.public)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	select {
	case err := <-stopped:
		t.Fatalf("it stopped before the request was finished: %v", err)
	default:
	}
	goOn()
	if got := <-flight; got.status != 200 {
		t.Errorf("the request in flight: %d %s", got.status, got.body)
	}
	if err := <-stopped; err != nil {
		t.Errorf("stop: %v", err)
	}
}

// Whoever spreads requests over servers has time to see that this one goes away.
func TestStopServesOnWhileReadyzSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{listen: func(l *api.Listen) { l.Drain.Duration = 2 * time.Second }})
	began := time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- w.stop() }()
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // as one who comes anew
	eventually(t, "readyz says that the server is going away", func() bool {
		resp, err := fresh.Get("http://" + w.public + "/readyz")
		if err != nil {
			t.Fatalf("nobody is there any more after %s: %v", time.Since(began), err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	resp, err := fresh.Get("http://" + w.public + "/oauth2/jwks")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("a request that comes meanwhile: %v", err)
	} else {
		_ = resp.Body.Close()
	}
	if err := <-stopped; err != nil || time.Since(began) < 2*time.Second {
		t.Errorf("stopped after %s: %v", time.Since(began), err)
	}
	if _, err := fresh.Get("http://" + w.public + "/readyz"); err == nil {
		t.Error("it goes on for ever")
	}
}

// What does not end within the time for it is cut off.
func TestStopDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{grace: 50 * time.Millisecond})
	form := w.vending()
	waits, goOn := w.block()
	defer goOn()
	cut := make(chan error, 1)
	body := form.Encode()
	conn := w.raw(head + "Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
	go func() { _, err := io.ReadAll(conn); cut <- err }()
	<-waits
	if err := w.stop(); err == nil {
		t.Error("nobody is told that a request was cut off")
	}
	select {
	case <-cut:
	case <-time.After(10 * time.Second):
		t.Error("the connection is still open")
	}
}
