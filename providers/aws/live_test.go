package aws_test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/providers/aws"
)

// What cannot be known without an account: that AWS takes what we send, enforces it, and
// how long it takes to deny. STINT_LIVE_AWS is JSON: role, region, bucket, access_key and
// secret_key, and deny_role if there is one. The bucket has nothing to have in it.
func TestLive(t *testing.T) {
	text := os.Getenv("STINT_LIVE_AWS")
	if text == "" {
		t.Skip("needs an account of AWS: set STINT_LIVE_AWS, see the test")
	}
	var live struct {
		Role      string `json:"role"`
		Region    string `json:"region"`
		Bucket    string `json:"bucket"`
		AccessKey string `json:"access_key"`
		SecretKey string `json:"secret_key"`
		DenyRole  string `json:"deny_role"`
	}
	if err := json.Unmarshal([]byte(text), &live); err != nil {
		t.Fatal(err)
	}
	d := deps(newIssuer(t), time.Now)
	d.Secret = func(_ context.Context, ref string) (secret.String, error) {
		return secret.New(map[string]string{"vault:id": live.AccessKey, "vault:key": live.SecretKey}[ref]), nil
	}
	c := aws.Config{Role: live.Role, Region: live.Region, Auth: "assume_role", AccessKey: "vault:id", SecretKey: "vault:key"}
	if live.DenyRole != "" {
		c.Revocation, c.Deny = "deny_policy", aws.Deny{Role: live.DenyRole}
	}
	p := opened(t, c, d)
	r := asked(t, p, parse(t, objectsOf(entry([]any{"get", "list"}, live.Bucket, "stint/"))))
	m, err := p.Mint(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := read(m)
	if err != nil {
		t.Fatal(err)
	}
	status := func(path string) int {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+live.Bucket+".s3."+live.Region+".amazonaws.com"+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
		q.Header.Set("X-Amz-Content-Sha256", empty)
		creds := awssdk.Credentials{AccessKeyID: keys.AccessKey, SecretAccessKey: keys.SecretKey, SessionToken: keys.SessionToken}
		if err := v4.NewSigner().SignHTTP(t.Context(), creds, q, empty, "s3", live.Region, time.Now()); err != nil {
			t.Fatal(err)
		}
		res, err := (&http.Client{Timeout: 20 * time.Second}).Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	if a, b := status("/?list-type=2&prefix=stint/"), status("/?list-type=2&prefix=other/"); a != http.StatusOK || b != http.StatusForbidden {
		t.Errorf("listing what was granted: %d, what was not: %d", a, b)
	}
	if live.DenyRole == "" {
		return
	}
	began := time.Now()
	if o, err := p.Revoke(t.Context(), broker.RevokeLease{Lease: r.Lease, Handle: m.Handle, Expires: m.Expires}); err != nil || o.State != broker.DisabledPendingKill {
		t.Fatalf("%+v, %v", o, err)
	}
	for status("/?list-type=2&prefix=stint/") == http.StatusOK {
		if time.Since(began) > 5*time.Minute {
			t.Fatal("it is not denied after five minutes")
		}
		time.Sleep(time.Second) // AWS's time, not a clock of ours
	}
	t.Logf("denied after %s", time.Since(began))
}
