package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/internal/secret"
)

const aboutAsking = `

Tokens, secrets and keys are named and not written: file:/PATH, env:NAME, or, where a
server's configuration is, vault:PATH#FIELD; and - is standard input. What stands on a
command line is seen by every user of the machine (ps), and kept by the shell's history.`

// The variables that say what flags do not.
const (
	envIssuer = "STINT_ISSUER"
	envClient = "STINT_CLIENT"
	envSecret = "STINT_CLIENT_SECRET"
)

// maxInput bounds what is read of a file or of standard input, in bytes: more than a
// server takes.
const maxInput = 64 << 10

// asker is how a shell asks a Stint: as which client, for whom, and for what.
type asker struct {
	g                           *globals
	issuer, client              string
	secret, key, keyID          string // references to the two, and the key's id
	self                        bool
	subject, subjectType        string // a reference, or -
	actor, actorType            string
	resources, audiences        []string
	scope, details, requestType string
	show                        bool
}

// tokenTypes are what types of tokens are called here.
var tokenTypes = map[string]string{
	"access_token": client.TypeAccessToken, "id_token": client.TypeIDToken, "jwt": client.TypeJWT, "credential": client.CredentialType,
}

func (a *asker) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&a.issuer, "issuer", os.Getenv(envIssuer), "the `URL` of Stint, which is its issuer (or "+envIssuer+")")
	f.StringVar(&a.client, "client", os.Getenv(envClient), "the client that asks, by its `id` (or "+envClient+")")
	f.StringVar(&a.secret, "client-secret", "", "a `reference` to its secret; absent: "+envSecret)
	f.StringVar(&a.key, "client-key", "", "a `reference` to its private key in place of a secret (private_key_jwt): PEM, ECDSA on P-256 or Ed25519")
	f.StringVar(&a.keyID, "client-key-id", "", "the `kid` of that key")
	f.BoolVar(&a.self, "self", false, "the client acts for itself (client_credentials)")
	f.StringVar(&a.subject, "subject-token", "", "a `reference` to the token of whom it acts for; - reads standard input")
	f.StringVar(&a.subjectType, "subject-token-type", "access_token", "its `type`: access_token, id_token, jwt or a URI")
	f.StringVar(&a.actor, "actor-token", "", "a `reference` to the token of who is to act, if that is another than the client; - reads standard input")
	f.StringVar(&a.actorType, "actor-token-type", "access_token", "its `type`: access_token, id_token, jwt or a URI")
	f.StringArrayVar(&a.resources, "resource", nil, "what is asked for, by its `URI` (repeatable)")
	f.StringArrayVar(&a.audiences, "audience", nil, "what is asked for, by its `name`, such as a provider's (repeatable)")
	f.StringVar(&a.scope, "scope", "", "the `scopes` that are asked for, separated by spaces")
	f.StringVar(&a.details, "details", "", "a `file` with authorization_details, a JSON array; - reads standard input")
	f.BoolVar(&a.show, "show", false, "print secrets on a terminal, too")
	types := []string{"access_token", "id_token", "jwt"}
	for _, flag := range []string{"subject-token-type", "actor-token-type"} {
		_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(types, cobra.ShellCompDirectiveNoFileComp))
	}
	_ = c.RegisterFlagCompletionFunc("client", a.g.completed(clientsOf))
	_ = c.RegisterFlagCompletionFunc("resource", a.g.completed(targetsFor))
	_ = c.RegisterFlagCompletionFunc("audience", a.g.completed(targetsFor))
	c.MarkFlagsMutuallyExclusive("client-secret", "client-key")
	c.MarkFlagsMutuallyExclusive("self", "subject-token")
}

// check says what is wrong with the command line.
func (a *asker) check() error {
	inputs := 0
	for _, from := range []string{a.subject, a.actor, a.details} {
		if from == "-" {
			inputs++
		}
	}
	switch {
	case a.issuer == "":
		return usage("say which Stint: --issuer, or %s", envIssuer)
	case a.client == "":
		return usage("say as which client: --client, or %s", envClient)
	case a.secret == "" && a.key == "" && os.Getenv(envSecret) == "":
		return usage("say how the client authenticates: --client-secret, --client-key, or %s", envSecret)
	case a.keyID != "" && a.key == "":
		return usage("--client-key-id goes with --client-key")
	case a.subject == "" && !a.self:
		return usage("say for whom: --subject-token, or --self for the client itself")
	case a.actor != "" && a.self:
		return usage("--actor-token goes with --subject-token: a client that acts for itself has no other actor")
	case inputs > 1:
		return usage("standard input is read once: one of --subject-token, --actor-token and --details can be -")
	case len(a.resources)+len(a.audiences) == 0:
		return usage("say what for: --resource, or --audience")
	}
	return nil
}

