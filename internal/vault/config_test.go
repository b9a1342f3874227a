package vault_test

import (
	"testing"
	"time"

	"github.com/stint-dev/stint/internal/strictyaml"
	"github.com/stint-dev/stint/internal/vault"
)

func TestConfigurationsThatAreTaken(t *testing.T) {
	for name, text := range map[string]string{
		"a sealed file":                   "kind: file\nfile: {path: /var/lib/stint/secrets.age, identity: /etc/stint/identity}",
		"approle":                         "kind: vault\nvault: {address: 'https://vault.example:8200', auth: {method: approle, role_id: r, secret_id: 'file:/s'}}",
		"kubernetes":                      "kind: vault\nvault: {address: 'https://vault.example:8200/', auth: {method: kubernetes, role: stint}}",
		"jwt":                             "kind: vault\nvault: {address: 'https://v', auth: {method: jwt, mount: ci/jwt, role: stint, token_file: /t}}",
		"a token":                         "kind: vault\nvault: {address: 'http://127.0.0.1:8200', auth: {method: token, token_file: /t}}",
		"everything that can be said":     "kind: vault\nvault: {address: 'https://v:1', namespace: a/b, mount: KV.v2, prefix: apps/stint, ca: /c, server_name: v, auth: {method: token, token_file: /t}, token_role: r, timeout: 1m}",
		"plain http on this very machine": "kind: vault\nvault: {address: 'http://[::1]:8200', auth: {method: token, token_file: /t}}",
	} {
		var c vault.Config
		if err := strictyaml.Decode("stint.yaml", []byte(text), &c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	const auth = ", auth: {method: token, token_file: /t}}"
	for text, says := range map[string]string{
		"kind: file": "stint.yaml:1:1: say kind: file and describe it",
		"kind: file\nvault: {address: 'https://v'" + auth:                                 "say kind: file",
		"kind: file\nfile: {path: /p}":                                                    "identity is missing",
		"kind: file\nfile: {path: /p, identity: /i}\nvault: {address: 'https://v'" + auth: "say kind: file",
		"kind: cloud": "none of file, vault",
		"kind: vault\nvault: {address: 'http://vault.example:8200'" + auth:                                                  "plain http is for loopback",
		"kind: vault\nvault: {address: 'https://u:p@v'" + auth:                                                              "a user",
		"kind: vault\nvault: {address: 'https://v?a=b'" + auth:                                                              "write https://HOST:PORT",
		"kind: vault\nvault: {address: 'unix:///run/vault'" + auth:                                                          "no URL",
		"kind: vault\nvault: {address: 'https://v'}":                                                                        "auth is missing",
		"kind: vault\nvault: {address: 'https://v', prefix: ../x" + auth:                                                    "no path of a secret",
		"kind: vault\nvault: {address: 'https://v', mount: a/../b" + auth:                                                   "no path in Vault",
		"kind: vault\nvault: {address: 'https://v', mount: /a" + auth:                                                       "no path in Vault",
		"kind: vault\nvault: {address: 'https://v', token_role: 'a?b'" + auth:                                               "no path in Vault",
		"kind: vault\nvault: {address: 'https://v', timeout: 2m" + auth:                                                     "at most 1m",
		"kind: vault\nvault: {address: 'https://v', timeout: 5" + auth:                                                      "write as in 5s",
		"kind: vault\nvault: {address: 'https://v', timeout: -5s" + auth:                                                    "write as in 5s",
		"kind: vault\nvault: {address: 'https://v', auth: {method: ldap}}":                                                  "none of approle",
		"kind: vault\nvault: {address: 'https://v', auth: {method: token}}":                                                 "token wants token_file",
		"kind: vault\nvault: {address: 'https://v', auth: {method: jwt, role: r}}":                                          "jwt wants role and token_file",
		"kind: vault\nvault: {address: 'https://v', auth: {method: kubernetes}}":                                            "kubernetes wants role",
		"kind: vault\nvault: {address: 'https://v', auth: {method: approle, role_id: r, secret_id: s}}":                     "a secret is not written here",
		"kind: vault\nvault: {address: 'https://v', auth: {method: approle, role_id: r, secret_id: 'vault:a#b'}}":           "cannot be in it",
		"kind: vault\nvault: {address: 'https://v', auth: {method: approle, role_id: r, secret_id: 'file:/s', role: more}}": "and nothing else",
	} {
		var c vault.Config
		wantText(t, strictyaml.Decode("stint.yaml", []byte(text), &c), says)
	}
}

func TestAConfigurationMadeByHandIsCheckedToo(t *testing.T) {
	ok := vault.AuthConfig{Method: "token", TokenFile: "/t"}
	for name, c := range map[string]vault.Config{
		"nothing":               {},
		"plain http":            {Kind: "vault", Vault: &vault.ServerConfig{Address: "http://192.0.2.1:8200", Auth: ok}},
		"no address":            {Kind: "vault", Vault: &vault.ServerConfig{Auth: ok}},
		"no way to log in":      {Kind: "vault", Vault: &vault.ServerConfig{Address: "https://v"}},
		"a timeout of an hour":  {Kind: "vault", Vault: &vault.ServerConfig{Address: "https://v", Auth: ok, Timeout: vault.Duration(time.Hour)}},
		"a file without a name": {Kind: "file", File: &vault.FileConfig{}},
		"a CA that is no file":  {Kind: "vault", Vault: &vault.ServerConfig{Address: "https://v", Auth: ok, CA: "/none"}},
		"a CA that is no CA":    {Kind: "vault", Vault: &vault.ServerConfig{Address: "https://v", Auth: ok, CA: write(t, "ca", "x")}},
	} {
		if _, _, err := vault.Open(c, new(deps).deps()); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, _, err := vault.Open(sealed(t), vault.Deps{}); err == nil {
		t.Error("no log and no clock: taken")
	}
}

func TestDurationsAreWrittenAsTheyAreRead(t *testing.T) {
	var d vault.Duration
	if err := d.UnmarshalText([]byte("90s")); err != nil {
		t.Fatal(err)
	}
	if text, err := d.MarshalText(); err != nil || string(text) != "1m30s" {
		t.Fatalf("%s, %v", text, err)
	}
}
