package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/config"
)

// served runs a server until it is ready and meanwhile is over, and returns its log.
func served(t *testing.T, file string, meanwhile func()) string {
	t.Helper()
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listen.Address, cfg.Listen.Ops = "127.0.0.1:0", "127.0.0.1:0"
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log := &serverLog{}
	err = serve(ctx, cfg, log, func(*server, string, string) {
		go func() {
			defer cancel()
			meanwhile()
		}()
	})
	if err != nil {
		t.Fatal(err)
	}
	return log.b.String()
}

func TestWhatIsGoneOfTheDataFolderIsWarnedOf(t *testing.T) {
	dir := initialised(t)
	file := filepath.Join(dir, theConfig)
	shortSocket(t, file)
	log := served(t, file, func() {})
	if err := os.Remove(filepath.Join(dir, "data/subjects.db")); err != nil {
		t.Fatal(err)
	}
	if gone := served(t, file, func() {}); !strings.Contains(gone, "the keys of subjects are new") {
		t.Errorf("before anything was revoked: %s", gone)
	}
	log += served(t, file, func() {
		if out, code := stintCLI(t, "revoke", "-c", file, "--session", anID); code != 0 {
			t.Errorf("%d: %s", code, out)
		}
	})
	log += served(t, file, func() {})
	if strings.Contains(log, `"level":"WARN"`) {
		t.Errorf("nothing is gone: %s", log)
	}
	for gone, want := range map[string]string{"data/subjects.db": "the keys of subjects are new", "data/journal": "the journal is new"} {
		if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
			t.Fatal(err)
		}
		if log := served(t, file, func() {}); !strings.Contains(log, want) {
			t.Errorf("%s: %s", gone, log)
		}
	}
}
