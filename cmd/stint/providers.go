package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/providers"
	"github.com/stint-dev/stint/scopes/grant"
)

func newProviders(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use: "providers", Short: "List the kinds of upstream that credentials are vended of",
		Long: `Lists the kinds of upstream that Stint can vend credentials of, how well each narrows to
a grant, and what becomes of a credential that is taken back.`,
		Example: `  stint providers
  stint providers show postgres`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return g.listProviders(c) },
	}
	c.AddCommand(newCertify(g), &cobra.Command{
		Use: "list", Short: "List the kinds", Args: cobra.NoArgs,
		Example: "  stint providers list\n  stint providers list -o json | jq '.[].kind'",
		RunE:    func(c *cobra.Command, _ []string) error { return g.listProviders(c) },
	}, &cobra.Command{
		Use: "show KIND", Short: "Show what a kind can do, and how its grants are written",
		Long: `Shows what a kind of upstream can do: how well it narrows, how it is known what it
granted, how long its credentials live and what ends when one is taken back. Then how its
grants are written, dimension by dimension, with an example of a mapping and of
authorization_details.`,
		Example: `  stint providers show postgres
  stint providers show postgres -o json | jq .schema`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usage("name one kind: %s", strings.Join(providers.Kinds(), ", "))
			}
			return nil
		},
		ValidArgsFunction: completeKinds,
		RunE: func(c *cobra.Command, args []string) error {
			d, err := providers.Describe(args[0])
			if err != nil {
				return usage("%v", err)
			}
			v, err := newKindView(d)
			if err != nil {
				return err
			}
			return g.print(c, v, v.text)
		},
	})
	return c
}

