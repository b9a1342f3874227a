package s3_test

import (
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/providers/s3"
)

// Stores with roles of AWS's kind: there is none here but the double of AWS itself.
func TestTemporaryKeysOfARole(t *testing.T) {
	const role = "arn:aws:iam::123456789012:role/store"
	a := doubles.NewAWS(t)
	a.Keys["AKIA"] = "secret"
	a.Roles[role] = doubles.AWSRole{ID: "AROA", Longest: time.Hour}
	p := opened(t, s3.Config{Endpoint: a.URL, STS: "aws", Role: role, AccessKey: "vault:id", SecretKey: "vault:key"}, testbed.AWSKeys{ID: "AKIA", Secret: "secret"})
	m := mint(t, p, parse(t, objects(at("get", "warehouse/a/"), at("list", "warehouse/a/"))), 20*time.Minute)
	s := a.Sessions()[0]
	if m.Evidence != broker.Asserted || !m.Expires.Equal(s.Expires) || s.Name != "lease0123456789abcdefghi" {
		t.Errorf("%+v, %+v", m, s)
	}
	for key, want := range map[string]bool{"a/x": true, "b/x": false} {
		if ok, err := a.Allowed(s.Token, "s3:GetObject", "warehouse", key, nil); ok != want || err != nil {
			t.Errorf("%s: %v, %v", key, ok, err)
		}
	}
	a.Variant = doubles.AWSLonger
	if m = mint(t, p, parse(t, objects(at("get", "warehouse/a/"))), 20*time.Minute); m.Expires.Before(time.Now().Add(time.Hour)) {
		t.Errorf("keys that live until then are said to live until %s", m.Expires)
	}
	if d, err := read(m); err != nil || d.Endpoint != a.URL {
		t.Errorf("%+v, %v", d, err)
	}
}
