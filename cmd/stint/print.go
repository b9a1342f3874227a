package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/internal/strictyaml"
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

// print writes v as JSON or YAML, or what text writes.
func (g *globals) print(c *cobra.Command, v any, text func(p *printer)) error {
	out := c.OutOrStdout()
	if g.output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
	if g.output == "yaml" {
		text, err := strictyaml.Encode(v)
		if err != nil {
			return err
		}
		_, err = out.Write(text)
		return err
	}
	p := &printer{w: out}
	text(p)
	p.flush()
	return nil
}

// fieldsOf are the members of a document as it is in JSON, in their order, those in
// others as JSON.
func fieldsOf(v any) (out [][2]string) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if _, err := dec.Token(); err != nil {
		return nil
	}
	for dec.More() {
		name, err := dec.Token()
		var value json.RawMessage
		if err != nil || dec.Decode(&value) != nil {
			return out
		}
		text := string(value)
		if s := ""; json.Unmarshal(value, &s) == nil {
			text = s
		}
		out = append(out, [2]string{fmt.Sprint(name), text})
	}
	return out
}
