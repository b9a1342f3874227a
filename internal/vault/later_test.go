package vault

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
)

func TestASealedFileOfALaterVersion(t *testing.T) {
	for text, later := range map[string]bool{
		`{"version":1,"secrets":{}}`: false, `{"version":2,"secrets":{},"new":1}`: true, `{"version":2,"secrets":[]}`: true,
		`{"version":0,"secrets":{}}`: false, `{"secrets":[]}`: false,
	} {
		if _, err := parseSealed([]byte(text)); errors.Is(err, broker.ErrLater) != later {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestWhatALaterVersionSealed(t *testing.T) {
	dir := t.TempDir()
	cfg := FileConfig{Path: filepath.Join(dir, "secrets.age"), Identity: filepath.Join(dir, "identity")}
	if err := Init(cfg); err != nil {
		t.Fatal(err)
	}
	f, err := openFile(cfg, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	s, err := NewSealer(t.Context(), f, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Seal([]byte("x"), "lease 1")
	if err != nil {
		t.Fatal(err)
	}
	sealed[0] = sealVersion + 1
	for _, text := range [][]byte{sealed, {sealVersion + 1}} {
		if _, err := s.Open(text, "lease 1"); !errors.Is(err, broker.ErrLater) {
			t.Errorf("%d bytes: %v", len(text), err)
		}
	}
	if _, err := s.Open(nil, "lease 1"); err == nil || errors.Is(err, broker.ErrLater) {
		t.Errorf("nothing: %v", err)
	}
}
