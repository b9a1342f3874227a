package aws_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/providers/providertest"
)

// atMinIO is a credential in use at MinIO.
type atMinIO struct {
	m    *testbed.MinIOServer
	keys testbed.AWSKeys
	all  map[string]act
}

func (s *atMinIO) Close() {}

func (s *atMinIO) Do(ctx context.Context, name string) error {
	a := s.all[name]
	path := (&url.URL{Path: "/" + a.bucket + "/" + a.key}).EscapedPath()
	method, body := http.MethodGet, []byte(nil)
	switch a.action {
	case "s3:PutObject":
		method, body = http.MethodPut, []byte("x")
	case "s3:DeleteObject":
		method = http.MethodDelete
	case "s3:ListBucket":
		path = "/" + a.bucket + "?list-type=2&prefix=" + strings.ReplaceAll(url.QueryEscape(a.prefix), "+", "%20")
	case "s3:GetObjectTagging":
		path += "?tagging"
	case "s3:PutObjectTagging":
		method, path = http.MethodPut, path+"?tagging"
		body = []byte(`<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>`)
	}
	switch status, answer, err := s.m.Do(ctx, s.keys, method, path, body); {
	case err != nil:
		return err
	case status == http.StatusForbidden:
		return fmt.Errorf("%w: %s", providertest.ErrRefused, answer)
	case status >= 300:
		return fmt.Errorf("%s %s: status %d: %s", method, path, status, answer)
	}
	return nil
}

// ends reads when MinIO itself ends a session, which its token says.
func ends(token string) (time.Time, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, errors.New("the session token is no JWT")
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Exp int64 `json:"exp"`
	}
	err = errors.Join(err, json.Unmarshal(text, &claims))
	return time.Unix(claims.Exp, 0), err
}

func TestProviderAtMinIO(t *testing.T) {
	i := newIssuer(t)
	m := testbed.MinIO(t, testbed.MinIOSetup{IfCached: true, Discovery: i.url + "/.well-known/openid-configuration", ClientID: "sts.amazonaws.com", RolePolicy: "readwrite"})
	var objects []string
	for _, p := range prefixes {
		objects = append(objects, (&url.URL{Path: p}).EscapedPath()+"k")
	}
	for _, b := range buckets {
		m.Bucket(t, b, objects...)
	}
	user := m.User(t, "AKIASTINT", map[string]any{"Version": "2012-10-17", "Statement": []any{
		map[string]any{"Effect": "Allow", "Action": []string{"s3:*"}, "Resource": []string{"arn:aws:s3:::*"}},
	}})
	for name, settings := range map[string]string{"minio-keys": "keys", "minio-token": "token"} {
		t.Run(name, func(t *testing.T) {
			a := cloud(t, i)
			a.Keys[user.ID] = user.Secret
			a.Behind(m.Addr, m.Role, m.Ask)
			d := deps(i, time.Now)
			d.Secret = func(_ context.Context, ref string) (secret.String, error) {
				return secret.New(map[string]string{"vault:id": user.ID, "vault:key": user.Secret}[ref]), nil
			}
			cfg := byToken(a.URL)
			if settings == "keys" {
				cfg = byKeys(a.URL)
			}
			h := harness(t, a, opened(t, cfg, d))
			h.Variant, h.Upstream = name, "MinIO's STS and S3, behind a double that has AWS's roles and tags"
			all, _ := acts(t)
			h.Open = func(_ context.Context, m2 *broker.Minted) (providertest.Session, error) {
				d, err := read(m2)
				return &atMinIO{m: m, all: all, keys: testbed.AWSKeys{ID: d.AccessKey, Secret: d.SecretKey, Session: d.SessionToken}}, err
			}
			h.Ends = func(_ context.Context, m2 *broker.Minted) (time.Time, error) {
				d, err := read(m2)
				if err != nil {
					return time.Time{}, err
				}
				return ends(d.SessionToken)
			}
			h.Within, h.Oracle = nil, "" // the engine is asked where the double is by itself
			providertest.Run(t, h)
		})
	}
}
