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
	"strings"
	"syscall"
	"time"

	"github.com/stint-dev/stint/api/adminapi"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/secret"
)

// adminAPI speaks to a running server: over its local socket, or over the network.
type adminAPI struct {
	client *http.Client
	base   string
	token  secret.String // empty on the socket
}

// errNotRunning means that no server listens on the socket.
var errNotRunning = errors.New("no server is running here")

// errNotSignedIn means that a token is not, or not any more, accepted.
var errNotSignedIn = errors.New("you are not signed in")

func dialLocal(cfg *config.Config) (*adminAPI, error) {
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
	return &adminAPI{base: "http://stint", client: &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}},
	}}, nil
}

// call makes a request and reads the answer into out. What the server refuses is
// refused; what it could not do failed.
func (l *adminAPI) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, l.base+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if !l.token.Empty() {
		req.Header.Set("Authorization", "Bearer "+l.token.Reveal())
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the server: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		var e adminapi.Problem
		_ = json.Unmarshal(data, &e)
		err := fmt.Errorf("the server answered %d %s: %s (request %s)", resp.StatusCode, e.Code, cmp.Or(e.Detail, e.Title), resp.Header.Get("X-Request-Id"))
		if resp.StatusCode == http.StatusUnauthorized {
			err = fmt.Errorf("%w: %w\nsign in: stint login %s", errNotSignedIn, err, strings.TrimSuffix(l.base, "/"))
		}
		if resp.StatusCode < http.StatusInternalServerError && resp.StatusCode != http.StatusTooManyRequests {
			return &exitError{exitRefused, err}
		}
		return err
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("the answer is none of Stint: %w", err)
	}
	return nil
}

// maxAnswer bounds what is read of an answer, in bytes: a page of leases is of some
// hundred kilobytes.
const maxAnswer = 16 << 20
