// Package sample is the cast of `stint demo` and `stint dev`: an identity
// provider, an MCP server, an API behind it, and an agent. They are real, and
// they are small: whoever wants to know how an MCP server uses Stint reads mcp.go
// and tools.go, how a resource server does api.go, and stint.go for what both
// send.
//
// It is for demonstration. The users' passwords are in this file's neighbour for
// everybody to read, everything is kept in memory, and nothing listens anywhere
// but on loopback, over plain HTTP.
package sample

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Bounds of what the servers take and wait for.
const (
	maxBody     = 64 << 10 // bytes of a request or an answer
	maxHeader   = 32 << 10
	patience    = 10 * time.Second // for one request to somebody else
	callTime    = 20 * time.Second // for all that a tool call does
	writeTime   = 30 * time.Second
	closingTime = 5 * time.Second
)

// server is a running HTTP server on loopback.
type server struct {
	http    *http.Server
	base    string // http://HOST:PORT
	done    chan struct{}
	release []func()
	once    sync.Once
	err     error
}

// listen returns l, or a listener at a free port of 127.0.0.1 if it is nil. A
// listener elsewhere than on loopback is closed and refused: what is served here
// is not fit for a network.
func listen(l net.Listener) (net.Listener, error) {
	if l == nil {
		return net.Listen("tcp", "127.0.0.1:0")
	}
	if a, ok := l.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		_ = l.Close()
		return nil, fmt.Errorf("listen at %s: the sample servers are for loopback addresses alone", l.Addr())
	}
	return l, nil
}

// serve starts serving. The server ends with ctx, if it is not closed before, and
// then calls what is to be released.
func serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger, release ...func()) *server {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &server{
		base: "http://" + l.Addr().String(), done: make(chan struct{}), release: append(release, cancel),
		http: &http.Server{
			Handler:           onlyLoopback(http.MaxBytesHandler(h, maxBody)),
			BaseContext:       func(net.Listener) context.Context { return base },
			ReadHeaderTimeout: patience, ReadTimeout: patience, WriteTimeout: writeTime, IdleTimeout: time.Minute,
			MaxHeaderBytes: maxHeader,
			ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		},
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	go func() {
		defer close(s.done)
		defer stop()
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("sample server ended", "address", l.Addr().String(), "error", err)
		}
	}()
	return s
}

// Close stops listening, lets requests in flight finish for a few seconds, and
// then cuts them off, which is an error. It may be called more than once.
func (s *server) Close() error {
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closingTime)
		defer cancel()
		if s.err = s.http.Shutdown(ctx); s.err != nil {
			_ = s.http.Close()
		}
		for _, f := range s.release {
			f()
		}
		<-s.done
	})
	return s.err
}

// onlyLoopback refuses requests whose Host is another name: a page in a browser
// could have that name lead here (DNS rebinding).
func onlyLoopback(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "this server is for loopback names alone", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// newClient returns an HTTP client with bounded times. It follows no redirects:
// what it sends holds credentials.
func newClient() *http.Client {
	return &http.Client{
		Timeout:       patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     newTransport(),
	}
}

func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
		TLSHandshakeTimeout:    3 * time.Second,
		ResponseHeaderTimeout:  callTime,
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        30 * time.Second,
	}
}

// readBody reads an answer. One that is too large is an error, not cut off.
func readBody(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxBody+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read answer: %w", err)
	case len(data) > maxBody:
		return nil, fmt.Errorf("an answer of more than %d bytes", maxBody)
	}
	return data, nil
}

// orDiscard returns a logger that can be used.
func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
