package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// What another process has open is refused with one code, whoever asks.
func TestWhatIsInUseIsRefusedWithOneCode(t *testing.T) {
	file := filepath.Join(initialised(t), theConfig)
	shortSocket(t, file)
	serving(t, file)
	edit(t, file, "  socket: ", "  socket: /nobody/listens/here #") // or they would ask the server
	for name, args := range map[string][]string{
		"serve":      {"serve"},
		"recover":    {"recover"},
		"keys":       {"keys", "rotate"},
		"client add": {"client", "add", "another", "--target", "https://api.example/notes"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := stintCLI(t, append(args, "-c", file)...)
			if code != exitRefused || !strings.Contains(out, "in use by another process") {
				t.Errorf("%d: %s", code, out)
			}
			if name == "recover" && !strings.Contains(out, "the server runs here: stop it first (journal ") {
				t.Errorf("it does not say what to do: %s", out)
			}
		})
	}
}
