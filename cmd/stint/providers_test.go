package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/providers"
	"github.com/stint-dev/stint/scopes/grant"
)

func TestProvidersAreListed(t *testing.T) {
	for _, args := range [][]string{{"providers"}, {"providers", "list"}} {
		out, code, err := command(t, args...)
		if code != 0 {
			t.Fatal(err)
		}
		for _, kind := range providers.Kinds() {
			if !strings.Contains(out, "\n"+kind+" ") {
				t.Errorf("%s is not in\n%s", kind, out)
			}
		}
	}
	out, _, _ := command(t, "providers", "-o", "json")
	var all []kindView
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != len(providers.Kinds()) || all[0].Kind != providers.Kinds()[0] {
		t.Errorf("%v\n%s", err, out)
	}
}

// What is shown of every kind is complete, and its examples can be used as they
// are.
func TestEveryKindIsShown(t *testing.T) {
	for _, kind := range providers.Kinds() {
		t.Run(kind, func(t *testing.T) {
			d, err := providers.Describe(kind)
			if err != nil {
				t.Fatal(err)
			}
			if classes[d.Class] == "" || evidences[d.Evidence] == "" || revoked[d.Revokes] == "" {
				t.Errorf("words without a meaning: %q, %q, %q", d.Class, d.Evidence, d.Revokes)
			}
			text, code, err := command(t, "providers", "show", kind)
			if code != 0 {
				t.Fatal(err)
			}
			for _, dim := range d.Schema.Dimensions() {
				if !strings.Contains(text, "  "+dim.Name+": "+writtenAs[dim.Type]) || !strings.Contains(text, dim.About) {
					t.Errorf("dimension %s is not in\n%s", dim.Name, text)
				}
			}
			_, vend, _ := strings.Cut(text, "    vend: ")
			vend, _, _ = strings.Cut(vend, "\n")
			var mapping struct {
				Vend map[string]map[string]any `yaml:"vend"`
			}
			if err := strictyaml.Decode("shown.yaml", []byte("vend: "+vend), &mapping); err != nil {
				t.Fatal(err)
			}
			fromMapping, err := d.Schema.ParseValue(any(mapping.Vend[exampleProvider]))
			if err != nil {
				t.Fatal(err)
			}
			_, encoded, _ := strings.Cut(text, "authorization_details=")
			var details []map[string]any
			if err := json.Unmarshal([]byte(encoded), &details); err != nil || details[0]["type"] != d.Details || details[0]["provider"] != exampleProvider {
				t.Fatal(err, details)
			}
			delete(details[0], "type")
			delete(details[0], "provider")
			if got, err := d.Schema.ParseValue(any(details[0])); err != nil || !got.Equal(fromMapping) || got.IsNothing() {
				t.Errorf("the examples say %v and %v, %v", got, fromMapping, err)
			}
			var v kindView
			out, _, _ := command(t, "providers", "show", kind, "-o", "json")
			if err := json.Unmarshal([]byte(out), &v); err != nil || v.Class != d.Class || v.SchemaHash != d.Schema.Hash() {
				t.Errorf("%v\n%s", err, out)
			}
			if s, err := grant.DecodeSchema(v.Schema); err != nil || s.Hash() != d.Schema.Hash() {
				t.Errorf("schema: %v", err)
			}
		})
	}
}

// Kinds to come have other dimensions: there is an example of each type.
func TestThereIsAnExampleOfEveryDimension(t *testing.T) {
	for name, d := range map[string]grant.Dimension{
		"ids":                      {Type: grant.IDSet},
		"ids of a list":            {Type: grant.IDSet, Values: []string{"a", "b"}, Reads: []string{"b"}},
		"levels":                   {Type: grant.LevelMap},
		"levels of a list":         {Type: grant.LevelMap, Levels: map[string][]string{"issues": {"read", "write"}, "none": {}}},
		"scopes":                   {Type: grant.ScopeSet},
		"scopes that imply others": {Type: grant.ScopeSet, Values: []string{"repo", "read"}, Below: map[string][]string{"repo": {"read"}}},
		"prefixes":                 {Type: grant.PrefixSet},
		"prefixes with verbs":      {Type: grant.PrefixSet, Values: []string{"put", "list"}, Reads: []string{"list"}},
		"actions":                  {Type: grant.ActionSet},
		"what somebody owns":       {Type: grant.OwnedSet},
		"rules":                    {Type: grant.RuleSet},
		"privileges":               {Type: grant.PrivSet},
		"a profile":                {Type: grant.Profile},
		"a profile of a list":      {Type: grant.Profile, Values: []string{"reader", "writer"}},
		"a duration":               {Type: grant.Duration, Optional: true},
		"one value":                {Type: grant.Exact},
	} {
		t.Run(name, func(t *testing.T) {
			d.Name, d.About = "thing", "What it means."
			s, err := grant.NewSchema("new", 1, d)
			if err != nil {
				t.Fatal(err)
			}
			v, err := newKindView(broker.Description{Kind: "new", Schema: s, Class: broker.Exact, TokenType: "Bearer"})
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			v.text(&printer{w: &b})
			if writtenAs[d.Type] == "" || !strings.Contains(b.String(), writtenAs[d.Type]) || !strings.Contains(b.String(), "a bearer token") {
				t.Error(b.String())
			}
			var back struct {
				Grant map[string]any `yaml:"grant"`
			}
			if err := strictyaml.Decode("x.yaml", []byte("grant: "+flowYAML(v.Grant)), &back); err != nil {
				t.Fatal(err)
			}
			got, err := s.ParseValue(any(back.Grant))
			want, _ := s.ParseValue(any(v.Grant))
			if err != nil || !got.Equal(want) {
				t.Errorf("%s reads %v, %v", flowYAML(v.Grant), got, err)
			}
			if name == "ids of a list" && flowYAML(v.Grant) != "{thing: [b]}" {
				t.Errorf("not the one that only reads: %s", flowYAML(v.Grant))
			}
		})
	}
	if _, err := newKindView(broker.Description{Kind: "new"}); err == nil {
		t.Error("a kind without a schema is shown")
	}
}

func TestKindsAreCompletedAndUnknownOnesRefused(t *testing.T) {
	got, directive := completeKinds(nil, nil, "")
	if directive != cobra.ShellCompDirectiveNoFileComp || len(got) != len(providers.Kinds()) || !strings.HasPrefix(got[0], providers.Kinds()[0]+"\t") {
		t.Error(got, directive)
	}
	if got, _ := completeKinds(nil, []string{"postgres"}, ""); len(got) > 0 {
		t.Error(got)
	}
	for _, args := range [][]string{{"show", "mysql"}, {"show"}, {"show", "postgres", "vault"}} {
		_, code, err := command(t, slices.Concat([]string{"providers"}, args)...)
		if code != exitUsage || err == nil || !strings.Contains(err.Error(), strings.Join(providers.Kinds(), ", ")) {
			t.Errorf("%v: exit code %d, %v", args, code, err)
		}
	}
}

func TestLifetimesAreWritten(t *testing.T) {
	for want, v := range map[string]kindView{
		"1s to 1h0m0s": {MinLifetime: 1, MaxLifetime: 3600}, "1h0m0s": {MinLifetime: 3600, MaxLifetime: 3600}, "from 15m0s": {MinLifetime: 900},
	} {
		if got := v.lifetimes(); got != want {
			t.Errorf("%s, wanted %s", got, want)
		}
	}
}