// completeKinds completes the first argument, each kind with what it is.
func completeKinds(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, kind := range providers.Kinds() {
		d, _ := providers.Describe(kind) // one of the kinds
		out = append(out, kind+"\t"+d.About)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (g *globals) listProviders(c *cobra.Command) error {
	var all []*kindView
	for _, kind := range providers.Kinds() {
		d, err := providers.Describe(kind)
		if err != nil {
			return err
		}
		v, err := newKindView(d)
		if err != nil {
			return err
		}
		all = append(all, v)
	}
	return g.print(c, all, func(p *printer) {
		p.row("KIND", "CLASS", "EVIDENCE", "REVOKES", "LIFETIME", "ABOUT")
		for _, v := range all {
			p.row(v.Kind, v.Class, v.Evidence, v.Revokes, v.lifetimes(), v.About)
		}
	})
}

// kindView is a kind of provider, as it is printed.
type kindView struct {
	Kind  string       `json:"kind"`
	About string       `json:"about"`
	Class broker.Class `json:"class"`
	// Modes are how its credentials are used.
	Modes    []broker.Mode   `json:"modes"`
	Evidence broker.Evidence `json:"evidence"`
	// Revokes is what ends when a credential is taken back.
	Revokes     string `json:"revokes"`
	TokenType   string `json:"token_type"`
	Scheme      string `json:"resource_scheme"`
	DetailsType string `json:"details_type"`
	// MinLifetime and MaxLifetime are seconds; 0 is no bound of its own.
	MinLifetime float64  `json:"min_lifetime"`
	MaxLifetime float64  `json:"max_lifetime"`
	Settable    bool     `json:"lifetime_settable"`
	Identity    []string `json:"identity"`
	// Sweeps says that what is alive upstream can be listed by lease, Links that subjects
	// link accounts of their own, and Renews that credentials can be let live longer. Reads is by which table it is known what only
	// reads.
	Sweeps bool   `json:"sweeps"`
	Links  bool   `json:"links"`
	Renews bool   `json:"renews"`
	Reads  string `json:"reads"`
	// Schema is the shape of its grants, and SchemaHash names it in certificates.
	Schema     json.RawMessage `json:"schema"`
	SchemaHash string          `json:"schema_hash"`
	// Grant is an example, and Details the same as authorization_details.
	Grant   map[string]any   `json:"example_grant"`
	Details []map[string]any `json:"example_authorization_details"`

	dims []grant.Dimension
}

func newKindView(d broker.Description) (*kindView, error) {
	if d.Schema == nil {
		return nil, fmt.Errorf("kind %s does not describe itself", d.Kind)
	}
	v := &kindView{
		Kind: d.Kind, About: d.About, Class: d.Class, Modes: d.Modes, Sweeps: d.Sweeps, Links: d.Links, Renews: d.Renews, Reads: d.Reads, Evidence: d.Evidence, Revokes: d.Revokes, TokenType: d.TokenType, Scheme: d.Scheme,
		DetailsType: d.Details, MinLifetime: d.MinLifetime.Seconds(), MaxLifetime: d.MaxLifetime.Seconds(), Settable: d.Settable,
		Identity: d.Identity, Schema: d.Schema.Encode(), SchemaHash: d.Schema.Hash(), Grant: map[string]any{}, dims: d.Schema.Dimensions(),
	}
	details := map[string]any{"type": d.Details, "provider": exampleProvider}
	for _, dim := range v.dims {
		v.Grant[dim.Name] = example(dim)
	}
	maps.Copy(details, v.Grant)
	v.Details = []map[string]any{details}
	if _, err := d.Schema.ParseValue(v.Grant); err != nil {
		return nil, fmt.Errorf("example of kind %s: %w", d.Kind, err)
	}
	return v, nil
}

// exampleProvider is what examples call the provider.
const exampleProvider = "main"

// writtenAs says how each type of dimension is written, and how two compare.
var writtenAs = map[grant.Type]string{
	grant.IDSet:     "a list of ids; fewer are less",
	grant.OwnedSet:  `a list of OWNER/NAME, or OWNER/* for all of an owner's; fewer are less`,
	grant.LevelMap:  "an object of key: level, of none, read, write and admin",
	grant.ScopeSet:  "a list of scopes; fewer are less, and a scope is less than one that implies it",
	grant.PrefixSet: "a list of {verbs, bucket, prefix}; a longer prefix is less",
	grant.ActionSet: `a list of {actions, resource}: an exact name, or one that ends in "/" or ":" for all that it begins`,
	grant.RuleSet:   "a list of Kubernetes rules {verbs, apiGroups, resources, resourceNames}",
	grant.PrivSet:   "a list of {object, privileges, columns, rows}; fewer of each are less, and so is a row policy that shows fewer rows",
	grant.Profile:   "one name",
	grant.Duration:  `a duration such as "15m"; shorter is less`,
	grant.Exact:     "one value; two are equal or have nothing in common",
}

// example returns a value of a dimension, which only reads where that can be.
func example(d grant.Dimension) any {
	first := func(fallback string) string {
		for _, list := range [][]string{d.Reads, d.Values} {
			if len(list) > 0 {
				return list[0]
			}
		}
		return fallback
	}
	switch d.Type {
	case grant.IDSet, grant.ScopeSet:
		return []any{first(strings.ToUpper(d.Name))}
	case grant.OwnedSet:
		return []any{"acme/web"}
	case grant.LevelMap:
		for _, key := range slices.Sorted(maps.Keys(d.Levels)) {
			if len(d.Levels[key]) > 0 {
				return map[string]any{key: d.Levels[key][0]}
			}
		}
		return map[string]any{strings.ToUpper(d.Name): "read"}
	case grant.PrefixSet:
		return []any{map[string]any{"verbs": []any{first("get")}, "bucket": "reports", "prefix": "2030/"}}
	case grant.ActionSet:
		resource := "reports/2030/"
		if service, _, ok := strings.Cut(first("get"), ":"); ok { // as AWS has it
			resource = "arn:aws:" + service + ":eu-west-1:123456789012:" + resource
		}
		return []any{map[string]any{"actions": []any{first("get")}, "resource": resource}}
	case grant.RuleSet:
		return []any{map[string]any{"verbs": []any{first("get")}, "apiGroups": "", "resources": "pods", "resourceNames": "*"}}
	case grant.PrivSet:
		return []any{map[string]any{"object": "app.orders", "privileges": []any{first("SELECT")}, "columns": []any{"id", "total"}, "rows": "*"}}
	case grant.Duration:
		return "15m"
	}
	return first(strings.ToUpper(d.Name))
}

// meanings of the words in a description.
var (
	classes = map[broker.Class]string{
		broker.Exact:   "the upstream enforces precisely the grant",
		broker.Coarse:  "the upstream knows scopes, and nothing finer",
		broker.Profile: "only to an identity that was made beforehand",
		broker.Object:  "one object, one method",
		broker.None:    "the credential carries everything, and is never handed out",
	}
	modes = map[broker.Mode]string{
		broker.Vend:   "handed to the client that asks",
		broker.Inject: "it stays here, and is put into requests that the grant allows",
	}
	evidences = map[broker.Evidence]string{
		broker.Attested: "its answer or its catalogue names what was granted",
		broker.Echoed:   "its answer repeats what was asked",
		broker.Asserted: "it says nothing of what it granted",
	}
	revoked = map[string]string{
		"token":     "that credential, and no other",
		"family":    "that credential and those refreshed from it",
		"grant":     "every credential of the user's consent",
		"principal": "every credential of the same identity",
		"none":      "nothing: it ends by itself, and its life is kept short for that",
	}
)

func (v *kindView) lifetimes() string {
	span := func(seconds float64) string { return (time.Duration(seconds) * time.Second).String() }
	switch {
	case v.MaxLifetime == 0:
		return "from " + span(v.MinLifetime)
	case v.MinLifetime == v.MaxLifetime:
		return span(v.MaxLifetime)
	}
	return span(v.MinLifetime) + " to " + span(v.MaxLifetime)
}

func (v *kindView) text(p *printer) {
	meaning := func(word, says string) string {
		if says == "" {
			return word
		}
		return word + ": " + says
	}
	p.row("kind", v.Kind)
	p.row("about", v.About)
	p.row("narrows", meaning(string(v.Class), classes[v.Class]))
	for i, mode := range v.Modes {
		p.row(map[bool]string{true: "used", false: ""}[i == 0], modes[mode]+" ("+string(mode)+")")
	}
	p.row("evidence", meaning(string(v.Evidence), evidences[v.Evidence]))
	p.row("revoking ends", meaning(v.Revokes, revoked[v.Revokes]))
	settable := "as asked"
	if !v.Settable {
		settable = "the upstream's own, whatever is asked"
	}
	p.row("lifetime", v.lifetimes()+", "+settable)
	p.row("credential", map[bool]string{true: "a bearer token", false: "a JSON document (token_type N_A)"}[v.TokenType == "Bearer"])
	p.row("resources", v.Scheme+"://"+exampleProvider+"/...")
	p.row("orphans", map[bool]string{true: "can be listed, and are ended", false: "cannot be listed: what is lost lives until it ends by itself"}[v.Sweeps])
	if v.Renews {
		p.row("renewal", "a credential that is out can live longer: POST /oauth2/renew")
	}
	if v.Links {
		p.row("accounts", "each subject links its own: stint connect")
	}
	p.row("only reads", v.Reads)
	for i, where := range v.Identity {
		p.row(map[bool]string{true: "logged upstream", false: ""}[i == 0], where)
	}
	p.row("grant schema", v.SchemaHash)
	p.flush()
	p.line("\nA grant has, each of them spelled, everything as \"*\":")
	for _, d := range v.dims {
		p.line("  %s: %s", d.Name, writtenAs[d.Type])
		for _, fact := range facts(d) {
			p.line("      %s", fact)
		}
	}
	p.line("\nIn a mapping, under scopes, for a provider called %s:", exampleProvider)
	p.line("  orders:read:\n    access: read\n    vend: {%s: %s}", exampleProvider, flowYAML(v.Grant))
	encoded, _ := strictjson.Encode(v.Details) // texts and lists of texts
	p.line("\nIn a request, narrower than scopes can say:")
	p.line("  authorization_details=%s", encoded)
}

// facts are what a dimension says beyond its type.
func facts(d grant.Dimension) (out []string) {
	if d.About != "" {
		out = append(out, d.About)
	}
	list := func(what string, values []string) {
		if len(values) > 0 {
			out = append(out, what+strings.Join(values, ", "))
		}
	}
	list("values: ", d.Values)
	for _, key := range slices.Sorted(maps.Keys(d.Levels)) {
		list(key+": ", d.Levels[key])
	}
	for _, name := range slices.Sorted(maps.Keys(d.Below)) {
		list(name+" covers: ", d.Below[name])
	}
	list("only reads: ", d.Reads)
	if d.Optional {
		out = append(out, "may be nothing, spelled []")
	}
	return out
}

// plainYAML is a text that YAML reads as that text, without quotes.
var plainYAML = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_./-]*$`)

// flowYAML writes JSON types as YAML on one line.
func flowYAML(v any) string {
	var parts []string
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, flowYAML(k)+": "+flowYAML(v[k]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case []any:
		for _, e := range v {
			parts = append(parts, flowYAML(e))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	text := fmt.Sprint(v)
	if plainYAML.MatchString(text) && !slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off"}, strings.ToLower(text)) {
		return text
	}
	return string(strictjson.AppendString(nil, text))
}
