package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/internal/token"
	"github.com/stint-dev/stint/internal/vault"
	"github.com/stint-dev/stint/scopes"
)

// question is a request that somebody could make, as the command line has it.
type question struct {
	client, subject, token   string
	groups, claims           []string
	agent                    string
	via                      []string
	held, heldAt             string
	resources, audiences     []string
	scope                    string
	tool, arguments, details string
	live                     bool
	tokenReader              io.Reader // of --token -
	changedHeld              bool
}

func newExplain(g *globals) *cobra.Command {
	var q question
	c := &cobra.Command{
		Use: "explain", Short: "Say what would be granted, and why or why not",
		Long: `Decides a request by the code that decides requests, and shows every step: what the
token holds, each ceiling, each rule that spoke, each input of the meet for an upstream
and what it left, what the upstream would be sent; and for a refusal the nearest thing
that would have allowed it.

The subject is described by flags, or read off a real token (--token), whose signature is
then checked. Whether something was revoked is not looked at. Nothing is issued.

It exits with 0 if all would be granted, and with 3 if not.`,
		Example: `  stint explain --client notes-mcp --subject 'https://idp.example#alice' --group everyone \
    --resource https://api.example/notes --scope notes:read
  stint explain --client notes-mcp --subject 'https://idp.example#alice' --group everyone --group editors \
    --agent desktop --resource https://api.example/notes --tool write_note --arguments '{"notebook":"diary"}'
  stint explain --client notes-mcp --token - --resource https://api.example/notes --scope notes:read < token.jwt
  stint explain --client notes-mcp --resource https://api.example/notes --scope notes:read`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(g.config)
			if err != nil {
				return &exitError{exitRefused, err}
			}
			q.tokenReader, q.changedHeld = c.InOrStdin(), c.Flags().Changed("held")
			p, err := openPlan(c.Context(), cfg, vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now, ReadOnly: true})
			if err != nil {
				return &exitError{exitRefused, err}
			}
			defer func() { _ = p.secrets.Close() }()
			e, err := explain(c.Context(), p, q)
			if err != nil {
				return err
			}
			if err := g.print(c, e, func(p *printer) { showExplanation(p, e) }); err != nil {
				return err
			}
			if !e.Allowed {
				return &exitError{exitRefused, errors.New("")}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&q.client, "client", "", "the client that asks, by its `id`")
	f.StringVar(&q.subject, "subject", "", "whom it acts for, as `ISSUER#SUB`; absent: itself")
	f.StringVar(&q.token, "token", "", "a `file` with the subject token; - reads standard input")
	f.StringArrayVar(&q.groups, "group", nil, "a `group` of the subject (repeatable)")
	f.StringArrayVar(&q.claims, "claim", nil, "a claim of the subject's token, as `NAME=VALUE` (repeatable)")
	f.StringVar(&q.agent, "agent", "", "the agent that the subject uses, by its `name`")
	f.StringArrayVar(&q.via, "via", nil, "another client or agent on the way, by its `name` (repeatable)")
	f.StringVar(&q.held, "held", "", "the `scopes` that the subject token holds; absent: what a token of its issuer without any would")
	f.StringVar(&q.heldAt, "held-at", "", "the `resource` whose scopes those are; absent: the one that is asked for")
	f.StringArrayVar(&q.resources, "resource", nil, "what is asked for, by its `URI` (repeatable)")
	f.StringArrayVar(&q.audiences, "audience", nil, "what is asked for, by its `name`, such as a provider's (repeatable)")
	f.StringVar(&q.scope, "scope", "", "the `scopes` that are asked for, separated by spaces")
	f.StringVar(&q.tool, "tool", "", "the MCP `tool` that is called")
	f.StringVar(&q.arguments, "arguments", "", "the arguments of that call, as a `JSON` object")
	f.StringVar(&q.details, "details", "", "authorization_details, as a `JSON` array")
	f.BoolVar(&q.live, "live", false, "ask upstreams for the subject's own rights, which are assumed otherwise")
	for flag, list := range map[string]func(*config.Config) []string{
		"client": clientsOf, "agent": partiesOf, "via": partiesOf, "group": groupsOf, "resource": targetsFor, "audience": targetsFor,
	} {
		_ = c.RegisterFlagCompletionFunc(flag, g.completed(list))
	}
	_ = c.MarkFlagRequired("client")
	c.MarkFlagsMutuallyExclusive("subject", "token")
	return c
}

// explained is an explanation, with what is odd about the question.
type explained struct {
	*broker.Explanation
	Warnings []string `json:"warnings,omitempty"`
}

// explain answers a question. An error means that it makes no sense.
func explain(ctx context.Context, p *plan, q question) (*explained, error) {
	if err := q.check(p.registry); err != nil {
		return nil, err
	}
	judge := broker.NewJudge(p.registry, p.policy)
	bq := &broker.Question{
		Client: p.registry.Clients[q.client], Agent: q.agent, Via: q.via, Resources: q.resources, Audiences: q.audiences,
		Scope: q.scope, Details: q.details, Now: time.Now(), Live: q.live,
	}
	if bq.Client == nil {
		return nil, usage("there is no client %q; there are %s", q.client, names(p.registry.Clients))
	}
	if q.tool != "" {
		details, err := withToolCall(q)
		if err != nil {
			return nil, err
		}
		bq.Details = details
	}
	if q.changedHeld {
		bq.Held = &scopes.Held{Resource: q.heldAt, Scopes: strings.Fields(q.held)}
		if t, err := judge.Target(bq.Client, q.resources, q.audiences); err == nil && q.heldAt == "" {
			bq.Held.Resource = t.Resource
		}
	}
	var err error
	switch {
	case q.token != "":
		bq.Token, err = p.verify(ctx, q)
	case q.subject != "":
		bq.Subject, err = p.subject(q)
	}
	if err != nil {
		return nil, err
	}
	return &explained{judge.Explain(ctx, bq), p.unknownGroups(q.groups)}, nil
}

