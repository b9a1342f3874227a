package api

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/time/rate"

	"github.com/stint-dev/stint/broker"
)

// What is in the place of the local socket and is none stays.
func TestAFileInThePlaceOfTheSocketStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "precious.txt")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if in, err := listenLocal(path); err == nil || !strings.Contains(err.Error(), path+" is there and is no socket") {
		t.Errorf("%v, %v", in, err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "mine" {
		t.Errorf("%q, %v", data, err)
	}
}

// Whoever opens connections without end leaves files for others, and gets no more
// than there are.
func TestConnectionsAreLimited(t *testing.T) {
	if n := mostConnections(); n < 1 || n > 10_000 {
		t.Errorf("%d connections", n)
	}
	s := &Server{now: time.Now}
	public, err := s.listenPublic(Listen{Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := public.(*connections); !ok {
		t.Error("the public listener takes as many as come")
	}
	_ = public.Close()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in := limitConnections(inner, 2)
	accepted := make(chan net.Conn)
	ended := make(chan error)
	go func() {
		for {
			conn, err := in.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- conn
		}
	}()
	for range 3 {
		conn, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
	}
	first := <-accepted
	<-accepted
	select {
	case <-accepted:
		t.Fatal("a third was accepted")
	case <-time.After(50 * time.Millisecond):
	}
	_ = first.Close()
	_ = first.Close() // once more frees nothing
	<-accepted
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("it still accepts")
	}
}

// slowBroker answers for its state after a while.
type slowBroker struct {
	Broker
	asked atomic.Int32
	hold  chan struct{}
}

func (b *slowBroker) Status(context.Context) broker.Status {
	b.asked.Add(1)
	<-b.hold
	return broker.Status{Replica: "r"}
}

// However many ask for the state at once, one asks around, and the others wait for
// nothing but that, or have the answer from before.
func TestManyWhoAskForTheStateMakeOneQuestion(t *testing.T) {
	var clock atomic.Int64
	b := &slowBroker{hold: make(chan struct{})}
	s := &Server{broker: b, now: func() time.Time { return time.Unix(1000+clock.Load(), 0) }}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got := s.status(context.Background(), false); got.Replica != "r" {
				t.Errorf("%+v", got)
			}
		})
	}
	close(b.hold)
	wg.Wait()
	if n := b.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	clock.Store(60)
	b.hold = make(chan struct{})
	wg.Go(func() { s.status(context.Background(), false) })
	for b.asked.Load() != 2 {
		time.Sleep(time.Millisecond)
	}
	if got := s.status(context.Background(), false); got.Replica != "r" { // while that one asks
		t.Errorf("%+v", got)
	}
	close(b.hold)
	wg.Wait()
}

// Strangers cannot fill the log: what they are refused for is in it for those who
// look closely, and what fails here as often as somebody could read.
func TestStrangersCannotFillTheLog(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1000, 0)
	s := &Server{log: slog.New(slog.NewTextHandler(&out, nil)), now: func() time.Time { return now }, failures: rate.NewLimiter(1, 60)}
	refuse := func(status int) {
		c := echo.New().NewContext(httptest.NewRequest(http.MethodPost, "/oauth2/token", nil), httptest.NewRecorder())
		s.logRefusal(c, problem{Error: "x", status: status}, errors.New("why"))
	}
	lines := func() int { return strings.Count(out.String(), "\n") }
	for range 1000 {
		refuse(http.StatusUnauthorized)
		refuse(http.StatusTooManyRequests)
	}
	if lines() != 0 {
		t.Errorf("%d lines for what strangers did", lines())
	}
	for range 1000 {
		refuse(http.StatusServiceUnavailable)
	}
	if lines() != 60 {
		t.Errorf("%d lines for what failed", lines())
	}
	now = now.Add(2 * time.Second)
	refuse(http.StatusServiceUnavailable)
	if !strings.Contains(out.String(), "others=940") {
		t.Error("how many were left out is not said")
	}
}
