package upstream_test

import (
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/upstream"
)

func TestDuration(t *testing.T) {
	var d upstream.Duration
	if err := d.UnmarshalText([]byte("-1m")); err == nil {
		t.Error("a time that is over is taken")
	}
	if err := d.UnmarshalText([]byte("90s")); err != nil || d.Duration != 90*time.Second {
		t.Errorf("%s, %v", d.Duration, err)
	}
}
