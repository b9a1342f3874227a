package store_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/store/storetest"
	"github.com/stint-dev/stint/internal/testbed"
)

// redisWorld is a Redis, and how a store reaches it.
type redisWorld struct {
	*testbed.RedisServer
	cfg     store.RedisConfig
	secrets store.RedisSecrets
	beds    atomic.Int64
}

func (w *redisWorld) open(t testing.TB, prefix string) *store.Redis {
	t.Helper()
	cfg := w.cfg
	cfg.Address, cfg.Prefix = w.Addr, prefix
	s, err := store.OpenRedis(cfg, w.secrets, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// bed is an empty store: a prefix of its own in the one Redis.
func (w *redisWorld) bed(t testing.TB) *storetest.Bed {
	t.Helper()
	prefix := fmt.Sprintf("stint:%d:", w.beds.Add(1))
	return &storetest.Bed{
		Store: w.open(t, prefix), Now: time.Now, Forward: time.Sleep,
		Reopen: func() storetest.Store {
			w.Restart()
			return w.open(t, prefix)
		},
	}
}

func (w *redisWorld) run(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *storetest.Bed { return w.bed(t) })
}

func duration(d time.Duration) store.Duration { return store.Duration{Duration: d} }

// patient has timeouts for a machine that is busy with other tests.
func patient() store.RedisConfig {
	return store.RedisConfig{Timeout: duration(10 * time.Second), DialTimeout: duration(5 * time.Second), WaitTimeout: duration(5 * time.Second)}
}

func TestRedis(t *testing.T) {
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{AppendOnly: true}), cfg: patient()}
	w.run(t)
}

func TestRedisOverTLS(t *testing.T) {
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{AppendOnly: true, TLS: true}), cfg: patient()}
	w.cfg.TLS = &store.RedisTLS{CA: "file:ca", Certificate: "file:cert", Key: "file:key"}
	w.secrets = store.RedisSecrets{CA: w.CA, Certificate: w.Certificate, Key: secret.New(w.Key)}
	w.run(t)
}

const password = "correct horse battery staple"

func passwordSecrets() store.RedisSecrets {
	return store.RedisSecrets{Password: secret.New(password)}
}

// deployedACL is deploy/redis.acl with a password filled in.
func deployedACL(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("../../deploy/redis.acl")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(password))
	return strings.ReplaceAll(string(text), "STINT_PASSWORD_SHA256", hex.EncodeToString(sum[:]))
}

func TestRedisWithTheDeployedACL(t *testing.T) {
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{AppendOnly: true, Config: deployedACL(t)}), cfg: patient()}
	w.cfg.Username, w.secrets = "stint", passwordSecrets()
	w.run(t)
}

// A cluster of one node has all keys and still refuses what touches several slots.
func TestRedisInAClusterOfOne(t *testing.T) {
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{AppendOnly: true, Cluster: true}), cfg: patient()}
	w.run(t)
}

func TestRedisWithAReplicaThatConfirms(t *testing.T) {
	w := &redisWorld{RedisServer: testbed.Redis(t, testbed.RedisOptions{AppendOnly: true}), cfg: patient()}
	testbed.Redis(t, testbed.RedisOptions{ReplicaOf: w.RedisServer})
	w.cfg.ReplicasToWait = 1
	storetest.Run(t, func(t *testing.T) *storetest.Bed {
		b := w.bed(t)
		reopen := b.Reopen
		b.Reopen = func() storetest.Store {
			s := reopen()
			eventually(t, func() error { return s.Ready(context.Background()) }) // the replica comes back
			return s
		}
		return b
	})
}

// eventually waits until something is so.
func eventually(t testing.TB, so func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for err := so(); err != nil; err = so() {
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
