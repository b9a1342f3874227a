package main

import (
	"bytes"
	"testing"

	"github.com/stint-dev/stint/internal/config"
)

func TestSchemaPrintsWhatInitWrites(t *testing.T) {
	for _, tc := range []struct{ arg, name string }{{"", "config"}, {"config", "config"}, {"mapping", "mapping"}} {
		args := []string{"schema"}
		if tc.arg != "" {
			args = append(args, tc.arg)
		}
		want, err := config.Schema(tc.name)
		if err != nil {
			t.Fatal(err)
		}
		if out, code := stintCLI(t, args...); code != 0 || !bytes.Equal([]byte(out), want) {
			t.Errorf("%q: %d, %d bytes", tc.arg, code, len(out))
		}
	}
	if out, code := stintCLI(t, "schema", "other"); code != exitUsage || out != `there is no schema "other"; there are config, mapping` {
		t.Errorf("%d: %s", code, out)
	}
}
