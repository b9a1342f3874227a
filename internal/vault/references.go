package vault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/stint-dev/stint/internal/secret"
)

// errLiteral is the answer to a secret that stands where a reference belongs. It
// does not repeat it.
var errLiteral = errors.New("a secret is not written here, but named: file:/PATH, env:NAME or vault:PATH#FIELD")

// Resolver turns references to secrets into the secrets:
//
//	file:/PATH          a file, without one line end at its end. Its group and
//	                    others must not be able to write it.
//	env:NAME            a variable of the environment
//	vault:PATH#FIELD    a field in the store, be it Vault or a sealed file
//
// Without a store the last is refused. A secret that is empty is an error.
type Resolver struct{ Store Store }

// Resolve returns the secret that a reference names. Errors do not repeat what
// may be a secret by mistake. If the store errs, its error is wrapped.
func (r Resolver) Resolve(ctx context.Context, reference string) (secret.String, error) {
	ref, err := parseReference(reference)
	if err != nil {
		return secret.String{}, err
	}
	var s secret.String
	switch ref.kind {
	case "file":
		s, err = readSecretFile(ref.name)
	case "env":
		s = secret.New(os.Getenv(ref.name))
	case "vault":
		s, err = r.field(ctx, ref)
	}
	if err != nil {
		return secret.String{}, err
	}
	if s.Empty() {
		return secret.String{}, fmt.Errorf("%s: there is nothing there", reference)
	}
	return s, nil
}

func (r Resolver) field(ctx context.Context, ref reference) (secret.String, error) {
	if r.Store == nil {
		return secret.String{}, errors.New("this secret is needed before the store is open: name it by file:/PATH or env:NAME")
	}
	f, _, err := r.Store.Read(ctx, ref.name)
	if err != nil {
		return secret.String{}, fmt.Errorf("vault:%s#%s: %w", ref.name, ref.field, err)
	}
	return f[ref.field], nil
}

// CheckReference says what is wrong with a reference by its form.
func CheckReference(reference string) error {
	_, err := parseReference(reference)
	return err
}

// checkOutside is [CheckReference] for a secret that opens the store.
func checkOutside(text string) error {
	ref, err := parseReference(text)
	if err == nil && ref.kind == "vault" {
		err = errors.New("what opens the store cannot be in it: name it by file:/PATH or env:NAME")
	}
	return err
}

type reference struct{ kind, name, field string }

func parseReference(text string) (reference, error) {
	kind, name, _ := strings.Cut(text, ":")
	ref := reference{kind: kind, name: name}
	switch {
	case kind == "file" && strings.HasPrefix(name, "/") && !strings.ContainsRune(name, 0):
		return ref, nil
	case kind == "env" && isName(name):
		return ref, nil
	case kind == "vault":
		ref.name, ref.field, _ = strings.Cut(name, "#")
		if checkPath(ref.name) == nil && ref.field != "" && len(ref.field) <= maxName {
			return ref, nil
		}
	}
	return reference{}, errLiteral
}

// isName reports whether s is the name of a variable.
func isName(s string) bool {
	return s != "" && s[0] > '9' && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// readSecretFile reads a secret from a file, without one line end at its end.
// Files that others may read are taken, as orchestrators mount them so; files
// that others may write are not.
func readSecretFile(path string) (secret.String, error) {
	data, err := readPrivate(path, 0o022)
	if err != nil {
		return secret.String{}, err
	}
	if len(data) > MaxSize {
		return secret.String{}, fmt.Errorf("%s has more than %d bytes", path, MaxSize)
	}
	text, cut := strings.CutSuffix(string(data), "\n")
	if cut {
		text = strings.TrimSuffix(text, "\r")
	}
	return secret.New(text), nil
}
