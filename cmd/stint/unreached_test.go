package main

import (
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/testbed"
)

// Whoever cannot be reached, it is said what to do about it.
func TestWhatCannotBeReachedSaysWhatToDo(t *testing.T) {
	nobody := address(testbed.FreePort(t))
	_, port, _ := strings.Cut(nobody, ":")
	for name, value := range map[string]string{"PGHOST": "127.0.0.1", "PGPORT": port, "PGDATABASE": "", "PGSERVICE": "", "PGSSLMODE": "disable"} {
		t.Setenv(name, value)
	}
	const hint = "no --database is given"
	named := "host=127.0.0.1 sslmode=disable port=" + port
	for name, tc := range map[string]struct {
		args   []string
		want   string
		unless string
	}{
		"the database of the environment, to look at":     {[]string{"postgres", "status"}, hint, ""},
		"the database of the environment, to install":     {[]string{"postgres", "install"}, hint, ""},
		"the database of the environment, to take it out": {[]string{"postgres", "uninstall"}, hint, ""},
		"a database that was named":                       {[]string{"postgres", "status", "--database", named}, "connect", hint},
		"the sample identity provider":                    {[]string{"dev", "sign-in", "alice", "--idp", "http://" + nobody}, "nobody listens at http://" + nobody + ": run " + program() + " dev", ""},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := stintCLI(t, tc.args...)
			if code != exitFailed || !strings.Contains(out, tc.want) || tc.unless != "" && strings.Contains(out, tc.unless) {
				t.Errorf("%d: %s", code, out)
			}
		})
	}
}
