package sample

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
)

// findPostgres skips the test where there is no PostgreSQL.
func findPostgres(t *testing.T) string {
	t.Helper()
	bin, version, err := FindPostgres(t.Context())
	if errors.Is(err, ErrNoPostgres) {
		testbed.Missing(t, err.Error())
	}
	if n, _ := strconv.Atoi(version[:2]); err != nil || n < oldestPostgres {
		t.Fatalf("found %s in %s, %v", version, bin, err)
	}
	return bin
}

func TestAWarehouseComesBackWithItsData(t *testing.T) {
	dir, err := os.MkdirTemp("", "stint-test-") // not t.TempDir: others cannot reach that
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	cfg := WarehouseConfig{Bin: findPostgres(t), Dir: filepath.Join(dir, "pg"), Password: secret.New("it's a \"password\"")}
	for i, script := range []string{"CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (1)"} {
		w, err := StartWarehouse(t.Context(), cfg)
		if err != nil {
			t.Fatalf("start %d: %v", i, err)
		}
		cfg.Port = w.Port()
		if err := w.Run(t.Context(), "postgres", script); err != nil {
			t.Errorf("start %d: %v", i, err)
		}
		other := w.cfg
		other.Password = secret.New("another")
		if c, err := pgx.Connect(t.Context(), (&Warehouse{cfg: other}).DSN("postgres").Reveal()); err == nil {
			_ = c.Close(t.Context())
			t.Error("any password will do")
		}
		for range 2 {
			if err := w.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		if c, err := net.Dial("tcp", net.JoinHostPort(warehouseHost, strconv.Itoa(cfg.Port))); err == nil {
			_ = c.Close()
			t.Error("it still listens")
		}
	}
}

func TestAWarehouseThatCannotStartSaysWhy(t *testing.T) {
	bin := findPostgres(t)
	l, err := net.Listen("tcp", warehouseHost+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	dir, err := os.MkdirTemp("", "stint-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	tests := map[string]WarehouseConfig{
		"the port is taken":        {Bin: bin, Dir: filepath.Join(dir, "pg"), Port: l.Addr().(*net.TCPAddr).Port, Password: secret.New("x")},
		"there is no such folder":  {Bin: bin, Dir: filepath.Join(dir, "no", "pg"), Password: secret.New("x")},
		"there is no such program": {Bin: dir, Dir: filepath.Join(dir, "other"), Password: secret.New("x")},
	}
	for name, cfg := range tests {
		t.Run(name, func(t *testing.T) {
			if w, err := StartWarehouse(t.Context(), cfg); err == nil {
				_ = w.Close()
				t.Error("it started")
			}
		})
	}
}