// prepare makes the client of the command line, and its exchange. What it reads is
// read here. Errors are of the command line, or say what cannot be read.
func (a *asker) prepare(ctx context.Context, stdin io.Reader) (_ *client.Client, x client.Exchange, err error) {
	if err := a.check(); err != nil {
		return nil, x, err
	}
	cfg := client.Config{Issuer: strings.TrimSuffix(a.issuer, "/"), ID: a.client, KeyID: a.keyID}
	if err := a.credentials(ctx, &cfg); err != nil {
		return nil, x, err
	}
	x.Resources, x.Audiences, x.Scopes = a.resources, a.audiences, strings.Fields(a.scope)
	x.SubjectType, x.ActorType, x.RequestedType = typeOf(a.subjectType), typeOf(a.actorType), typeOf(a.requestType)
	for flag, t := range map[string]struct {
		from string
		into *client.Secret
	}{"subject-token": {a.subject, &x.Subject}, "actor-token": {a.actor, &x.Actor}} {
		s, err := a.token(ctx, flag, t.from, stdin)
		if err != nil {
			return nil, x, err
		}
		*t.into = client.NewSecret(s.Reveal())
	}
	if x.Details, err = a.readDetails(stdin); err != nil {
		return nil, x, err
	}
	c, err := client.New(cfg)
	if err != nil {
		return nil, x, usage("%s", strings.TrimPrefix(err.Error(), "client: "))
	}
	return c, x, nil
}

// credentials reads the client's secret, or its key.
func (a *asker) credentials(ctx context.Context, cfg *client.Config) error {
	if a.key != "" {
		key, err := a.g.referred(ctx, "client-key", a.key)
		if err != nil {
			return err
		}
		if cfg.Key, err = signer(key); err != nil {
			return usage("--client-key: %v", err)
		}
		return nil
	}
	from := a.secret
	if from == "" {
		from = "env:" + envSecret
	}
	s, err := a.g.referred(ctx, "client-secret", from)
	cfg.Secret = client.NewSecret(s.Reveal())
	return err
}

// signer reads a private key in PEM: PKCS #8, or SEC 1. Errors do not quote it.
func signer(text secret.String) (crypto.Signer, error) {
	for rest := []byte(text.Reveal()); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("there is no private key in PEM in it: openssl genpkey -algorithm ed25519 makes one")
		}
		switch block.Type {
		case "EC PRIVATE KEY":
			key, err := x509.ParseECPrivateKey(block.Bytes)
			if err != nil {
				return nil, errors.New("the key cannot be read")
			}
			return key, nil
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if s, ok := key.(crypto.Signer); ok && err == nil {
				return s, nil
			}
			return nil, errors.New("the key cannot be read, or cannot sign")
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the key is encrypted; it is wanted in clear, in a file that only you can read")
		}
	}
}

// token reads a token that a flag refers to; none if it is absent.
func (a *asker) token(ctx context.Context, flag, from string, stdin io.Reader) (secret.String, error) {
	if from != "-" {
		return a.g.referred(ctx, flag, from)
	}
	data, err := readAll(stdin)
	s := secret.New(string(bytes.TrimSpace(data)))
	if err == nil && s.Empty() {
		err = errors.New("there is nothing on standard input: did the command before this one fail?")
	}
	return s, wrapFlag(flag, err)
}

func (a *asker) readDetails(stdin io.Reader) (json.RawMessage, error) {
	if a.details == "" {
		return nil, nil
	}
	in := stdin
	if a.details != "-" {
		f, err := os.Open(a.details)
		if err != nil {
			return nil, wrapFlag("details", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	data, err := readAll(in)
	if err != nil {
		return nil, wrapFlag("details", err)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, usage("--details: a JSON array is wanted (RFC 9396): %v", err)
	}
	return data, nil
}

func readAll(in io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err == nil && len(data) > maxInput {
		err = fmt.Errorf("it has more than %d bytes", maxInput)
	}
	return data, err
}

// typeOf is the URI of a type of tokens.
func typeOf(name string) string {
	if uri, ok := tokenTypes[name]; ok {
		return uri
	}
	return name
}

// hidden are the variables that held what this program asks with: who gets what was
// vended does not get what it was vended for.
func (a *asker) hidden() []string {
	out := []string{envSecret}
	for _, reference := range []string{a.secret, a.key, a.subject, a.actor} {
		if name, ok := strings.CutPrefix(reference, "env:"); ok && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// forPrograms refuses to print secrets where people look at them.
func (a *asker) forPrograms(w io.Writer) error {
	if a.show || !isTerminal(w) {
		return nil
	}
	return usage("this prints secrets, and standard output is a terminal, which keeps them: hand it to a program, or say --show")
}

// isTerminal reports whether something is written to a terminal: nothing else has a
// size in lines.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil
}
