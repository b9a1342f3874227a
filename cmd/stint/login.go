package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/internal/config"
)

// loginTime is how long somebody may take to sign in.
const loginTime = 10 * time.Minute

func newLogin(g *globals) *cobra.Command {
	var name, ca string
	var noBrowser bool
	c := &cobra.Command{
		Use: "login [ISSUER]", Short: "Sign in to an installation as an administrator",
		Long: `Signs in to an installation with your organisation's account, in a browser, and keeps a
token for its admin API, for you alone, as a context. ISSUER is the installation's URL;
without one it is that of the current context, or of the configuration on this machine.

The browser asks whether to let the command line in, and shows a code that is shown here
as well. The token descends from the browser's sign-in: signing out there ends it too. It
is valid for as long as the installation says (admin.sign_in.lifetime), and cannot do more
than the mapping of the admin API gives you.`,
		Example: `  stint login https://stint.example
  stint login https://stint.test.example --name test --ca ca.pem
  stint login --no-browser`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return g.login(c, args, name, ca, !noBrowser)
		},
	}
	c.Flags().StringVar(&name, "name", "", "what to call the context (default: its host)")
	c.Flags().StringVar(&ca, "ca", "", "a `file` of certificates in PEM by which the installation's own is verified")
	c.Flags().BoolVar(&noBrowser, "no-browser", false, "only print the address that a browser on this machine has to open")
	_ = c.RegisterFlagCompletionFunc("name", completeContexts)
	c.ValidArgsFunction = cobra.NoFileCompletions
	return c
}

// login signs in to an installation, and keeps it as a context of this name.
func (g *globals) login(c *cobra.Command, args []string, name, ca string, browser bool) error {
	known, err := readContexts()
	if err != nil {
		return err
	}
	in, err := g.whereTo(known, args)
	if err != nil {
		return err
	}
	if ca != "" {
		if in.CA, err = filepath.Abs(ca); err != nil {
			return err
		}
	}
	open := browse
	if !browser {
		open = func(string) error { return nil }
	}
	if err := in.signIn(c.Context(), c.ErrOrStderr(), open, "/login"); err != nil {
		return err
	}
	u, err := url.Parse(in.Issuer)
	if err != nil {
		return err
	}
	name = cmp.Or(name, g.context, known.nameOf(in.Issuer), u.Host)
	known.Known[name], known.Current = in, name
	if err := known.write(); err != nil {
		return err
	}
	shown := shownContext{name, true, in.Issuer, in.Scope, in.Expires, true}
	return g.print(c, shown, func(p *printer) {
		p.line("signed in to %s, as the context %s, until %s", in.Issuer, name, in.Expires.Local().Format(time.DateTime))
		p.line("you may: %s", in.Scope)
	})
}

// nameOf returns what an installation is called already.
func (c *contexts) nameOf(issuer string) string {
	if c.Known[c.Current].Issuer == issuer {
		return c.Current
	}
	for name, i := range c.Known {
		if i.Issuer == issuer {
			return name
		}
	}
	return ""
}

// whereTo is the installation that somebody wants to sign in to.
func (g *globals) whereTo(known *contexts, args []string) (installation, error) {
	switch {
	case len(args) == 1:
		in := installation{Issuer: strings.TrimSuffix(args[0], "/")}
		if name := known.nameOf(in.Issuer); name != "" {
			in.CA = known.Known[name].CA
		}
		return in, nil
	case g.context != "":
		in, err := known.find(g.context)
		return installation{Issuer: in.Issuer, CA: in.CA}, err
	}
	if cfg, err := config.Load(g.config); err == nil {
		if cfg.Admin == nil {
			return installation{}, &exitError{exitRefused, fmt.Errorf("%s names no administrators (admin): nobody can sign in", g.config)}
		}
		return installation{Issuer: cfg.Issuer}, nil
	}
	if in, ok := known.Known[known.Current]; ok {
		return installation{Issuer: in.Issuer, CA: in.CA}, nil
	}
	return installation{}, usage("say where: stint login https://HOST")
}

