package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/stint-dev/stint/api/adminapi"
	"github.com/stint-dev/stint/internal/config"
)

// local speaks to a running server over its socket.
type local struct{ client *http.Client }

// errNotRunning means that no server listens on the socket.
var errNotRunning = errors.New("no server is running here")

func dialLocal(cfg *config.Config) (*local, error) {
	path := cfg.Listen.Socket
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: nothing listens on %s", errNotRunning, path)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%s: no permission; be the user that runs the server", path)
	case err != nil:
		return nil, fmt.Errorf("reach the server: %w", err)
	}
	_ = conn.Close()
	return &local{&http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}},
	}}, nil
}

// call makes a request and reads the answer into out. What the server refuses is
// refused; what it could not do failed.
func (l *local) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://stint"+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the server: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		var e adminapi.Problem
		_ = json.Unmarshal(data, &e)
		err := fmt.Errorf("the server answered %d %s: %s (request %s)", resp.StatusCode, e.Code, cmp.Or(e.Detail, e.Title), resp.Header.Get("X-Request-Id"))
		if resp.StatusCode < http.StatusInternalServerError && resp.StatusCode != http.StatusTooManyRequests {
			return &exitError{exitRefused, err}
		}
		return err
	}
	return json.Unmarshal(data, out)
}