// check refuses what describes nobody: names that the configuration does not have,
// which could only be refused for reasons that are not the mistake, and a description
// of a subject that is not described or is read off a token.
func (q *question) check(r *broker.Registry) error {
	if described := len(q.groups)+len(q.claims) > 0 || q.agent != ""; described && q.subject == "" {
		return usage("--group, --claim and --agent describe the subject of --subject; a token says these by itself, and a client has none")
	}
	if len(q.via) > 0 && q.token != "" {
		return usage("--via is for a subject without a token: a token says who has held it")
	}
	for _, name := range append([]string{q.agent}, q.via...) {
		if name != "" && r.Agents[name] == nil && r.Clients[name] == nil {
			return usage("there is no agent or client %q; the agents are %s, the clients %s", name, names(r.Agents), names(r.Clients))
		}
	}
	return nil
}

// unknownGroups warns of groups that no issuer is configured to know. A token may hold
// such, which then count for nothing; on a command line they are rather misspelt.
func (p *plan) unknownGroups(groups []string) (out []string) {
	known := p.registry.World().Groups
	for _, g := range groups {
		if !slices.Contains(known, g) {
			out = append(out, fmt.Sprintf("no issuer has the group %q, so that no mapping can name it; there are %s", g, listed(known)))
		}
	}
	return out
}

func names[V any](m map[string]V) string {
	var all []string
	for name := range m {
		all = append(all, name)
	}
	return listed(all)
}

// listed lists names in order, each once.
func listed(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}

// withToolCall adds a tool call to the authorization details.
func withToolCall(q question) (string, error) {
	call := map[string]any{"type": broker.ToolCall, "tool": q.tool}
	if q.arguments != "" {
		var args map[string]any
		if err := strictjson.Decode([]byte(q.arguments), &args); err != nil {
			return "", usage("--arguments: %v", err)
		}
		call["arguments"] = args
	}
	items := []any{call}
	if q.details != "" {
		var more []any
		if err := strictjson.Decode([]byte(q.details), &more); err != nil {
			return "", usage("--details: %v", err)
		}
		items = append(items, more...)
	}
	data, err := strictjson.Encode(items)
	return string(data), err
}

// subject describes the subject by flags.
func (p *plan) subject(q question) (*scopes.Subject, error) {
	iss, sub, ok := strings.Cut(q.subject, "#")
	switch issuers := names(p.registry.Issuers); {
	case !ok || sub == "":
		return nil, usage("--subject is ISSUER#SUB; the issuers are %s", issuers)
	case p.registry.Issuers[iss] == nil:
		return nil, usage("--subject: %q is no configured issuer; the issuers are %s", iss, issuers)
	}
	s := &scopes.Subject{Issuer: iss, ID: sub, Groups: q.groups, Claims: make(map[string]string)}
	for _, c := range q.claims {
		name, value, ok := strings.Cut(c, "=")
		if !ok {
			return nil, usage("--claim is NAME=VALUE, not %q", c)
		}
		if shown := p.world().Claims[iss]; !slices.Contains(shown, name) {
			return nil, usage("--claim: tokens of %s are not read for %q; its list of claims has %s", iss, name, listed(slices.Clone(shown)))
		}
		s.Claims[name] = value
	}
	return s, nil
}

// verify reads the subject token and checks it as the server does.
func (p *plan) verify(ctx context.Context, q question) (*broker.Token, error) {
	raw, err := readToken(q.tokenReader, q.token)
	if err != nil {
		return nil, err
	}
	tokens, err := p.verifier(ctx)
	if err != nil {
		return nil, err
	}
	t, err := tokens.Verify(ctx, raw)
	if err != nil {
		return nil, &exitError{exitRefused, fmt.Errorf("the token is not accepted: %s", broker.AsError(err).Reason())}
	}
	return t, nil
}

// readToken reads a token from a file, or from standard input for -.
func readToken(in io.Reader, file string) (secret.String, error) {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return secret.String{}, err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, 64<<10))
	return secret.New(strings.TrimSpace(string(raw))), err
}

// verifier verifies tokens by the keys of issuers, and our own by those that the
// secrets hold.
func (p *plan) verifier(ctx context.Context) (*token.Service, error) {
	cfg, err := p.tokenConfig()
	if err != nil {
		return nil, err
	}
	client, err := p.fetcher()
	if err != nil {
		return nil, err
	}
	ring, err := token.OpenRing(ctx, ringConfig(p.cfg), lookOnly{keyFile{p.secrets}})
	if err != nil {
		return nil, err
	}
	return token.New(cfg, ring, client)
}

// lookOnly reads signing keys and keeps none: where there are none yet, there is
// no token of ours either.
type lookOnly struct{ keyFile }

// SaveKeys implements [token.KeyStore].
func (lookOnly) SaveKeys(context.Context, secret.String, int) error { return nil }
