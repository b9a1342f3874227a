package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/internal/secret"
)

// formats are those that --format knows.
var formats = []string{"env", "json", "pgpass", "credential-process", "exec-credential"}

// variable is one of the environment.
type variable struct {
	name  string
	value secret.String
}

// wanted is a variable that the command line names, with the field of the
// credential that goes into it; without one, all of it.
type wanted struct{ name, field string }

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func wantedVariables(flags []string) (out []wanted, err error) {
	for _, f := range flags {
		name, field, _ := strings.Cut(f, "=")
		if !variableName.MatchString(name) {
			return nil, usage("--env: %q is no name of a variable", name)
		}
		out = append(out, wanted{name, field})
	}
	return out, nil
}

// convention is how programs find a kind of credential in their environment.
type convention struct {
	// needs are the fields by which a credential of the kind is known.
	needs []string
	// set are the variables, each with the fields of which the first that is there
	// goes into it.
	set [][]string
	// also are set like those where the fields are there, and left alone otherwise.
	also [][]string
	// expires is the variable for when it ends, if there is one.
	expires string
	// drop are variables that would be taken instead.
	drop []string
}

// The conventions there are: libpq's, and that of AWS's SDKs.
var (
	forPostgres = convention{
		needs: []string{"host", "port", "dbname", "sslmode", "user", "password"},
		set: [][]string{
			{"PGHOST", "host"}, {"PGPORT", "port"}, {"PGDATABASE", "dbname"}, {"PGSSLMODE", "sslmode"}, {"PGUSER", "user"}, {"PGPASSWORD", "password"},
		},
		// A service's file comes before the variables, and an address before a host:
		// the password would be shown to another server.
		drop: []string{"PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGPASSFILE"},
	}
	forAWS = convention{
		needs: []string{"access_key", "secret_key"}, // as Vault's AWS engine calls them
		set: [][]string{
			{"AWS_ACCESS_KEY_ID", "access_key"}, {"AWS_SECRET_ACCESS_KEY", "secret_key"}, {"AWS_SESSION_TOKEN", "session_token", "security_token"},
		},
		also:    [][]string{{"AWS_REGION", "region"}, {"AWS_ENDPOINT_URL", "endpoint"}},
		expires: "AWS_CREDENTIAL_EXPIRATION",
		// Some SDKs prefer a profile to keys.
		drop: []string{"AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"},
	}
	conventions = []convention{forPostgres, forAWS}
)

// fieldsIn are the texts of a credential that is a document. What an engine of Vault
// made is one level down.
func fieldsIn(got *client.Credential) (map[string]secret.String, error) {
	var doc map[string]json.RawMessage
	if err := got.Decode(&doc); err != nil {
		return nil, errors.New("the credential is no JSON object")
	}
	var inner map[string]json.RawMessage
	if json.Unmarshal(doc["fields"], &inner) == nil && inner != nil {
		doc = inner
	}
	out := make(map[string]secret.String, len(doc))
	for name, raw := range doc {
		var text string
		switch {
		case string(raw) == "null":
			continue
		case json.Unmarshal(raw, &text) != nil:
			text = string(raw)
		}
		if text != "" && text != "null" { // Vault's null, as the provider hands it on
			out[name] = secret.New(text)
		}
	}
	return out, nil
}

// fits reports whether a credential is of the kind.
func (c *convention) fits(f map[string]secret.String) bool {
	return !slices.ContainsFunc(c.needs, func(name string) bool { return f[name].Empty() })
}

// variables are those by which programs find a credential of the kind.
func (c *convention) variables(got *client.Credential, f map[string]secret.String) (set []variable, drop []string) {
	drop = slices.Clone(c.drop)
	for _, s := range c.set {
		i := slices.IndexFunc(s[1:], func(name string) bool { return !f[name].Empty() })
		if i < 0 {
			drop = append(drop, s[0]) // that of before goes with other keys
			continue
		}
		set = append(set, variable{s[0], f[s[1+i]]})
	}
	for _, s := range c.also {
		if v := f[s[1]]; !v.Empty() {
			set = append(set, variable{s[0], v})
		}
	}
	if c.expires != "" {
		set = append(set, variable{c.expires, secret.New(ends(got))})
	}
	return set, drop
}

// variables are those for a command: to be set, and to be taken out before.
func variables(got *client.Credential, names []wanted) (set []variable, drop []string, err error) {
	if got.Bearer {
		return tokenVariables(got, names)
	}
	f, err := fieldsIn(got)
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(conventions, func(c convention) bool { return c.fits(f) })
	if len(names) > 0 {
		if i >= 0 {
			drop = slices.Clone(conventions[i].drop)
		}
		set, err = namedVariables(got, f, names)
		return set, drop, err
	}
	if i >= 0 {
		set, drop = conventions[i].variables(got, f)
		return set, drop, nil
	}
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if v := "STINT_" + strings.ToUpper(name); variableName.MatchString(v) {
			set = append(set, variable{v, f[name]})
		}
	}
	return set, nil, nil
}

