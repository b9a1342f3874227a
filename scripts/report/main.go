// Command report puts reports together and prints them:
//
//	go run ./scripts/report NAME PART...
//
// Each PART is build/reports/PART.json, and all together are build/reports/NAME.json. It
// fails if a part is missing, or a target was not met.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
)

type report struct {
	Rows []row `json:"rows"`
}

type row struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Target float64 `json:"target"`
	Met    bool    `json:"met"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: report NAME PART...")
	}
	var all report
	for _, part := range args[1:] {
		data, err := os.ReadFile(file(part))
		if err != nil {
			return err
		}
		var one report
		if err := json.Unmarshal(data, &one); err != nil {
			return fmt.Errorf("%s: %w", file(part), err)
		}
		all.Rows = append(all.Rows, one.Rows...)
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		err = os.WriteFile(file(args[0]), data, 0o644)
	}
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	missed := 0
	for _, r := range all.Rows {
		word := "met"
		if !r.Met {
			word = "MISSED"
			missed++
		}
		_, _ = fmt.Fprintf(w, "%s\t%g %s\ttarget %g\t%s\n", r.Name, r.Value, r.Unit, r.Target, word)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if missed > 0 {
		return fmt.Errorf("%d targets were missed", missed)
	}
	return nil
}

func file(name string) string { return filepath.Join("build", "reports", name+".json") }
