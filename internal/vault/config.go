package vault

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// The kinds of store.
const (
	KindFile  = "file"
	KindVault = "vault"
)

// Config says where secrets are kept.
type Config struct {
	// Kind is vault, or file for a sealed file on one machine.
	Kind string `yaml:"kind" check:"required,oneof=file|vault"`
	// File is the sealed file.
	File *FileConfig `yaml:"file"`
	// Vault is the HashiCorp Vault.
	Vault *ServerConfig `yaml:"vault"`
}

// FileConfig names a sealed file. `stint init` makes both files.
type FileConfig struct {
	// Path is the sealed file. It is rewritten in its folder, and locked by PATH.lock.
	Path string `yaml:"path" check:"required"`
	// Identity is the file with the age identity (X25519) that opens it. Others may
	// not read it. Keep a copy elsewhere: without it the sealed file is lost.
	Identity string `yaml:"identity" check:"required"`
}

// ServerConfig says how to reach a Vault, and where in it Stint has its place.
type ServerConfig struct {
	// Address is the URL of Vault: https, or plain http on a loopback address.
	Address string `yaml:"address" check:"required,https"`
	// Namespace is Vault's namespace, if there is one.
	Namespace string `yaml:"namespace"`
	// Mount is where KV version 2 is mounted. Default: secret.
	Mount string `yaml:"mount"`
	// Prefix is the path in it under which Stint's secrets are. Default: stint.
	Prefix string `yaml:"prefix"`
	// CA is a file of certificates in PEM that Vault's is verified by. Default: the
	// system's.
	CA string `yaml:"ca"`
	// ServerName is what Vault's certificate is for, if not the host of the address.
	ServerName string `yaml:"server_name"`
	// Auth says how to log in.
	Auth AuthConfig `yaml:"auth" check:"required"`
	// TokenRole is the token role by which tokens for single credentials are made.
	// Default: stint.
	TokenRole string `yaml:"token_role"`
	// Timeout bounds a request that reads or writes a secret, up to 1m. Default: 5s.
	Timeout Duration `yaml:"timeout"`
}

// The ways to log in to Vault.
const (
	authAppRole    = "approle"
	authKubernetes = "kubernetes"
	authJWT        = "jwt"
	authToken      = "token"
)

// AuthConfig says how to log in to Vault.
type AuthConfig struct {
	// Method is approle, kubernetes, jwt, or token for a token that something else
	// keeps alive.
	Method string `yaml:"method" check:"required,oneof=approle|kubernetes|jwt|token"`
	// Mount is where the method is mounted. Default: the method's name.
	Mount string `yaml:"mount"`
	// Role is the role to log in as, for kubernetes and jwt.
	Role string `yaml:"role"`
	// RoleID and SecretID are for approle. The secret id is a reference, file:/PATH
	// or env:NAME, and read anew for each login.
	RoleID   string `yaml:"role_id"`
	SecretID string `yaml:"secret_id"`
	// TokenFile holds the token, or the JWT, and is read anew for each login.
	// Default for kubernetes: the service account's.
	TokenFile string `yaml:"token_file"`
}

const serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// Duration is a length of time, written as in 5s or 1m30s.
type Duration time.Duration

// UnmarshalText implements [encoding.TextUnmarshaler]. A length of time is
// positive.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v <= 0 {
		return fmt.Errorf("%q is no length of time: write as in 5s or 1m30s", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Check says what is wrong with the configuration as a whole.
func (c *Config) Check() error {
	switch {
	case c.Kind == KindFile && c.File != nil && c.Vault == nil:
		if c.File.Path == "" || c.File.Identity == "" {
			return errors.New("a sealed file has a path and an identity")
		}
		return nil
	case c.Kind == KindVault && c.Vault != nil && c.File == nil:
		return c.Vault.Check()
	default:
		return errors.New("say kind: file and describe it under file, or kind: vault and describe it under vault")
	}
}

// Check says what is wrong with the configuration of a Vault as a whole.
func (c *ServerConfig) Check() error {
	filled := c.withDefaults()
	if err := checkAddress(filled.Address); err != nil {
		return err
	}
	for _, p := range [][2]string{{"mount", filled.Mount}, {"auth.mount", filled.Auth.Mount}, {"token_role", filled.TokenRole}} {
		if err := checkServerPath(p[1]); err != nil {
			return fmt.Errorf("%s: %w", p[0], err)
		}
	}
	if err := checkPath(filled.Prefix); err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	if t := time.Duration(filled.Timeout); t <= 0 || t > time.Minute {
		return fmt.Errorf("a timeout of %s: more than nothing and at most 1m", t)
	}
	return filled.Auth.Check()
}

// Check says what is wrong with the way to log in as a whole.
func (a *AuthConfig) Check() error {
	file := a.TokenFile
	if a.Method == authKubernetes && file == "" {
		file = serviceAccountToken
	}
	switch {
	case a.Method == authAppRole && a.RoleID != "" && a.Role == "" && a.TokenFile == "":
		return checkOutside(a.SecretID)
	case (a.Method == authKubernetes || a.Method == authJWT) && a.Role != "" && file != "" && a.RoleID == "" && a.SecretID == "":
		return nil
	case a.Method == authToken && a.TokenFile != "" && a.Role == "" && a.RoleID == "" && a.SecretID == "":
		return nil
	}
	return errors.New("approle wants role_id and secret_id, kubernetes wants role, jwt wants role and token_file, token wants token_file, " +
		"and nothing else")
}

func (c ServerConfig) withDefaults() ServerConfig {
	for at, def := range map[*string]string{&c.Mount: "secret", &c.Prefix: "stint", &c.TokenRole: "stint", &c.Auth.Mount: c.Auth.Method} {
		if *at == "" {
			*at = def
		}
	}
	if c.Auth.Method == authKubernetes && c.Auth.TokenFile == "" {
		c.Auth.TokenFile = serviceAccountToken
	}
	if c.Timeout == 0 {
		c.Timeout = Duration(5 * time.Second)
	}
	return c
}

// checkServerPath refuses what is no path in Vault that an administrator or a
// role could mean: mounts may have capitals and dots, but nothing climbs.
func checkServerPath(path string) error {
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || len(path) > maxPath || strings.HasPrefix(name, ".") || strings.Contains(name, "..") ||
			strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
			return fmt.Errorf("%q is no path in Vault that can be used here", path)
		}
	}
	return nil
}

func checkAddress(address string) error {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http":
		return errors.New("address: write https://HOST:PORT")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return errors.New("address: plain http is for loopback addresses; use https")
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
