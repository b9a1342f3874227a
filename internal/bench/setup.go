package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/store"
	"github.com/stint-dev/stint/internal/vault"
)

// keys are those of the issuer and of the client that has one.
type keys struct {
	issuer *rsa.PrivateKey
	client *ecdsa.PrivateKey
}

func newKeys() (k keys, err error) {
	if k.issuer, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return k, err
	}
	k.client, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return k, err
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (k keys) issuerJWKS() string {
	return fmt.Sprintf(`{"keys":[{"kty":"RSA","kid":"r","alg":"RS256","use":"sig","n":%q,"e":%q}]}`,
		b64(k.issuer.N.Bytes()), b64(big.NewInt(int64(k.issuer.E)).Bytes()))
}

func (k keys) clientJWKS() (string, error) {
	point, err := k.client.PublicKey.Bytes()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","kid":"c","alg":"ES256","use":"sig","x":%q,"y":%q}]}`,
		b64(point[1:33]), b64(point[33:])), nil
}

// subjects returns requests' subject tokens, all different.
func (k keys) subjects(n int) ([]string, error) {
	out := make([]string, n)
	now := time.Now()
	for i := range out {
		var err error
		out[i], err = compact(k.issuer, "RS256", "r", "at+jwt", map[string]any{
			"iss": idp, "sub": fmt.Sprint("user", i%500), "aud": "https://mcp.bench/", "client_id": "desk", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
			"jti": fmt.Sprint("j-", i), "sid": fmt.Sprint("sid-", i%50), "groups": []string{"g3", "staff", "berlin"}, "auth_time": now.Add(-time.Minute).Unix(),
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// install is one configuration with what it needs.
type install struct {
	name                   string
	resources, perResource int
	records                int
	redis                  string // address, or empty for the embedded store

	dir, addr, ops string
	secret         secret.String
}

// write makes the folder of an installation.
func (in *install) write(ctx context.Context, parent string, k keys) error {
	in.dir = filepath.Join(parent, in.name)
	if err := os.MkdirAll(filepath.Join(in.dir, "mappings"), 0o700); err != nil {
		return err
	}
	for _, addr := range []*string{&in.addr, &in.ops} {
		port, err := freePort()
		if err != nil {
			return err
		}
		*addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	}
	files := vault.FileConfig{Path: filepath.Join(in.dir, "secrets.age"), Identity: filepath.Join(in.dir, "identity")}
	if err := vault.Init(files); err != nil {
		return err
	}
	secrets, _, err := vault.Open(vault.Config{Kind: vault.KindFile, File: &files}, vault.Deps{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: time.Now})
	if err != nil {
		return err
	}
	key, err := vault.Key(ctx, secrets, vault.PathClientSecrets)
	if err := errors.Join(err, secrets.Close()); err != nil {
		return err
	}
	var hash string
	in.secret, hash = broker.NewClientSecret([]byte(key.Reveal()))
	jwks, err := k.clientJWKS()
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"issuer.json": k.issuerJWKS(), "client.json": jwks, "stint.yaml": in.config(hash)} {
		if err := os.WriteFile(filepath.Join(in.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := in.mappings(); err != nil {
		return err
	}
	return in.feed(ctx)
}

func (in *install) config(hash string) string {
	var targets strings.Builder
	for i := range in.resources {
		fmt.Fprintf(&targets, "      - https://r%d.bench/\n", i)
	}
	state := "  kind: embedded\n  file: stint.db\n"
	if in.redis != "" {
		state = "  kind: redis\n  redis:\n    address: " + in.redis + "\n"
	}
	return fmt.Sprintf(`version: 1
issuer: https://stint.bench
replica: bench
data: data
listen:
  address: %s
  ops: %s
  behind_proxy: true
lifetimes: {token: 1h}
store:
%ssecrets:
  kind: file
  file:
    path: secrets.age
    identity: identity
mappings: mappings
issuers:
  - issuer: %s
    jwks_file: issuer.json
    algorithms: [RS256]
    accept: [access_token]
    audiences: ["https://mcp.bench/"]
    max_subject_age: 2h
    scopes: identity-only
    groups: [g0, g1, g2, g3, g4]
    any_agent: true
    delegates: [bench, bench-jwt]
clients:
  - id: bench
    auth:
      method: client_secret_basic
      secret_hashes: [%q]
    grant_types: [urn:ietf:params:oauth:grant-type:token-exchange]
    resource: https://r0.bench/
    ceiling: "*"
    targets:
%s  - id: bench-jwt
    auth:
      method: private_key_jwt
      jwks_file: client.json
    grant_types: [urn:ietf:params:oauth:grant-type:token-exchange]
    ceiling: "*"
    targets:
%slimits:
  client_rate: 1000000
  client_burst: 1000000
  address_rate: 1000000
  address_burst: 1000000
log:
  level: warn
`, in.addr, in.ops, state, idp, hash, targets.String(), targets.String())
}

func (in *install) mappings() error {
	for r := range in.resources {
		var b strings.Builder
		fmt.Fprintf(&b, "resource: https://r%d.bench/\nscopes:\n", r)
		var all []string
		for s := range in.perResource {
			fmt.Fprintf(&b, "  s%d: {access: read}\n", s)
			all = append(all, fmt.Sprint("s", s))
		}
		fmt.Fprintf(&b, "rules:\n  - allow: [%s]\n    to: {groups: [g0, g1, g2, g3, g4]}\n", strings.Join(all, ", "))
		if err := os.WriteFile(filepath.Join(in.dir, "mappings", fmt.Sprintf("r%d.yaml", r)), []byte(b.String()), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// feed writes the revocation records, all of tokens that nobody has.
func (in *install) feed(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(in.dir, "data"), 0o700); err != nil {
		return err
	}
	var s interface {
		broker.Feed
		Close() error
	}
	var err error
	if in.redis == "" {
		s, err = store.OpenEmbedded(filepath.Join(in.dir, "stint.db"), time.Now)
	} else {
		s, err = store.OpenRedis(store.RedisConfig{Address: in.redis}, store.RedisSecrets{}, time.Now)
	}
	if err != nil {
		return err
	}
	var h broker.Head
	all := chain(in.records)
	for len(all) > 0 && err == nil {
		n := min(500, len(all))
		err = s.Append(ctx, h, all[:n]...)
		h, all = all[n-1].Head(), all[n:]
	}
	return errors.Join(err, s.Close())
}

// request is a token request as it goes over the wire.
func (in *install) request(path string, basic bool, form string) []byte {
	auth := ""
	if basic {
		auth = "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("bench:"+in.secret.Reveal())) + "\r\n"
	}
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\n%sContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", path, in.addr, auth, len(form), form)
}

// member returns a text member of a JSON object.
func member(body []byte, name string) string {
	var all map[string]any
	if json.Unmarshal(body, &all) != nil {
		return ""
	}
	text, _ := all[name].(string)
	return text
}
