package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/vault"
)

// maxSocketPath is how long the path of a Unix socket may be, on the system that
// takes least.
const maxSocketPath = 100

// prepare makes the folder and decides who is where, or reads it from a folder that
// holds a sandbox already.
func (s *sandbox) prepare(ctx context.Context) (again bool, err error) {
	if s.Dir, err = filepath.Abs(s.opts.Dir); err != nil {
		return false, err
	}
	s.Config, s.Env = filepath.Join(s.Dir, theConfig), filepath.Join(s.Dir, sandboxEnv)
	if len(s.socket()) > maxSocketPath {
		return false, usage("%s is too long a path for the local socket; choose a shorter one", s.Dir)
	}
	if again, err = s.read(); err != nil {
		return false, err
	}
	if again && s.opts.SamePort && s.opts.Port != 0 && s.StintAddress != address(s.opts.Port) {
		return false, usage("--port: the sandbox in %s is at %s, and stays there: leave --port out, or choose another --dir", s.Dir, s.StintAddress)
	}
	if !again {
		if err := s.place(); err != nil {
			return false, err
		}
	}
	if err := s.findPostgres(ctx, again); err != nil {
		return false, err
	}
	if err := s.checkPorts(); err != nil {
		return false, err
	}
	// PostgreSQL runs as another user where this is root's, and has to get through.
	return again, os.MkdirAll(filepath.Join(s.Dir, "mappings"), 0o711)
}

// place gives everybody a port.
func (s *sandbox) place() error {
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return usage("%s holds %s, and no sandbox: choose a folder that is empty or not there", s.Dir, entries[0].Name())
	}
	ports := []int{s.opts.Port, s.opts.Port + 1, s.opts.Port + 2, s.opts.Port + 3, s.opts.Port + 4, s.opts.Port + 5}
	if s.opts.Port == 0 {
		if ports, err = freePorts(len(ports)); err != nil {
			return err
		}
	}
	s.Stint, s.IdP = "http://"+address(ports[0]), "http://"+address(ports[1])
	s.MCP, s.API = "http://"+address(ports[2])+"/mcp", "http://"+address(ports[3])
	s.OpsAddress, s.Warehouse = address(ports[4]), ports[5]
	s.AdminPassword = randomSecret()
	s.addresses()
	return nil
}

func (s *sandbox) addresses() {
	s.StintAddress, s.idpAddress, s.mcpAddress, s.apiAddress = hostOf(s.Stint), hostOf(s.IdP), hostOf(s.MCP), hostOf(s.API)
}

// findPostgres finds the programs, or says why there is no database.
func (s *sandbox) findPostgres(ctx context.Context, again bool) (err error) {
	if again && s.Warehouse == 0 {
		s.without = "this sandbox was made without"
		return nil
	}
	if !again && s.opts.Postgres == postgresOff {
		s.Warehouse, s.without = 0, "as was asked for"
		return nil
	}
	s.postgresBin, s.postgresVersion, err = sample.FindPostgres(ctx)
	switch {
	case errors.Is(err, sample.ErrNoPostgres) && !again && s.opts.Postgres == postgresAuto:
		s.Warehouse, s.without = 0, err.Error()
		return nil
	case err != nil:
		return fmt.Errorf("%w: `make demo-postgres` installs it, and --postgres off goes without", err)
	}
	return nil
}

// write makes the secrets and the files, as an administrator would.
func (s *sandbox) write(ctx context.Context) error {
	for _, name := range []string{"data", "private"} {
		if err := os.MkdirAll(filepath.Join(s.Dir, name), 0o700); err != nil {
			return err
		}
	}
	if err := vault.Init(sealedIn(s.Dir)); err != nil { // as `stint init` does
		return err
	}
	for _, c := range []struct {
		made *secret.String
		hash *string
	}{{&s.DesktopSecret, &s.DesktopHash}, {&s.MCPSecret, &s.MCPHash}, {&s.APISecret, &s.APIHash}} {
		made, hash, err := newSecret(ctx, s.bare()) // as `stint clients add` does
		if err != nil {
			return err
		}
		*c.made, *c.hash = made, hash
	}
	for _, f := range []struct {
		name, to string
		mode     fs.FileMode
	}{
		{"orders-mcp.yaml", "mappings/orders-mcp.yaml", 0o644}, {"orders-api.yaml", "mappings/orders-api.yaml", 0o644},
		{"admin.yaml", "mappings/stint.yaml", 0o644},
		{"stint.yaml", theConfig, 0o644}, {"env", sandboxEnv, 0o600}, // what is last says that all are there
	} {
		if err := s.writeFile(f.name, filepath.Join(s.Dir, f.to), f.mode); err != nil {
			return err
		}
	}
	return nil
}

func (s *sandbox) writeFile(name, path string, mode fs.FileMode) error {
	text, err := sandboxFiles.ReadFile("sandbox/" + name)
	if err != nil {
		return err
	}
	t, err := template.New(name).Option("missingkey=error").Funcs(template.FuncMap{"quote": shellQuote}).Parse(string(text))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, s.layout); err != nil {
		return err
	}
	return os.WriteFile(path, out.Bytes(), mode)
}

// read takes over the sandbox that is in the folder, if there is one.
func (s *sandbox) read() (found bool, err error) {
	data, err := os.ReadFile(s.Env)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	values := make(map[string]string)
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok {
			values[strings.TrimPrefix(name, "export ")] = value
		}
	}
	s.Stint, s.IdP, s.MCP, s.API = values["STINT"], values["IDP"], values["MCP"], values["API"]
	s.OpsAddress = hostOf(values["OPS"])
	s.addresses()
	for _, a := range []string{s.StintAddress, s.idpAddress, s.mcpAddress, s.apiAddress, s.OpsAddress} {
		if a == "" {
			return false, fmt.Errorf("%s is no file of a sandbox", s.Env)
		}
	}
	if s.Warehouse, err = strconv.Atoi(values["WAREHOUSE_PORT"]); err != nil {
		return false, fmt.Errorf("%s is no file of a sandbox", s.Env)
	}
	s.DesktopSecret, s.MCPSecret = secret.New(values["DESKTOP_SECRET"]), secret.New(values["ORDERS_MCP_SECRET"])
	s.APISecret, s.AdminPassword = secret.New(values["ORDERS_API_SECRET"]), secret.New(values["WAREHOUSE_ADMIN_PASSWORD"])
	return true, nil
}

// temporary makes a folder for a sandbox that others can reach into and not look
// at: PostgreSQL runs as another user where this is root's.
func temporary(prefix string) (string, error) {
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o711)
}

func randomSecret() secret.String { return secret.New(rand.Text()) }

// shellQuote writes a text so that a shell reads it as one word.
func shellQuote(text string) string {
	if text != "" && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-:=@%+,") == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
