package main

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/internal/config"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/internal/vault"
)

//go:embed template
var templates embed.FS

func newInit(g *globals) *cobra.Command {
	var in initInput
	c := &cobra.Command{
		Use: "init [DIR]", Short: "Write a configuration to begin with",
		Long: `Writes a commented configuration that passes ` + "`stint check`" + ` as it is: stint.yaml, one
mapping with a Cedar file beside it, and JSON Schemas for editors. It is for one
machine, with a store and sealed secrets in files; --redis and --vault write the
sections for these instead.

For sealed secrets it makes the sealed file, the identity that opens it, and the secret
of an example client, which is shown once. Neither file is ever replaced. With Vault the
secret is made if --vault-role-id and --vault-secret-id say how to log in.`,
		Example: "  stint init /etc/stint --issuer https://stint.example --trust https://idp.example\n" +
			"  stint init --redis redis.example:6379 --vault https://vault.example:8200",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			in.Dir = "."
			if len(args) == 1 {
				in.Dir = args[0]
			}
			if err := in.check(); err != nil {
				return usage("%v", err)
			}
			out, err := in.write(c.Context())
			if err != nil {
				return err
			}
			return g.print(c, out, out.text)
		},
	}
	f := c.Flags()
	f.StringVar(&in.Issuer, "issuer", "http://localhost:8080", "the `URL` by which clients will know Stint")
	f.StringVar(&in.Trust, "trust", "https://idp.example", "the issuer (`URL`) whose tokens to trust, for instance the identity provider")
	f.StringVar(&in.Redis, "redis", "", "keep state in Redis at `HOST:PORT`")
	f.StringVar(&in.Vault, "vault", "", "keep secrets in the HashiCorp Vault at a `URL`")
	f.StringVar(&in.RoleID, "vault-role-id", "", "the role `ID` that deploy/vault/setup.sh prints")
	f.StringVar(&in.SecretID, "vault-secret-id", "", "a `reference` to the secret id: file:/PATH or env:NAME")
	f.BoolVar(&in.force, "force", false, "replace files that exist; secrets are kept")
	return c
}

// theConfig is what the configuration is called in a folder.
const theConfig = "stint.yaml"

// initInput is what the templates are filled with.
type initInput struct {
	Dir              string
	Issuer, Trust    string
	Redis, Vault     string
	RoleID, SecretID string
	SecretHash       string
	Resource, Target string
	force            bool
	login            bool // to Vault, is known
	secret           secret.String
}

func (in *initInput) check() error {
	for name, text := range map[string]string{"--issuer": in.Issuer, "--trust": in.Trust, "--vault": in.Vault} {
		u, err := url.Parse(text)
		if text != "" && (err != nil || u.Host == "" || strings.ContainsAny(text, " \"'{},#\n\\")) {
			return fmt.Errorf("%s: %q is no URL: write https://HOST", name, text)
		}
	}
	if _, _, err := net.SplitHostPort(in.Redis); in.Redis != "" && (err != nil || strings.ContainsAny(in.Redis, " \"'{}#\n\\")) {
		return fmt.Errorf("--redis: %q is no address: write HOST:PORT", in.Redis)
	}
	if err := in.checkLogin(); err != nil {
		return err
	}
	in.Issuer = strings.TrimSuffix(in.Issuer, "/")
	in.Resource, in.Target = "https://mcp.example/notes", "https://api.example/notes"
	if in.Trust == in.Issuer {
		return fmt.Errorf("--trust: %s is --issuer, whose tokens are trusted anyway: name the issuer of your users' tokens", in.Trust)
	}
	data, err := in.content(theConfig)
	if err != nil {
		return err
	}
	return byFlag(strictyaml.Decode(theConfig, data, &config.Config{}))
}

// byFlag names the flag that brought a mistake into what would be written.
func byFlag(err error) error {
	all := strictyaml.Errors{}
	if !errors.As(err, &all) {
		return err
	}
	text := all[0].Text
	for _, f := range [][2]string{{"issuers", "--trust"}, {"issuer", "--issuer"}, {"listen", "--issuer"}, {"secrets.vault", "--vault"}, {"store.redis", "--redis"}} {
		if strings.HasPrefix(text, f[0]) {
			return fmt.Errorf("%s: %s", f[1], text)
		}
	}
	return errors.New(text)
}

// Address is where to listen: for an issuer on this machine where it says, else where
// what is in front of it may find it.
func (in *initInput) Address() string {
	host, port := "127.0.0.1", "8080"
	if u, err := url.Parse(in.Issuer); err == nil && u.Scheme == "http" {
		port = cmp.Or(u.Port(), "80")
		if net.ParseIP(u.Hostname()) != nil {
			host = u.Hostname()
		}
	}
	address := net.JoinHostPort(host, port)
	if strings.HasPrefix(address, "[") {
		return strconv.Quote(address) // or YAML takes it for a list
	}
	return address
}

// checkLogin looks at how to log in to Vault. What was not said is written as
// something to be filled in.
func (in *initInput) checkLogin() error {
	in.login = in.RoleID != "" && in.SecretID != ""
	switch {
	case in.RoleID == "" && in.SecretID == "":
	case in.Vault == "":
		return errors.New("--vault-role-id and --vault-secret-id go with --vault")
	case strings.ContainsAny(in.RoleID+in.SecretID, " \"'{}[],#\n\\"):
		return errors.New("--vault-role-id and --vault-secret-id: no spaces, quotes and brackets")
	}
	if in.SecretID != "" && !strings.HasPrefix(in.SecretID, "file:/") && !strings.HasPrefix(in.SecretID, "env:") {
		return fmt.Errorf("--vault-secret-id: %q: write file:/PATH or env:NAME", in.SecretID)
	}
	in.RoleID = cmp.Or(in.RoleID, "00000000-0000-0000-0000-000000000000")
	in.SecretID = cmp.Or(in.SecretID, "file:/run/secrets/stint-secret-id")
	return nil
}

