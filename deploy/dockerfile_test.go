package deploy_test

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
)

// step is one instruction of a Dockerfile.
type step struct {
	name  string            // in capitals
	flags map[string]string // of --KEY=VALUE before the arguments, the last of each
	rest  string            // what follows
}

// list is the exec form of an instruction: nothing that a shell would have to read.
func (s step) list(t *testing.T) (out []string) {
	t.Helper()
	if err := json.Unmarshal([]byte(s.rest), &out); err != nil || len(out) == 0 {
		t.Fatalf("%s %s: not in exec form, and there is no shell: %v", s.name, s.rest, err)
	}
	return out
}

// stage is what is between two lines FROM.
type stage struct {
	from, as string
	steps    []step
}

func (s stage) all(name string) (out []step) {
	for _, one := range s.steps {
		if one.name == name {
			out = append(out, one)
		}
	}
	return out
}

func (s stage) only(t *testing.T, name string) step {
	t.Helper()
	all := s.all(name)
	if len(all) != 1 {
		t.Fatalf("the stage FROM %s has %d lines %s", s.from, len(all), name)
	}
	return all[0]
}

// env are its environment variables.
func (s stage) env(t *testing.T) (out []string) {
	t.Helper()
	for _, e := range s.all("ENV") {
		for _, pair := range strings.Fields(e.rest) {
			if !strings.Contains(pair, "=") {
				t.Fatalf("ENV %s: write NAME=VALUE", e.rest)
			}
			out = append(out, pair)
		}
	}
	return out
}

// dockerfile reads the stages of the image. An instruction that is not known here
// is refused: it would not be tested.
func dockerfile(t *testing.T) (stages []stage) {
	t.Helper()
	data, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	known := []string{"ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD", "HEALTHCHECK", "LABEL"}
	text := strings.ReplaceAll(strings.Join(lines, "\n"), "\\\n", " ")
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		s := step{name: name, flags: make(map[string]string), rest: strings.TrimSpace(rest)}
		for strings.HasPrefix(s.rest, "--") {
			flag, after, _ := strings.Cut(s.rest, " ")
			key, value, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
			s.flags[key], s.rest = value, strings.TrimSpace(after)
		}
		switch {
		case name == "FROM":
			from, as, _ := strings.Cut(s.rest, " AS ")
			stages = append(stages, stage{from: from, as: as})
		case !slices.Contains(known, name):
			t.Fatalf("the instruction %s is not known here", name)
		case len(stages) > 0:
			stages[len(stages)-1].steps = append(stages[len(stages)-1].steps, s)
		}
	}
	if len(stages) != 2 || stages[0].as != "build" || stages[1].from != "scratch" {
		t.Fatalf("the image is not made of a stage build and one from scratch: %+v", stages)
	}
	return stages
}

// ignored are the patterns of what the builder is not given.
func ignored(t *testing.T) (out []string) {
	t.Helper()
	data, err := os.ReadFile("Dockerfile.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out
}
