package store

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
)

// Of a pipeline that never left, the client's commands hold no error: whoever runs
// one by the client's own means can take that for an empty answer.
func TestOneFunctionRunsPipelines(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	running := regexp.MustCompile(`\.(Exec|Pipelined|TxPipelined)\(`)
	found := 0
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(running.FindAll(text, -1)); n > 0 && !strings.HasSuffix(name, "_test.go") {
			found += n
			if name != "redis.go" {
				t.Errorf("%s runs a pipeline by itself", name)
			}
		}
	}
	if found != 1 {
		t.Errorf("pipelines are run in %d places", found)
	}
}

func TestWhatIsSentTogether(t *testing.T) {
	server := testbed.Redis(t, testbed.RedisOptions{Config: "user stint on >word ~* &* +@all"})
	open := func(password string) *Redis {
		cfg := RedisConfig{Address: server.Addr, Username: "stint"}
		r, err := OpenRedis(cfg, RedisSecrets{Password: secret.New(password)}, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	server.Do("SET", "text", "x")
	for name, tc := range map[string]struct {
		password string
		add      func(redis.Pipeliner)
		want     string // of the error; empty: none
	}{
		"all is well":                          {"word", func(p redis.Pipeliner) { p.Get(t.Context(), "text"); p.Get(t.Context(), "text") }, ""},
		"there is nothing, and then something": {"word", func(p redis.Pipeliner) { p.Get(t.Context(), "none"); p.Get(t.Context(), "text") }, ""},
		"there is nothing, and then a failure": {"word", func(p redis.Pipeliner) { p.Get(t.Context(), "none"); p.HGet(t.Context(), "text", "f") }, "WRONGTYPE"},
		"a failure, and then something":        {"word", func(p redis.Pipeliner) { p.HGet(t.Context(), "text", "f"); p.Get(t.Context(), "text") }, "WRONGTYPE"},
		"it never left":                        {"another", func(p redis.Pipeliner) { p.Get(t.Context(), "none"); p.Get(t.Context(), "text") }, "WRONGPASS"},
	} {
		t.Run(name, func(t *testing.T) {
			err := open(tc.password).together(t.Context(), tc.add)
			if (err == nil) != (tc.want == "") || errors.Is(err, redis.Nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}
