package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// row is one figure.
type row struct {
	Name   string   `json:"name"`
	Value  float64  `json:"value"`
	Unit   string   `json:"unit"`
	Target *float64 `json:"target"`
	Met    *bool    `json:"met"`
}

// report collects rows.
type report struct {
	Rows []row `json:"rows"`
}

// add notes a figure without a target.
func (r *report) add(name string, value float64, unit string) {
	r.Rows = append(r.Rows, row{Name: name, Value: round(value), Unit: unit})
	fmt.Printf("  %-62s %10.4g %s\n", name, value, unit)
}

// atMost notes a figure that has a target.
func (r *report) atMost(name string, value float64, unit string, target float64) {
	met := value <= target
	r.Rows = append(r.Rows, row{Name: name, Value: round(value), Unit: unit, Target: &target, Met: &met})
	verdict := "met"
	if !met {
		verdict = "MISSED"
	}
	fmt.Printf("  %-62s %10.4g %s  (at most %.4g: %s)\n", name, value, unit, target, verdict)
}

func round(v float64) float64 { return float64(int64(v*1000+0.5)) / 1000 }

func (r *report) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	missed := 0
	for _, row := range r.Rows {
		if row.Met != nil && !*row.Met {
			missed++
		}
	}
	fmt.Printf("\n%d figures in %s; %d targets missed\n", len(r.Rows), path, missed)
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