// RedisTLS reports whether Redis is reached over a network.
func (in *initInput) RedisTLS() bool {
	host, _, _ := net.SplitHostPort(in.Redis)
	ip := net.ParseIP(host)
	return host != "localhost" && (ip == nil || !ip.IsLoopback())
}

// RedisQuoted is the address where YAML needs quotes, as for [::1]:6379.
func (in *initInput) RedisQuoted() string { return fmt.Sprintf("%q", in.Redis) }

// initOutput is what was written.
type initOutput struct {
	Files  []string `json:"files"`
	Kept   []string `json:"kept,omitempty"`
	Client string   `json:"client"`
	Secret string   `json:"secret,omitempty"`

	in *initInput
}

// write writes everything, or nothing if something is there that would be lost.
func (in *initInput) write(ctx context.Context) (*initOutput, error) {
	out := &initOutput{Client: "notes-mcp", in: in}
	files := []string{theConfig, "mappings/example.yaml", "mappings/example.cedar", ".schema/config.json", ".schema/mapping.json"}
	if !in.force {
		for _, name := range files {
			if _, err := os.Lstat(in.path(name)); !errors.Is(err, fs.ErrNotExist) {
				return nil, &exitError{exitRefused, fmt.Errorf("%s exists; --force replaces it", in.path(name))}
			}
		}
	}
	if err := in.folders(); err != nil {
		return nil, err
	}
	if err := in.seal(ctx, out); err != nil {
		return nil, err
	}
	for _, name := range files {
		data, err := in.content(name)
		if err == nil {
			err = os.WriteFile(in.path(name), data, 0o644)
		}
		if err != nil {
			return nil, err
		}
		out.Files = append(out.Files, in.path(name))
	}
	out.Secret = in.secret.Reveal()
	return out, nil
}

func (in *initInput) path(name string) string { return filepath.Join(in.Dir, name) }

// sealedIn is where the secrets of a folder are sealed, and what opens them.
func sealedIn(dir string) vault.FileConfig {
	return vault.FileConfig{Path: filepath.Join(dir, "data", "secrets.age"), Identity: filepath.Join(dir, "private", "identity")}
}

// folders makes the folders. Those with secrets keep out of version control by
// themselves.
func (in *initInput) folders() error {
	for _, name := range []string{"mappings", ".schema"} {
		if err := os.MkdirAll(in.path(name), 0o755); err != nil {
			return err
		}
	}
	closed := []string{"data"}
	if in.Vault == "" {
		closed = append(closed, "private")
	}
	for _, name := range closed {
		if err := os.MkdirAll(in.path(name), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(in.path(name+"/.gitignore"), []byte("*\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// seal makes the sealed file, if there is none, and the example client's secret.
func (in *initInput) seal(ctx context.Context, out *initOutput) error {
	if in.Vault != "" && !in.login {
		return nil
	}
	cfg := &config.Config{Secrets: vault.Config{Kind: vault.KindVault, Vault: &vault.ServerConfig{
		Address: in.Vault, Auth: vault.AuthConfig{Method: "approle", RoleID: in.RoleID, SecretID: in.SecretID},
	}}}
	if in.Vault == "" {
		file := sealedIn(in.Dir)
		made := []string{file.Path, file.Identity}
		switch err := vault.Init(file); {
		case err == nil:
			out.Files = append(out.Files, made...)
		case errors.Is(err, fs.ErrExist):
			out.Kept = made
		default:
			return err
		}
		cfg.Secrets = vault.Config{Kind: vault.KindFile, File: &file}
	}
	return withSecrets(cfg, func(s vault.Store) (err error) {
		in.secret, in.SecretHash, err = makeSecret(ctx, s)
		return err
	})
}

// content returns the content of a file.
func (in *initInput) content(name string) ([]byte, error) {
	if schema, ok := strings.CutPrefix(name, ".schema/"); ok {
		return config.Schema(strings.TrimSuffix(schema, ".json"))
	}
	t, err := template.ParseFS(templates, "template/"+filepath.Base(name))
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, in)
	return b.Bytes(), err
}

func (out *initOutput) text(p *printer) {
	for _, f := range out.Files {
		p.line("wrote %s", f)
	}
	for _, f := range out.Kept {
		p.line("kept  %s", f)
	}
	p.line("")
	if out.Secret != "" {
		p.line("The secret of the example client %s, shown this once: %s", out.Client, out.Secret)
		p.line("")
	}
	p.line("Next:")
	step := 0
	say := func(format string, args ...any) {
		step++
		p.line("  %d. %s", step, fmt.Sprintf(format, args...))
	}
	in := out.in
	file := in.path("stint.yaml")
	say("In %s, name your issuer, your MCP server and its client; in %s, its policy.", file, in.path("mappings"))
	switch {
	case in.login:
	case in.Vault != "":
		say("Run deploy/vault/setup.sh; put the role_id it prints into %s, and the secret_id into the file named there.", file)
	default:
		say("Keep a copy of %s elsewhere: without it the secrets are lost.", in.path("private/identity"))
	}
	if in.Redis != "" {
		say("Give Redis the user of deploy/redis.acl, and put the password where %s names it.", file)
	}
	say("%s check --live --config %s", program(), shellQuote(file))
	say("%s serve --config %s", program(), shellQuote(file))
}
