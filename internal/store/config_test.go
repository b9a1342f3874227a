package store_test

import (
	"crypto/tls"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/internal/testbed"
)

func TestConfig(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"embedded":                              {"kind: embedded\nfile: /var/lib/stint/stint.db", ""},
		"redis on loopback":                     {"kind: redis\nredis: {address: '127.0.0.1:6379'}", ""},
		"redis on loopback, by name":            {"kind: redis\nredis: {address: 'localhost:6379'}", ""},
		"redis on loopback, version 6":          {"kind: redis\nredis: {address: '[::1]:6379'}", ""},
		"redis over TLS":                        {"kind: redis\nredis: {address: 'redis.example:6379', tls: {}}", ""},
		"redis in the clear, spelled out":       {"kind: redis\nredis: {address: 'redis.example:6379', insecure_plaintext: true}", ""},
		"everything":                            {"kind: redis\nredis: {address: 'r.example:6379', username: stint, password: 'vault:x#y', db: 3, tls: {ca: 'file:/a', certificate: 'file:/b', key: 'file:/c', server_name: d}, replicas_to_wait: 2, wait_timeout: 100ms, prefix: 'acme:stint:', dial_timeout: 2s, timeout: 3s, pool_size: 8}", ""},
		"redis in the clear":                    {"kind: redis\nredis: {address: 'redis.example:6379'}", "insecure_plaintext: true"},
		"redis in the clear, by number":         {"kind: redis\nredis: {address: '10.0.0.7:6379'}", "insecure_plaintext: true"},
		"redis in the clear, by a sly name":     {"kind: redis\nredis: {address: 'localhost.example:6379'}", "insecure_plaintext: true"},
		"in the clear and over TLS":             {"kind: redis\nredis: {address: '127.0.0.1:6379', tls: {}, insecure_plaintext: true}", "there is tls"},
		"no kind":                               {"file: x", "kind is missing"},
		"another kind":                          {"kind: sqlite\nfile: x", "none of embedded, redis"},
		"embedded without a file":               {"kind: embedded", "needs file"},
		"embedded with redis":                   {"kind: embedded\nfile: x\nredis: {address: '127.0.0.1:1'}", "does not use it"},
		"redis without redis":                   {"kind: redis", "needs redis"},
		"redis with a file":                     {"kind: redis\nfile: x\nredis: {address: '127.0.0.1:1'}", "does not use it"},
		"no port":                               {"kind: redis\nredis: {address: localhost}", "HOST:PORT"},
		"a certificate without a key":           {"kind: redis\nredis: {address: 'a:1', tls: {certificate: 'file:/b'}}", "belong together"},
		"no verification":                       {"kind: redis\nredis: {address: 'a:1', tls: {insecure: true}}", "no such key"},
		"a prefix that chooses the slot":        {"kind: redis\nredis: {address: '127.0.0.1:1', prefix: '{a}:'}", "prefix"},
		"a wait that Redis takes for ever":      {"kind: redis\nredis: {address: '127.0.0.1:1', wait_timeout: 100us}", "less than 10ms"},
		"a wait of nothing":                     {"kind: redis\nredis: {address: '127.0.0.1:1', wait_timeout: 0s}", "no duration"},
		"a number for a duration":               {"kind: redis\nredis: {address: '127.0.0.1:1', timeout: '5'}", "no duration"},
		"fewer than no replicas":                {"kind: redis\nredis: {address: '127.0.0.1:1', replicas_to_wait: -1}", "out of bounds"},
		"a pool that a waiting reader exhausts": {"kind: redis\nredis: {address: '127.0.0.1:1', pool_size: 1}", "out of bounds"},
	} {
		t.Run(name, func(t *testing.T) {
			var cfg store.Config
			err := strictyaml.Decode("stint.yaml", []byte(c.text), &cfg)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestWhatNoYAMLWasReadForIsCheckedAsWell(t *testing.T) {
	good := store.RedisConfig{Address: "127.0.0.1:6379"}
	for name, change := range map[string]func(*store.RedisConfig, *store.RedisSecrets){
		"no address":             func(c *store.RedisConfig, _ *store.RedisSecrets) { c.Address = "" },
		"plain TCP":              func(c *store.RedisConfig, _ *store.RedisSecrets) { c.Address = "192.0.2.1:6379" },
		"a negative pool":        func(c *store.RedisConfig, _ *store.RedisSecrets) { c.PoolSize = -1 },
		"negative replicas":      func(c *store.RedisConfig, _ *store.RedisSecrets) { c.ReplicasToWait = -1 },
		"an authority unasked":   func(c *store.RedisConfig, s *store.RedisSecrets) { c.TLS, s.CA = &store.RedisTLS{}, "x" },
		"an authority not read":  func(c *store.RedisConfig, _ *store.RedisSecrets) { c.TLS = &store.RedisTLS{CA: "file:x"} },
		"an authority of rubble": func(c *store.RedisConfig, s *store.RedisSecrets) { c.TLS, s.CA = &store.RedisTLS{CA: "file:x"}, "x" },
		"a key of rubble": func(c *store.RedisConfig, s *store.RedisSecrets) {
			c.TLS, s.Certificate, s.Key = &store.RedisTLS{Certificate: "file:x", Key: "file:y"}, "x", secret.New("canary")
		},
	} {
		cfg, secrets := good, store.RedisSecrets{}
		change(&cfg, &secrets)
		if s, err := store.OpenRedis(cfg, secrets, time.Now); err == nil {
			_ = s.Close()
			t.Errorf("%s was accepted", name)
		} else if strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: the error holds the key: %v", name, err)
		}
	}
	if _, err := store.OpenRedis(good, store.RedisSecrets{}, nil); err == nil {
		t.Error("a store without a clock was opened")
	}
}

func TestTLSIsVerifiedOnBothSides(t *testing.T) {
	r := testbed.Redis(t, testbed.RedisOptions{TLS: true})
	other := testbed.Redis(t, testbed.RedisOptions{TLS: true}) // of another authority
	all := store.RedisTLS{CA: "file:a", Certificate: "file:b", Key: "file:c"}
	good := store.RedisSecrets{CA: r.CA, Certificate: r.Certificate, Key: secret.New(r.Key)}
	named, misnamed := all, all
	named.ServerName, misnamed.ServerName = "redis.test", "another.test"
	foreign := good
	foreign.CA = other.CA
	stranger := good
	stranger.Certificate, stranger.Key = other.Certificate, secret.New(other.Key)
	for name, c := range map[string]struct {
		tls     *store.RedisTLS
		secrets store.RedisSecrets
		ok      bool
	}{
		"all is well":                         {&all, good, true},
		"by another of its names":             {&named, good, true},
		"a name that it does not have":        {&misnamed, good, false},
		"another authority than the server's": {&all, foreign, false},
		"the authorities of the system":       {&store.RedisTLS{Certificate: "file:b", Key: "file:c"}, store.RedisSecrets{Certificate: r.Certificate, Key: secret.New(r.Key)}, false},
		"no certificate of ours":              {&store.RedisTLS{CA: "file:a"}, store.RedisSecrets{CA: r.CA}, false},
		"a stranger's certificate":            {&all, stranger, false},
		"plain TCP":                           {nil, store.RedisSecrets{}, false},
	} {
		cfg := impatient()
		cfg.Timeout, cfg.Address, cfg.TLS = duration(3*time.Second), r.Addr, c.tls
		s, err := store.OpenRedis(cfg, c.secrets, time.Now)
		must(t, err)
		if err := s.Ready(background); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		must(t, s.Close())
	}
}

func TestAServerWithoutTLS12IsRefused(t *testing.T) {
	r := testbed.Redis(t, testbed.RedisOptions{TLS: true})
	pair, err := tls.LoadX509KeyPair(filepath.Join(r.Dir, "server.pem"), filepath.Join(r.Dir, "server.key"))
	must(t, err)
	for version, reaches := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true} {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS10, MaxVersion: version})
		must(t, err)
		reached := make(chan bool, 16)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func(c net.Conn) {
					n, _ := c.Read(make([]byte, 1))
					reached <- n > 0
					_ = c.Close()
				}(c)
			}
		}()
		cfg := impatient()
		cfg.Address, cfg.TLS = l.Addr().String(), &store.RedisTLS{CA: "file:a"}
		s, err := store.OpenRedis(cfg, store.RedisSecrets{CA: r.CA}, time.Now)
		must(t, err)
		if err := s.Ready(background); err == nil {
			t.Error("what is no Redis is ready")
		}
		if got := <-reached; got != reaches {
			t.Errorf("up to version %x: something was sent: %t", version, got)
		}
		_, _ = s.Close(), l.Close()
	}
}