// signIn has somebody sign in at a door of the installation, /login or /connect, and keeps
// the token.
func (i *installation) signIn(ctx context.Context, say io.Writer, open func(string) error, door string) error {
	client, err := i.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, loginTime)
	defer cancel()
	verifier, state := rand.Text()+rand.Text(), rand.Text()
	sum := sha256.Sum256([]byte(verifier))
	challenge := base64.RawURLEncoding.EncodeToString(sum[:])
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	codes := make(chan string, 1)
	failures := make(chan error, 1)
	back := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: cameBack(state, codes, failures)}
	go func() { _ = back.Serve(l) }()
	defer func() { _ = back.Close() }()
	address := i.Issuer + door + "/cli?" + url.Values{
		"port": {strconv.Itoa(l.Addr().(*net.TCPAddr).Port)}, "code_challenge": {challenge}, "state": {state},
	}.Encode()
	_, _ = fmt.Fprintf(say, "In a browser on this machine, open\n\n  %s\n\nand let the command line in if it shows the code %s\n", address, api.HandoverCode(challenge))
	if err := open(address); err != nil {
		_, _ = fmt.Fprintf(say, "(no browser could be opened: %v)\n", err)
	}
	select {
	case code := <-codes:
		// What the browser is told is sent before the server ends.
		stop, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer done()
		_ = back.Shutdown(stop)
		return i.redeem(ctx, client, code, verifier, door)
	case err := <-failures:
		return err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return &exitError{exitRefused, errors.New("nobody has signed in for ten minutes")}
		}
		return ctx.Err()
	}
}

// cameBack answers the browser when it comes back from the installation.
func cameBack(state string, codes chan<- string, failures chan<- error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-store")
		switch {
		case r.URL.Path != "/" || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1:
			http.Error(w, "nobody waits here for this", http.StatusNotFound)
		case q.Get("code") == "":
			_, _ = io.WriteString(w, "The command line was not let in. You can close this page.\n")
			select {
			case failures <- &exitError{exitRefused, errors.New("the command line was not let in")}:
			default:
			}
		default:
			_, _ = io.WriteString(w, "The command line is signed in. You can close this page.\n")
			select {
			case codes <- q.Get("code"):
			default:
			}
		}
	})
}

// redeem exchanges the code for a token.
func (i *installation) redeem(ctx context.Context, client *http.Client, code, verifier, door string) error {
	form := url.Values{"code": {code}, "code_verifier": {verifier}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, i.Issuer+door+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the installation: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	var out struct {
		Token       string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
		Scope       string `json:"scope"`
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&out); err != nil {
		return fmt.Errorf("the answer of %s is none of Stint: status %d", i.Issuer, resp.StatusCode)
	}
	if resp.StatusCode != http.StatusOK || out.Token == "" {
		return &exitError{exitRefused, fmt.Errorf("%s answered %d %s: %s", i.Issuer, resp.StatusCode, out.Error, out.Description)}
	}
	i.Token, i.Scope, i.Expires = out.Token, out.Scope, time.Now().Add(time.Duration(out.ExpiresIn)*time.Second).Truncate(time.Second)
	return nil
}

// browse opens an address in the user's browser.
func browse(address string) error {
	name, args := "xdg-open", []string{address}
	switch runtime.GOOS {
	case "darwin":
		name = "open"
	case "windows":
		name, args = "rundll32", []string{"url.dll,FileProtocolHandler", address}
	}
	return exec.Command(name, args...).Start() //nolint:gosec,noctx // the program is ours to name, and outlives this one
}

func newLogout(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "End the token that stint login got",
		Long: `Ends the token of --context, or of the current context, at the installation, and forgets
it. It is forgotten also where the installation cannot be reached: then it lives there
until it runs out, and this exits with 1.`,
		Example: "  stint logout\n  stint logout --context test",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			known, err := readContexts()
			if err != nil {
				return err
			}
			name := cmp.Or(g.context, known.Current)
			if name == "" {
				return usage("you are signed in nowhere")
			}
			in, err := known.find(name)
			if err != nil {
				return err
			}
			api, err := in.api()
			if err == nil {
				err = api.call(c.Context(), http.MethodPost, "/login/end", nil, nil)
			}
			if exitCodeOf(err) == exitRefused { // it has ended already
				err = nil
			}
			in.Token, in.Scope, in.Expires = "", "", time.Time{}
			known.Known[name] = in
			return errors.Join(known.write(), err)
		},
	}
}
