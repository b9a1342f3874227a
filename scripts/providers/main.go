// Command providers makes the table of providers of what they say of themselves and of
// what their tests came to:
//
//	go run ./scripts/providers [-check]
//
// It prints it, writes build/reports/test-providers.json, and puts it into README.md
// between its markers. With -check the README has to have it already. It fails if a kind
// of provider has no result.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/providers"
)

// result is what providertest writes of a run.
type result struct {
	Kind       string         `json:"provider"`
	Variant    string         `json:"variant,omitempty"`
	Class      string         `json:"class"`
	Upstream   string         `json:"upstream"`
	Oracle     string         `json:"oracle,omitempty"`
	Pairs      int            `json:"pairs"`
	Violations int            `json:"violations"`
	Overgrants int            `json:"overgrants"`
	Caught     int            `json:"overgrants_caught"`
	Outcomes   map[string]int `json:"revocation_outcomes"`
	Latency    float64        `json:"revocation_latency_ms"`
}

const (
	readme = "README.md"
	begin  = "<!-- providers: made by go run ./scripts/providers -->\n"
	end    = "<!-- /providers -->\n"
)

func main() {
	check := flag.Bool("check", false, "fail if the README has another table")
	flag.Parse()
	if err := run(*check); err != nil {
		fmt.Fprintln(os.Stderr, "providers:", err)
		os.Exit(1)
	}
}

func run(check bool) error {
	results, err := load()
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(map[string]any{"rows": results}, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join("build", "reports", "test-providers.json"), append(data, '\n'), 0o644)
	}
	if err != nil {
		return err
	}
	print(results)
	for _, r := range results {
		if r.Violations > 0 || r.Caught < r.Overgrants {
			err = errors.Join(err, fmt.Errorf("%s: %d violations, %d of %d over-grants caught", r.Kind, r.Violations, r.Caught, r.Overgrants))
		}
	}
	for _, kind := range providers.Kinds() {
		if !slices.ContainsFunc(results, func(r result) bool { return r.Kind == kind }) {
			err = errors.Join(err, fmt.Errorf("%s: no test has written a result", kind))
		}
	}
	if err != nil {
		return err
	}
	return inReadme(table(results), check)
}

// load reads the results, in the order of the kinds.
func load() (all []result, err error) {
	files, err := filepath.Glob(filepath.Join("build", "reports", "providers", "*.json"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var r result
		if err := json.Unmarshal(data, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, r)
	}
	return all, nil
}

func print(all []result) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "PROVIDER\tCLASS\tUPSTREAM\tORACLE\tPAIRS\tVIOLATIONS\tOVER-GRANTS CAUGHT\tREVOCATION\tLATENCY")
	for _, r := range all {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d of %d\t%s\t%.1f ms\n",
			r.name(), r.Class, r.Upstream, orDash(r.Oracle), r.Pairs, r.Violations, r.Caught, r.Overgrants, r.outcomes(), r.Latency)
	}
	_ = w.Flush()
}

func (r result) name() string {
	if r.Variant == "" {
		return r.Kind
	}
	return r.Kind + " (" + r.Variant + ")"
}

func (r result) outcomes() string { return strings.Join(slices.Sorted(maps.Keys(r.Outcomes)), ", ") }

// violations is how many there are, of a provider that has something to compare with.
func (r result) violations() string {
	if r.Pairs == 0 {
		return "-"
	}
	return strconv.Itoa(r.Violations)
}

// caught is how many over-granting upstreams were found out, where any was tried.
func (r result) caught() string {
	if r.Overgrants == 0 {
		return "-"
	}
	return fmt.Sprintf("%d of %d", r.Caught, r.Overgrants)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// table is what the README shows: what does not change from run to run.
func table(all []result) string {
	var b strings.Builder
	b.WriteString("| Provider | Narrows | Lives | Taken back | Tested against | Oracle | Violations | Over-grants caught |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range all {
		d, err := providers.Describe(r.Kind)
		if err != nil {
			continue // of a kind that is gone
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s | %s |\n",
			r.name(), r.Class, lives(d), r.outcomes(), r.Upstream, orDash(r.Oracle), r.violations(), r.caught())
	}
	return b.String()
}

func lives(d broker.Description) string {
	if d.MaxLifetime == 0 {
		return "from " + span(d.MinLifetime)
	}
	if d.MinLifetime == d.MaxLifetime {
		return span(d.MaxLifetime)
	}
	return span(d.MinLifetime) + " to " + span(d.MaxLifetime)
}

// span writes a duration without the zeroes at its end.
func span(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"0s", "0m"} {
		if short, ok := strings.CutSuffix(text, zero); ok && short != "" && strings.ContainsAny(short[len(short)-1:], "hm") {
			text = short
		}
	}
	return text
}

func inReadme(made string, check bool) error {
	text, err := os.ReadFile(readme)
	if err != nil {
		return err
	}
	before, rest, ok1 := bytes.Cut(text, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok1 || !ok2 {
		return errors.New("the README has no place for the table")
	}
	changed := string(before) + begin + made + end + string(after)
	switch {
	case changed == string(text):
		return nil
	case check:
		return errors.New("the README has another table: run make test-providers")
	}
	return os.WriteFile(readme, []byte(changed), 0o644) //nolint:gosec // a constant name
}
