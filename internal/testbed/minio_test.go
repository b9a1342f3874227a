package testbed_test

import (
	"net/http"
	"testing"

	"github.com/stint-dev/stint/internal/testbed"
)

func TestMinIOHasUsersThatMayDoWhatTheirPolicySays(t *testing.T) {
	m := testbed.MinIO(t, testbed.MinIOSetup{IfCached: true})
	m.Bucket(t, "one", "a/x", "b/x")
	k := m.User(t, "reader", map[string]any{"Version": "2012-10-17", "Statement": []any{
		map[string]any{"Effect": "Allow", "Action": []string{"s3:GetObject"}, "Resource": []string{"arn:aws:s3:::one/a/*"}},
	}})
	for path, want := range map[string]int{"/one/a/x": http.StatusOK, "/one/b/x": http.StatusForbidden} {
		if status, answer, err := m.Do(t.Context(), k, http.MethodGet, path, nil); status != want || err != nil {
			t.Errorf("%s: %d, %v\n%s", path, status, err, answer)
		}
	}
}
