package main

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/testbed"
)

// What a container's health is decided by: there, ready, and the store gone.
func TestReadyIsWhatTheServerSays(t *testing.T) {
	redis := testbed.Redis(t, testbed.RedisOptions{AppendOnly: true})
	dir := initialised(t, "--redis", redis.Addr)
	file := filepath.Join(dir, theConfig)
	edit(t, file, "    username: stint\n", "", "    password: file:/run/secrets/stint-redis\n", "")
	shortSocket(t, file)
	ask := func() (r readyReport, code int, err error) {
		t.Helper()
		out, code, err := command(t, "ready", "-c", file, "-o", "json")
		if out != "" {
			if err := json.Unmarshal([]byte(out), &r); err != nil {
				t.Fatal(err)
			}
		}
		return r, code, err
	}
	if _, code, err := ask(); code != exitFailed || err == nil || !strings.Contains(err.Error(), "no server is running here") {
		t.Errorf("without a server: %d, %v", code, err)
	}
	serving(t, file)
	if out, code, err := command(t, "ready", "-c", file, "--wait", "30s"); code != 0 || out != "ready\n" {
		t.Errorf("with one: %d, %v, %s", code, err, out)
	}
	if r, code, err := ask(); code != 0 || !r.Ready || len(r.Missing) != 0 {
		t.Errorf("with one: %d, %v, %+v", code, err, r)
	}
	redis.Process.Kill()
	deadline := time.Now().Add(30 * time.Second)
	for {
		r, code, err := ask()
		if code == exitFailed && !r.Ready && slices.Contains(r.Missing, "revocation feed") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("without its store: %d, %v, %+v", code, err, r)
		}
	}
}

func TestReadyRefusesWhatItCannotWaitFor(t *testing.T) {
	if _, code, err := command(t, "ready", "--wait", "-1s"); code != exitUsage || err == nil {
		t.Errorf("got %d, %v", code, err)
	}
	if _, code, err := command(t, "ready", "-c", "/does/not/exist.yaml"); code != exitRefused || err == nil {
		t.Errorf("got %d, %v", code, err)
	}
}
