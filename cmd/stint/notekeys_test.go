package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// Who asked for what there is not was refused; nothing of ours failed.
func TestRevokingAKeyThatIsNotThereIsRecordedAsRefused(t *testing.T) {
	file := filepath.Join(initialised(t), theConfig)
	shortSocket(t, file)
	serving(t, file)
	if out, code := stintCLI(t, "keys", "revoke", "nobody", "-c", file); code != exitRefused {
		t.Fatalf("%d: %s", code, out)
	}
	var got []string
	for line := range strings.Lines(audited(t, file, 0, "tail", "-n", "1000")) {
		if strings.Contains(line, "before=nobody") {
			got = append(got, line)
		}
	}
	if len(got) != 1 || !strings.Contains(got[0], " key ") || !strings.Contains(got[0], " refused ") {
		t.Errorf("the record: %q", got)
	}
}
