package main

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stint-dev/stint/internal/vault"
)

// findSecrets looks for the secrets on this machine that the server reads when it
// starts: in the sealed file, which it opens for that, in files and in the
// environment. What Vault holds is not asked for. Errors never hold a value.
func (l *liveCheck) findSecrets(ctx context.Context) (wrong []error) {
	failf := func(format string, args ...any) { wrong = append(wrong, l.cfg.Errorf(format, args...)) }
	if l.cfg.Secrets.Kind == vault.KindFile {
		if err := l.openFile(); err != nil {
			key, text := "path", err.Error()
			if of, found := strings.CutPrefix(text, "identity"); found {
				key, text = "identity", strings.TrimLeft(of, ": ")
			}
			failf("secrets: file: %s: %s", key, text)
		}
	}
	named := l.named()
	for _, key := range slices.Sorted(maps.Keys(named)) {
		ref := named[key]
		if ref == "" || strings.HasPrefix(ref, "vault:") && (l.cfg.Secrets.Kind != vault.KindFile || l.secrets == nil) {
			continue
		}
		if _, err := l.resolve(ctx, ref); err != nil {
			failf("%s: %v", key, err)
		}
	}
	return wrong
}

// named returns the references to secrets that the server needs to start, by their
// keys in the configuration. Those of providers are needed later.
func (l *liveCheck) named() map[string]string {
	out := make(map[string]string)
	if r := l.cfg.Store.Redis; r != nil {
		out["store: redis: password"] = r.Password
		if r.TLS != nil {
			out["store: redis: tls: ca"], out["store: redis: tls: certificate"], out["store: redis: tls: key"] = r.TLS.CA, r.TLS.Certificate, r.TLS.Key
		}
	}
	if v := l.cfg.Secrets.Vault; v != nil {
		out["secrets: vault: auth: secret_id"] = v.Auth.SecretID
		if v.Auth.TokenFile != "" {
			path, err := filepath.Abs(l.cfg.Path(v.Auth.TokenFile))
			if err == nil { // else there is no folder to begin with
				out["secrets: vault: auth: token_file"] = "file:" + path
			}
		}
	}
	if a := l.cfg.Admin; a != nil {
		out["admin: sign_in: client_secret"] = a.SignIn.ClientSecret
	}
	if c := l.cfg.Connect; c != nil && c.SignIn != nil {
		out["connect: sign_in: client_secret"] = c.SignIn.ClientSecret
	}
	if t := l.cfg.Telemetry; t != nil {
		for name, ref := range t.Headers {
			out["telemetry: headers: "+name] = ref
		}
	}
	return out
}

// openFile opens the sealed file to read it, as it is: beside a server that has
// it open, and without a lock that would be left behind.
func (l *liveCheck) openFile() (err error) {
	l.secrets, _, err = vault.Open(inFolder(l.cfg), vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now, ReadOnly: true})
	return err
}

// openVault prepares to ask Vault, which is asked nothing yet.
func (l *liveCheck) openVault() (err error) {
	l.secrets, l.engine, err = vault.Open(inFolder(l.cfg), vault.Deps{Log: slog.New(slog.DiscardHandler), Now: time.Now})
	return err
}