func tokenVariables(got *client.Credential, names []wanted) (set []variable, _ []string, err error) {
	if len(names) == 0 {
		names = []wanted{{name: "STINT_TOKEN"}}
	}
	for _, n := range names {
		if n.field != "" {
			return nil, nil, fmt.Errorf("--env %s=%s: this is a token, which has no fields: --env %s", n.name, n.field, n.name)
		}
		set = append(set, variable{n.name, secret.New(got.Token.Reveal())})
	}
	return set, nil, nil
}

func namedVariables(got *client.Credential, f map[string]secret.String, names []wanted) (set []variable, err error) {
	for _, n := range names {
		value := f[n.field]
		if n.field == "" {
			value = secret.New(got.Token.Reveal())
		}
		if value.Empty() {
			return nil, fmt.Errorf("--env %s=%s: the credential has no such field; it has %s", n.name, n.field, strings.Join(slices.Sorted(maps.Keys(f)), ", "))
		}
		set = append(set, variable{n.name, value})
	}
	return set, nil
}

// environment is one like another, without some variables, and with others.
func environment(from, drop []string, set []variable) (out []string) {
	for _, v := range set {
		drop = append(drop, v.name)
	}
	for _, entry := range from {
		if name, _, _ := strings.Cut(entry, "="); !slices.Contains(drop, name) {
			out = append(out, entry)
		}
	}
	for _, v := range set {
		out = append(out, v.name+"="+v.value.Reveal())
	}
	return out
}

// formatted is a credential as a program wants to read it.
func formatted(got *client.Credential, format string) (secret.String, error) {
	switch format {
	case "json":
		var b bytes.Buffer
		if err := json.Indent(&b, wholeAnswer(got), "", "  "); err != nil {
			return secret.String{}, err
		}
		return secret.New(b.String()), nil
	case "env":
		return exports(got)
	case "exec-credential":
		return execCredential(got)
	}
	var f map[string]secret.String
	if !got.Bearer {
		var err error
		if f, err = fieldsIn(got); err != nil {
			return secret.String{}, err
		}
	}
	if format == "pgpass" {
		return pgpass(f)
	}
	return credentialProcess(got, f)
}

// exports are lines for a shell to evaluate.
func exports(got *client.Credential) (secret.String, error) {
	set, drop, err := variables(got, nil)
	if err != nil {
		return secret.String{}, err
	}
	var lines []string
	if len(drop) > 0 {
		lines = append(lines, "unset "+strings.Join(drop, " "))
	}
	for _, v := range set {
		lines = append(lines, "export "+v.name+"="+shellQuote(v.value.Reveal()))
	}
	return secret.New(strings.Join(lines, "\n")), nil
}

// pgpass is a line of PostgreSQL's password file.
func pgpass(f map[string]secret.String) (secret.String, error) {
	if !forPostgres.fits(f) {
		return secret.String{}, errors.New("--format pgpass is for PostgreSQL logins, and this is none")
	}
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`)
	var parts []string
	for _, name := range []string{"host", "port", "dbname", "user", "password"} {
		parts = append(parts, escape.Replace(f[name].Reveal()))
	}
	return secret.New(strings.Join(parts, ":")), nil
}

// credentialProcess is what AWS's SDKs read from the program that a profile names as
// credential_process.
func credentialProcess(got *client.Credential, f map[string]secret.String) (secret.String, error) {
	if !forAWS.fits(f) {
		return secret.String{}, errors.New("--format credential-process is for AWS keys, and these are none")
	}
	session := f["session_token"]
	if session.Empty() {
		session = f["security_token"]
	}
	out := map[string]any{
		"Version": 1, "AccessKeyId": f["access_key"].Reveal(), "SecretAccessKey": f["secret_key"].Reveal(), "Expiration": ends(got),
	}
	if !session.Empty() {
		out["SessionToken"] = session.Reveal()
	}
	text, err := json.Marshal(out)
	return secret.New(string(text)), err
}

// execCredential is what kubectl and other clients of Kubernetes read from the program
// that a kubeconfig's user names as exec.
func execCredential(got *client.Credential) (secret.String, error) {
	if !got.Bearer {
		return secret.String{}, errors.New("--format exec-credential is for tokens, and this is none")
	}
	text, err := json.Marshal(map[string]any{
		"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
		"status": map[string]any{"token": got.Token.Reveal(), "expirationTimestamp": ends(got)},
	})
	return secret.New(string(text)), err
}

// ends is when a credential ends, in UTC.
func ends(got *client.Credential) string { return got.Expires.UTC().Format(time.RFC3339) }
