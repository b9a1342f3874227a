package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/testbed"
)

// place has temporary folders made in a new one, with a path that is short enough
// for a socket, and which PostgreSQL can reach. What is in it is left to look at.
func place(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "st-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	return dir
}

func empty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("%s holds %v, %v", dir, entries, err)
	}
}

// runStint runs the command in this process.
func runStint(ctx context.Context, out io.Writer, args ...string) error {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(io.Discard)
	return root.ExecuteContext(ctx)
}

func postgresModes(t *testing.T) []string {
	t.Helper()
	if _, _, err := sample.FindPostgres(t.Context()); err == nil {
		return []string{postgresOff, postgresRequire}
	}
	if os.Getenv("STINT_REQUIRE_SERVERS") != "" {
		testbed.Missing(t, sample.ErrNoPostgres.Error())
	}
	return []string{postgresOff}
}

// actsOf reads what a demonstration printed as JSON.
func actsOf(t *testing.T, out []byte) (acts []act) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var a act
		err := dec.Decode(&a)
		if errors.Is(err, io.EOF) {
			return acts
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		acts = append(acts, a)
	}
}

// wholeToken is what is in a token that was not shortened.
var wholeToken = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{20,}`)

func TestTheDemonstrationComesOutAsSaid(t *testing.T) {
	for _, mode := range postgresModes(t) {
		t.Run("with PostgreSQL "+mode, func(t *testing.T) {
			dir := place(t)
			var out bytes.Buffer
			if err := runStint(t.Context(), &out, "demo", "--postgres", mode, "-o", "json"); err != nil {
				t.Fatalf("%v\n%s", err, out.Bytes())
			}
			acts := actsOf(t, out.Bytes())
			want := []string{
				"Alice signs in", "Her agent gets a token for the MCP server", "One tool call", "Nothing wider comes of it",
				"Writing is decided call by call", "A database login, for one report", "Bob is refused, and it can be said why",
				"Alice's laptop is stolen", "The record",
			}
			if mode == postgresOff {
				want = slices.Delete(want, 5, 6)
			}
			var titles []string
			for i, a := range acts {
				titles = append(titles, a.Title)
				if !a.OK || a.Error != "" || a.Number != i+1 || len(a.Claims) < 2 || len(a.Calls)+len(a.Output) == 0 {
					t.Errorf("the step is %+v", a)
				}
				for _, c := range a.Claims {
					if !c.OK {
						t.Errorf("%s: %s: %s", a.Title, c.Text, c.Got)
					}
				}
			}
			if !slices.Equal(titles, want) {
				t.Errorf("the steps are %q", titles)
			}
			if found := wholeToken.Find(out.Bytes()); found != nil {
				t.Errorf("a token is shown: %.60s", found)
			}
			empty(t, dir)
		})
	}
}

func TestTheCallsOfAToolAreShownWithinIt(t *testing.T) {
	place(t)
	var out bytes.Buffer
	if err := runStint(t.Context(), &out, "demo", "--postgres", "off", "-o", "json"); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range actsOf(t, out.Bytes())[2].Calls {
		got = append(got, c.From+" → "+c.To+" "+c.Method)
	}
	want := []string{"agent → MCP server POST", "MCP server → Stint POST", "MCP server → Stint POST", "MCP server → API GET", "API → Stint POST"}
	if !slices.Equal(got, want) {
		t.Errorf("the calls are %q", got)
	}
}

func TestTheDemonstrationFitsOnAPage(t *testing.T) {
	place(t)
	t.Setenv("NO_COLOR", "")
	var out bytes.Buffer
	if err := runStint(t.Context(), &out, "demo", "--postgres", "off"); err != nil {
		t.Fatalf("%v\n%s", err, out.Bytes())
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > columns {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, unwanted := range []string{"\x1b", "✗", "somebody", "%!", "alice-password"} {
		if strings.Contains(out.String(), unwanted) {
			t.Errorf("it shows %q", unwanted)
		}
	}
	if found := wholeToken.Find(out.Bytes()); found != nil {
		t.Errorf("a token is shown: %.60s", found)
	}
	for _, wanted := range []string{"✓", "All of it came out as said", program() + " dev", "left out: as was asked for"} {
		if !strings.Contains(out.String(), wanted) {
			t.Errorf("it does not show %q", wanted)
		}
	}
}

func TestWhatIsKeptCanBeLookedAt(t *testing.T) {
	dir := filepath.Join(place(t), "kept")
	if err := runStint(t.Context(), io.Discard, "demo", "--postgres", "off", "--keep", dir); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := runStint(t.Context(), &out, "audit", "tail", "--config", filepath.Join(dir, theConfig)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "laptop stolen") {
		t.Errorf("the record is\n%s", out.String())
	}
	// As stint init has it, so that what is read of the one holds for the other.
	for name, want := range map[string]fs.FileMode{"private": 0o700, "data": 0o700, "private/identity": 0o600, "data/secrets.age": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	out.Reset()
	if err := runStint(t.Context(), &out, "check", "--config", filepath.Join(dir, theConfig)); err != nil || strings.Contains(out.String(), "warning") {
		t.Errorf("the configuration is no example: %v\n%s", err, out.String())
	}
	err := runStint(t.Context(), io.Discard, "demo", "--postgres", "off", "--keep", dir)
	if e := (*exitError)(nil); !errors.As(err, &e) || e.code != exitUsage {
		t.Errorf("a second time: %v", err)
	}
}

// A demonstration of a Stint that does something else than what is said fails, and
// says where.
func TestADemonstrationThatDoesNotComeOutFails(t *testing.T) {
	edit := func(file, from, to string) func(*testing.T, *stage, *sandbox) {
		return func(t *testing.T, _ *stage, box *sandbox) {
			path := filepath.Join(box.Dir, "mappings", file)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(text), from, to, 1)
			if changed == string(text) {
				t.Fatalf("there is no %q in %s", from, file)
			}
			if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			box.server.reload(t.Context())
		}
	}
	sql := func(script string) func(*testing.T, *stage, *sandbox) {
		return func(t *testing.T, _ *stage, box *sandbox) {
			if box.Warehouse == 0 {
				t.Skip(box.without)
			}
			if err := box.warehouse.Run(t.Context(), "warehouse", script); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]struct {
		mode   string
		change func(*testing.T, *stage, *sandbox)
		step   string
		claim  string
	}{
		"nobody may read":              {postgresOff, edit("orders-mcp.yaml", `to: {groups: [engineering]`, `to: {groups: [maintainers]`), "step 2", "invalid_scope"},
		"a condition that allows more": {postgresOff, edit("orders-api.yaml", "quantity <= 100", "quantity <= 1000"), "step 5", "500 pieces are refused"},
		"a rule for everybody": {
			postgresOff, edit("orders-mcp.yaml", `to: {groups: [engineering], agents: [desktop]}`, `to: {groups: ["*"], agents: [desktop]}`), "step 6", "refuses his agent",
		},
		"tokens that live for a moment": {postgresOff, edit("orders-mcp.yaml", "max_lifetime: 5m", "max_lifetime: 5s"), "step 7", "good for minutes to come"},
		"a secret in the record": {postgresOff, func(_ *testing.T, st *stage, _ *sandbox) {
			st.seen = append(st.seen, secret.New("laptop stolen"))
		}, "step 8", "None of the"},
		"a table that everybody may read": {postgresAuto, sql("GRANT SELECT ON sales.salaries TO PUBLIC; GRANT USAGE ON SCHEMA sales TO PUBLIC"), "step 6", "report"},
		"a table whose rows are gone":     {postgresAuto, sql("DELETE FROM sales.orders"), "step 6", "The report was read"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			st := newStage(&out, true, true)
			box, err := openSandbox(t.Context(), sandboxOptions{Dir: filepath.Join(place(t), "box"), Postgres: tt.mode, Trace: st.see})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := box.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}()
			tt.change(t, st, box)
			err = perform(t.Context(), st, box, demoOptions{})
			if err == nil || !strings.Contains(err.Error(), tt.step) || !strings.Contains(err.Error(), tt.claim) {
				t.Errorf("the error is %v", err)
			}
			if acts := actsOf(t, out.Bytes()); len(acts) == 0 || acts[len(acts)-1].OK || acts[len(acts)-1].Error == "" {
				t.Errorf("it shows\n%s", out.Bytes())
			}
		})
	}
}

// cancelling is a writer that stops what writes to it.
type cancelling struct{ cancel func() }

func (c cancelling) Write(p []byte) (int, error) { c.cancel(); return len(p), nil }

func TestADemonstrationThatIsStoppedLeavesNothing(t *testing.T) {
	dir := place(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := runStint(ctx, cancelling{cancel}, "demo", "--postgres", postgresModes(t)[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	empty(t, dir)
}

func TestTextIsWrapped(t *testing.T) {
	tests := map[string]struct {
		text string
		want []string
	}{
		"at spaces":               {"one two three", []string{"one two", "three"}},
		"within long words":       {"one abcdefghijkl", []string{"one", "abcdefgh", "ijkl"}},
		"not at all":              {"one two", []string{"one two"}},
		"nothing":                 {"", []string{""}},
		"with its indentation":    {"  one  two three", []string{"  one ", "two", "three"}},
		"by characters not bytes": {"ääää öööö", []string{"ääää", "öööö"}},
		"by lines":                {"a\nb", []string{"a", "b"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := wrap(tt.text, 8); !slices.Equal(got, tt.want) {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestArgumentsOfTheDemonstrationAreChecked(t *testing.T) {
	for _, args := range [][]string{{"demo", "--postgres", "maybe"}, {"dev", "--postgres", ""}, {"dev", "--port", "70000"}, {"demo", "more"}} {
		err := runStint(t.Context(), io.Discard, args...)
		if err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}
