package store_test

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// go-redis: after a command that timed out, answers went to the wrong questions. A
// revocation would be confirmed by somebody else's OK.
func TestAdvisory_CVE_2025_29923_GoRedis(t *testing.T) {
	t.Parallel()
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(f) < 2 || f[0] != "github.com/redis/go-redis/v9" {
			continue
		}
		var minor, patch int
		v := strings.Split(strings.TrimPrefix(f[1], "v9."), ".")
		if len(v) == 2 {
			minor, _ = strconv.Atoi(v[0])
			patch, _ = strconv.Atoi(v[1])
		}
		if minor < 7 || minor == 7 && patch < 3 {
			t.Errorf("go-redis %s, want 9.7.3 at least", f[1])
		}
		return
	}
	t.Error("go.mod does not name go-redis")
}
