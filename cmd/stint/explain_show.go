package main

import (
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/scopes"
)

// showExplanation writes an explanation for people.
func showExplanation(p *printer, e *explained) {
	if e.Allowed {
		p.line("ALLOWED")
	} else {
		p.line("REFUSED  %s: %s", e.Code, e.Answer)
		p.line("because  %s", e.Reason)
	}
	for _, n := range e.Nearest {
		p.line("nearest  %s", n)
	}
	for _, w := range e.Warnings {
		p.line("warning  %s", w)
	}
	p.line("")
	p.row("client", e.Client)
	p.row("subject", e.Subject)
	optional := func(name, value string) {
		if value != "" {
			p.row(name, value)
		}
	}
	optional("groups", strings.Join(e.Groups, ", "))
	optional("agent", e.Agent)
	optional("resource", e.Resource)
	optional("provider", e.Provider)
	optional("tool", e.Tool)
	p.flush()
	if e.Policy != nil {
		showPolicy(p, e.Policy)
	}
	if e.Narrowing != nil {
		showNarrowing(p, e.Explanation)
	}
}

func showPolicy(p *printer, e *scopes.Explanation) {
	for _, s := range e.Scopes {
		verdict := "granted"
		if !s.Allowed {
			verdict = "refused: " + string(s.Why)
		}
		p.line("\nscope %s  %s", strings.TrimSpace(s.Scope+" "+bracket(s.Access)), verdict)
		for _, step := range s.Steps {
			mark := "pass"
			if !step.Pass {
				mark = "FAIL"
			}
			p.row("  "+mark, step.Limit, step.Says)
		}
		for _, r := range s.Rules {
			p.row("  rule", r.Rule, r.Says)
		}
		p.flush()
	}
	if e.Approval {
		p.line("\na human has to approve this")
	}
	if e.Policy != "" {
		p.line("\nby the mapping of %s, version %s", e.Resource, e.Policy)
	}
}

func bracket(text string) string {
	if text == "" {
		return ""
	}
	return "(" + text + ")"
}

func showNarrowing(p *printer, e *broker.Explanation) {
	n := e.Narrowing
	p.line("\nnarrowed for %s, which is %s:", e.Provider, n.Class)
	for i, in := range n.Inputs {
		p.line("  %s%s", in.Name, dash(in.Note))
		p.line("    allows  %s", in.Grant)
		p.line("    leaves  %s", n.Left[i])
	}
	if len(n.Upstream) > 0 {
		p.line("the upstream would be sent\n  %s", n.Upstream)
	}
	if !n.Grant.IsNothing() && n.ReadOnly {
		p.line("it only reads")
	}
}

func dash(note string) string {
	if note == "" {
		return ""
	}
	return " - " + note
}
