package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/gateway"
	"github.com/stint-dev/stint/internal/outbound"
)

func newCall(g *globals) *cobra.Command {
	a := &calling{asker: asker{g: g}}
	c := &cobra.Command{
		Use: "call [flags] PROVIDER URL", Short: "Make a request with a credential that stays at Stint",
		Long: `Asks a Stint, as one of its clients, for what a provider lends without handing it out,
such as an API key; sends one request through Stint, which puts the credential in; prints
the body of the answer; and gives back what it was lent. What the credential may be used
for is asked for by --scope and --details, as stint vend does it.

Of the headers those get through that an API needs, such as Content-Type, Accept and
If-Match, and those that the provider's settings name. A redirect is not followed.` + aboutAsking + `

It exits with 0 if the upstream answered with a status below 400, with 1 if it answered
with another or could not be asked, with 3 if Stint refused, and otherwise like stint
exchange.`,
		Example: `  stint call --issuer http://localhost:8080 --client notes-mcp --client-secret env:NOTES_SECRET --self \
    --scope weather:read weather https://api.weather.example/v1/stations/7
  stint call --self --scope weather:write -X PUT -H 'Content-Type: application/json' -d @station.json \
    weather https://api.weather.example/v1/stations/7
  stint call --subject-token file:/run/user/call.jwt --scope weather:read -i weather 'https://api.weather.example/v1/stations?near=7'`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error { return a.run(c, args[0], args[1]) },
	}
	a.flags(c)
	f := c.Flags()
	f.StringVarP(&a.method, "request", "X", "", "the `method`; absent: GET, or POST with --data")
	f.StringArrayVarP(&a.headers, "header", "H", nil, "a `header` of the request, NAME: VALUE (repeatable)")
	f.StringVarP(&a.data, "data", "d", "", "the body: a `text`, @FILE, or @- for standard input")
	f.BoolVarP(&a.include, "include", "i", false, "print status and headers before the body")
	c.ValidArgsFunction = g.completed(targetsFor)
	return c
}

// calling is what `stint call` was asked for.
type calling struct {
	asker
	method, data string
	headers      []string
	include      bool
}

// maxBody bounds a body that is sent, in bytes: more than a server takes.
const maxBody = 2 << 20

func (a *calling) run(c *cobra.Command, provider, target string) error {
	u, err := url.Parse(target)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.Fragment != "" {
		return usage("URL: an address such as https://api.example/v1/things is wanted")
	}
	a.audiences = append(a.audiences, provider)
	req, err := a.request(c, u)
	if err != nil {
		return err
	}
	asks, x, err := a.prepare(c.Context(), c.InOrStdin())
	if err != nil {
		return err
	}
	got, err := asks.Exchange(c.Context(), x)
	if err != nil {
		return a.said(err)
	}
	err = a.send(c, got, target, req)
	if kept := giveBack(asks, got); kept != nil {
		c.PrintErrln("stint:", strings.ReplaceAll(kept.Error(), "\n", "\nstint: "))
	}
	return err
}

// request makes what is to be sent, but for where to.
func (a *calling) request(c *cobra.Command, u *url.URL) (*http.Request, error) {
	var body []byte
	if a.data != "" {
		var err error
		if body, err = a.body(c.InOrStdin()); err != nil {
			return nil, err
		}
	}
	method := a.method
	switch {
	case method == "" && a.data != "":
		method = http.MethodPost
	case method == "":
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(c.Context(), method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, usage("--request: %q is no method", method)
	}
	req.Header.Set("Accept", "*/*")
	if a.data != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, h := range a.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || strings.EqualFold(name, "Authorization") {
			return nil, usage("--header: NAME: VALUE is wanted, and Authorization is not for you to set")
		}
		req.Header.Set(name, strings.TrimSpace(value))
	}
	return req, nil
}

func (a *calling) body(stdin io.Reader) ([]byte, error) {
	name, file := strings.CutPrefix(a.data, "@")
	if !file {
		return []byte(a.data), nil
	}
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, wrapFlag("data", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	} else if slices.Contains([]string{a.subject, a.actor, a.details}, "-") {
		return nil, usage("standard input is read once: one of --data, --subject-token, --actor-token and --details can be -")
	}
	data, err := io.ReadAll(io.LimitReader(in, maxBody+1))
	if err == nil && len(data) > maxBody {
		err = fmt.Errorf("it has more than %d bytes", maxBody)
	}
	return data, wrapFlag("data", err)
}

// send sends the request through Stint, and prints the answer.
func (a *calling) send(c *cobra.Command, got *client.Credential, target string, req *http.Request) error {
	var answer struct {
		Call string `json:"call"`
	}
	if err := json.Unmarshal([]byte(got.Answer().Reveal()), &answer); err != nil {
		return err
	}
	issuer, err := url.Parse(strings.TrimSuffix(a.issuer, "/"))
	// The token goes to whom it came from, and nobody else.
	if err != nil || !strings.HasPrefix(answer.Call, issuer.String()+"/call/") {
		return &exitError{exitRefused, errors.New("this provider hands its credentials out: stint vend runs a command with one")}
	}
	// As it was typed: what has been parsed may be written in another way.
	_, rest, _ := strings.Cut(target, "://")
	if at := strings.IndexAny(rest, "/?"); at < 0 || rest[at] == '?' {
		rest = strings.Replace(rest+"?", "?", "/?", 1)
		rest = strings.TrimSuffix(rest, "?")
	}
	if req.URL, err = url.Parse(answer.Call + rest); err != nil {
		return err
	}
	req.Host = ""
	req.Header.Set("Authorization", "Bearer "+got.Token.Reveal())
	resp, err := outbound.New(outbound.Policy{Hosts: []string{issuer.Hostname()}, Timeout: returnTime * 2}).Do(req)
	if e := (*url.Error)(nil); errors.As(err, &e) {
		err = e.Err
	}
	if err != nil {
		return fmt.Errorf("ask through Stint: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if resp.Header.Get(gateway.LeaseHeader) == "" {
		return notMade(resp, body)
	}
	return a.print(c.OutOrStdout(), resp, body)
}

// notMade is the error for a request that Stint did not make, or whose answer it kept.
func notMade(resp *http.Response, body []byte) error {
	var p struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
		URL         string `json:"url"`
	}
	_ = json.Unmarshal(body, &p) // a proxy has other words
	text := harmless(strings.TrimSuffix(fmt.Sprintf("%d %s: %s", resp.StatusCode, p.Error, p.Description), ": "))
	switch {
	case p.URL != "":
		return byPerson(text, "the user has to link an account", p.URL)
	case resp.StatusCode < http.StatusInternalServerError && resp.StatusCode != http.StatusTooManyRequests:
		return &exitError{exitRefused, errors.New("refused: " + text)}
	}
	return errors.New(text)
}

// print prints an answer: as it is for programs, and for people without what a terminal
// may obey.
func (a *calling) print(w io.Writer, resp *http.Response, body []byte) error {
	var b bytes.Buffer
	if a.include {
		fmt.Fprintf(&b, "%s %d\n", resp.Proto, resp.StatusCode)
		_ = resp.Header.Write(&b)
		b.WriteString("\n")
	}
	b.Write(body)
	out := b.Bytes()
	if isTerminal(w) {
		out = bytes.Map(func(r rune) rune {
			if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
				return '?'
			}
			return r
		}, out)
	}
	if _, err := w.Write(out); err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("the upstream answered with %d", resp.StatusCode)
	}
	return nil
}
