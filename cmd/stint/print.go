package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// printer writes text for people.
type printer struct {
	w   io.Writer
	tab *tabwriter.Writer
}

func (p *printer) line(format string, args ...any) { _, _ = fmt.Fprintf(p.w, format+"\n", args...) }

// row writes a row of a table; flush ends it.
func (p *printer) row(cells ...any) {
	if p.tab == nil {
		p.tab = tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	}
	for i, c := range cells {
		if i > 0 {
			_, _ = fmt.Fprint(p.tab, "\t")
		}
		_, _ = fmt.Fprint(p.tab, c)
	}
	_, _ = fmt.Fprintln(p.tab)
}

func (p *printer) flush() {
	if p.tab != nil {
		_ = p.tab.Flush()
		p.tab = nil
	}
}

// print writes v as JSON, or what text writes.
func (g *globals) print(c *cobra.Command, v any, text func(p *printer)) error {
	out := c.OutOrStdout()
	if g.output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
	p := &printer{w: out}
	text(p)
	p.flush()
	return nil
}
