package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/testbed"
)

// What could be better about a Redis is said, and of one that is as it should be nothing.
func TestAdvise(t *testing.T) {
	t.Parallel()
	const good = "user stint on >word ~stint:* resetchannels -@all +ping +info +time\nuser default off ~* &* +@all"
	for name, tt := range map[string]struct {
		options  testbed.RedisOptions
		username string
		change   []string
		want     string
	}{
		"as it should be":            {testbed.RedisOptions{AppendOnly: true, Config: good}, "stint", nil, ""},
		"nothing is written to disk": {testbed.RedisOptions{}, "", nil, "append-only"},
		"a user that may do more":    {testbed.RedisOptions{AppendOnly: true}, "", nil, "more than it needs"},
		"no memory left":             {testbed.RedisOptions{AppendOnly: true}, "", []string{"CONFIG", "SET", "maxmemory", "1mb"}, "of its memory is used"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := testbed.Redis(t, tt.options)
			cfg, secrets := store.RedisConfig{Address: r.Addr, Username: tt.username}, store.RedisSecrets{}
			if tt.username != "" {
				secrets.Password = secret.New("word")
			}
			s, err := store.OpenRedis(cfg, secrets, time.Now)
			must(t, err)
			t.Cleanup(func() { _ = s.Close() })
			if tt.change != nil {
				r.Do(tt.change...)
			}
			advice, err := s.Advise(t.Context())
			must(t, err)
			var all []string
			for _, a := range advice {
				all = append(all, a.Detail)
				if a.Do == "" {
					t.Errorf("%s: and what to do?", a.Detail)
				}
			}
			if got := strings.Join(all, "; "); tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("the advice is %q, want %q", got, tt.want)
			}
			if at, err := s.Clock(t.Context()); err != nil || time.Since(at).Abs() > time.Minute {
				t.Errorf("%v %v", at, err)
			}
		})
	}
}
