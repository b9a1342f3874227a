package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/storage"
	"github.com/chromedp/chromedp"

	"github.com/stint-dev/stint/api/adminapi"

	"github.com/stint-dev/stint/internal/sample"
)

// screenshots is where the pages are kept as pictures.
const screenshots = "../../build/screenshots"

// browser is a real one, without scripts: no page of ours needs any.
type browser struct {
	*testing.T
	ctx context.Context
}

// newBrowser starts Chromium, or skips the test where there is none and none has to be.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	var found string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			found = path
			break
		}
	}
	if found == "" {
		if os.Getenv("STINT_REQUIRE_SERVERS") == "all" {
			t.Fatal("there is no Chromium: make e2e installs it")
		}
		t.Skip("there is no Chromium: make e2e installs it")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(found), chromedp.NoSandbox, chromedp.WindowSize(900, 700),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"))
	alloc, stop := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(alloc)
	t.Cleanup(cancel)
	ctx, cancelTime := context.WithTimeout(ctx, 40*time.Second)
	t.Cleanup(cancelTime)
	b := &browser{T: t, ctx: ctx}
	b.do(network.Enable(), emulation.SetScriptExecutionDisabled(true))
	return b
}

func (b *browser) do(actions ...chromedp.Action) {
	b.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.Fatal(err)
	}
}

// at is the address that the browser is at, without its query.
func (b *browser) at() string {
	b.Helper()
	var where string
	b.do(chromedp.Location(&where))
	where, _, _ = strings.Cut(where, "?")
	return where
}

// text is what the page says.
func (b *browser) text() (said string) {
	b.Helper()
	b.do(chromedp.Text("body", &said, chromedp.ByQuery))
	return said
}

// picture keeps the page.
func (b *browser) picture(name string) {
	b.Helper()
	var shot []byte
	b.do(chromedp.FullScreenshot(&shot, 100))
	if err := os.MkdirAll(screenshots, 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(screenshots, name+".png"), shot, 0o644); err != nil {
		b.Fatal(err)
	}
	if len(shot) < 2000 {
		b.Errorf("%s: a picture of %d bytes", name, len(shot))
	}
}

// cookies are those that the browser keeps for Stint, by name.
func (b *browser) cookies() map[string]*network.Cookie {
	b.Helper()
	out := make(map[string]*network.Cookie)
	b.do(chromedp.ActionFunc(func(ctx context.Context) error {
		all, err := storage.GetCookies().Do(ctx)
		for _, c := range all {
			out[c.Name] = c
		}
		return err
	}))
	return out
}

// signIn fills in the provider's form.
func (b *browser) signIn(box *sandbox, user string) {
	b.Helper()
	if !strings.HasPrefix(b.at(), box.IdP) {
		b.Fatalf("at %s, not at the provider", b.at())
	}
	b.do(chromedp.SendKeys(`input[name=user]`, user, chromedp.ByQuery), chromedp.SendKeys(`input[name=password]`, user+"-password", chromedp.ByQuery),
		chromedp.Submit(`form`, chromedp.ByQuery), chromedp.WaitVisible(`main`, chromedp.ByQuery))
}

// People sign in and out with a browser, without any script: what they see, what the
// browser keeps, and what it keeps from others.
func TestBrowserSignsIn(t *testing.T) {
	b := newBrowser(t)
	box := inSandbox(t)
	b.do(chromedp.Navigate(box.Stint+"/login"), chromedp.WaitVisible(`a.button`, chromedp.ByQuery))
	b.picture("1-sign-in")
	b.do(chromedp.Click(`a.button`, chromedp.ByQuery), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery))
	b.signIn(box, "carol")
	if said := b.text(); b.at() != box.Stint+"/login" || !strings.Contains(said, box.IdP+"#carol") || !strings.Contains(said, "administer") {
		t.Fatalf("%s: %s", b.at(), said)
	}
	b.picture("2-signed-in")
	session := b.cookies()["__Host-stint"]
	if session == nil || !session.HTTPOnly || !session.Secure || session.SameSite != network.CookieSameSiteLax || session.Path != "/" || strings.HasPrefix(session.Domain, ".") {
		t.Errorf("the session: %+v", session)
	}
	if kept := b.cookies()["__Host-stint-sign-in"]; kept != nil {
		t.Errorf("what was kept for the sign-in is still there")
	}
	// Back to before: the form of the provider, which has been used up, signs nobody in.
	b.do(chromedp.NavigateBack())
	if strings.Contains(b.text(), "You are signed in") && b.at() != box.Stint+"/login" {
		t.Errorf("%s: %s", b.at(), b.text())
	}
	b.do(chromedp.Navigate(box.Stint+"/login"), chromedp.Click(`button`, chromedp.ByQuery), chromedp.WaitVisible(`a.button`, chromedp.ByQuery))
	if c := b.cookies()["__Host-stint"]; c != nil {
		t.Error("signed out, the cookie is still there")
	}
	// Back again: the page is asked for anew, and nobody is signed in.
	b.do(chromedp.NavigateBack(), chromedp.WaitVisible(`main`, chromedp.ByQuery))
	if said := b.text(); strings.Contains(said, "#carol") {
		t.Errorf("the back button shows who was signed in: %s", said)
	}
	// A session that has ended is worth nothing, also put back by hand.
	b.do(setCookie(box.Stint, "__Host-stint", session.Value), chromedp.Navigate(box.Stint+"/login"), chromedp.WaitVisible(`a.button`, chromedp.ByQuery))
	if strings.Contains(b.text(), "#carol") {
		t.Error("the session lives on after signing out")
	}
}

func setCookie(origin, name, value string) chromedp.Action {
	return network.SetCookie(name, value).WithURL(origin).WithPath("/").WithSecure(true).WithHTTPOnly(true)
}

// What somebody planted in a browser is not what its owner goes on with, and one
// person's pages are not another's.
func TestBrowserKeepsSessionsApart(t *testing.T) {
	b := newBrowser(t)
	box := inSandbox(t)
	b.do(chromedp.Navigate(box.Stint+"/login/start"), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery))
	b.signIn(box, "alice")
	planted := b.cookies()["__Host-stint"].Value
	if said := b.text(); strings.Contains(said, "administer") || !strings.Contains(said, "read") {
		t.Errorf("alice may: %s", said)
	}
	b.do(network.ClearBrowserCookies(), setCookie(box.Stint, "__Host-stint", planted), chromedp.Navigate(box.Stint+"/login/start"), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery))
	b.signIn(box, "carol")
	if got := b.cookies()["__Host-stint"].Value; got == planted || !strings.Contains(b.text(), "#carol") {
		t.Errorf("the session is still the planted one: %s", b.text())
	}
	// A sign-in that somebody else began does not end here.
	stranger := newBrowser(t)
	stranger.do(chromedp.Navigate(box.Stint+"/login/start"), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery))
	began := stranger.cookies()["__Host-stint-sign-in"].Value
	b.do(network.ClearBrowserCookies(), chromedp.Navigate(box.Stint+"/login/start"), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery),
		setCookie(box.Stint, "__Host-stint-sign-in", began))
	b.signIn(box, "carol")
	if c := b.cookies()["__Host-stint"]; c != nil || !strings.Contains(b.text(), "Sign in again") {
		t.Errorf("signed in by what another began: %s", b.text())
	}
	b.picture("3-refused")
	// Who has no rights is told.
	b.do(network.ClearBrowserCookies(), chromedp.Navigate(box.Stint+"/login/start"), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery))
	b.signIn(box, "bob")
	if said := b.text(); !strings.Contains(said, "no rule lets you") {
		t.Errorf("bob: %s", said)
	}
	b.picture("4-no-rights")
}

// A page elsewhere can neither frame ours, nor send its forms, and what it sends anybody
// to is not what it wants.
func TestBrowserKeepsOthersOut(t *testing.T) {
	b := newBrowser(t)
	box := inSandbox(t)
	b.do(chromedp.Navigate(box.Stint+"/login/start"), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery))
	b.signIn(box, "carol")
	evil := filepath.Join(t.TempDir(), "evil.html")
	page := `<iframe src="` + box.Stint + `/login"></iframe><form method="post" action="` + box.Stint + `/login/end"><input name="csrf" value="x"><button id="end">x</button></form>` +
		`<a id="go" href="` + box.Stint + `/login/start?next=https://evil.test&return=https://evil.test">x</a>`
	if err := os.WriteFile(evil, []byte(page), 0o600); err != nil {
		t.Fatal(err)
	}
	b.do(chromedp.Navigate("file://"+evil), chromedp.WaitVisible(`#end`, chromedp.ByQuery))
	var frames []string
	b.do(chromedp.ActionFunc(func(ctx context.Context) error {
		var inside string
		err := chromedp.Text("iframe", &inside, chromedp.ByQuery, chromedp.AtLeast(0)).Do(ctx)
		frames = append(frames, inside)
		return err
	}))
	if slices.ContainsFunc(frames, func(s string) bool { return strings.Contains(s, "carol") }) {
		t.Errorf("the page is in a frame: %q", frames)
	}
	b.do(chromedp.Click(`#end`, chromedp.ByQuery), chromedp.WaitVisible(`main`, chromedp.ByQuery))
	if said := b.text(); strings.Contains(said, "Sign in at") && !strings.Contains(said, "still signed in") {
		// Lax cookies are not sent with a form of another site: nobody is signed in there.
		t.Logf("without its cookie: %s", said)
	}
	b.do(chromedp.Navigate(box.Stint+"/login"), chromedp.WaitVisible(`main`, chromedp.ByQuery))
	if !strings.Contains(b.text(), "#carol") {
		t.Errorf("another site signed carol out: %s", b.text())
	}
	b.do(chromedp.Navigate("file://"+evil), chromedp.Click(`#go`, chromedp.ByQuery), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery))
	b.signIn(box, "carol")
	if b.at() != box.Stint+"/login" {
		t.Errorf("sent to %s", b.at())
	}
}

// `stint login` gets a token by way of the browser, which the commands then use; signing
// out in the browser ends it.
func TestBrowserLetsTheCommandLineIn(t *testing.T) {
	b := newBrowser(t)
	box := inSandbox(t)
	t.Setenv("STINT_HOME", filepath.Join(t.TempDir(), "home"))
	t.Setenv("STINT_CONFIG", filepath.Join(t.TempDir(), "none.yaml"))
	var said lockedBuffer
	done := make(chan error, 1)
	go func() {
		root := newRoot()
		root.SetArgs([]string{"login", box.Stint, "--no-browser", "--name", "box"})
		root.SetOut(&said)
		root.SetErr(&said)
		done <- root.ExecuteContext(t.Context())
	}()
	var address []string
	for range 200 {
		if address = regexp.MustCompile(`(http://\S+/login/cli\S+)[^$]*the code (\S+)`).FindStringSubmatch(said.String()); address != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if address == nil {
		t.Fatalf("it said %s", said.String())
	}
	b.do(chromedp.Navigate(address[1]), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery))
	b.signIn(box, "carol")
	if text := b.text(); !strings.Contains(text, address[2]) {
		t.Fatalf("the page does not show %s: %s", address[2], text)
	}
	b.picture("5-command-line")
	b.do(chromedp.Click(`button[value=allow]`, chromedp.ByQuery), chromedp.WaitVisible(`body`, chromedp.ByQuery))
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("it waits still: %s; the browser is at %s: %s", said.String(), b.at(), b.text())
	}
	var clients []adminapi.Client
	if err := json.Unmarshal(runOut(t, 0, "clients", "list", "-o", "json"), &clients); err != nil || len(clients) != 4 {
		t.Errorf("%v %v", clients, err)
	}
	if out := runOut(t, 0, "sessions", "list", "--subject", box.IdP+"#carol"); !bytes.Contains(out, []byte("stint-admin")) {
		t.Errorf("%s", out)
	}
	if out := runOut(t, 0, "context", "list"); !bytes.Contains(out, []byte("box")) || bytes.Contains(out, []byte("eyJ")) {
		t.Errorf("%s", out)
	}
	runOut(t, 0, "clients", "disable", "orders-api", "--reason", "test")
	runOut(t, 0, "clients", "enable", "orders-api")
	b.do(chromedp.Navigate(box.Stint+"/login"), chromedp.Click(`button`, chromedp.ByQuery), chromedp.WaitVisible(`a.button`, chromedp.ByQuery))
	if out := runOut(t, exitRefused, "status"); !bytes.Contains(out, []byte("stint login")) {
		t.Errorf("%s", out)
	}
	runOut(t, 0, "logout")
}

// runOut runs a command and returns what it said, and its error.
func runOut(t *testing.T, want int, args ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(t.Context())
	if err != nil {
		out.WriteString(err.Error())
	}
	if code := exitCodeOf(err); err == nil && want != 0 || err != nil && code != want {
		t.Fatalf("stint %s: %v: %s", strings.Join(args, " "), err, out.String())
	}
	return out.Bytes()
}

// The installation's address is checked before anything is sent there.
func TestLoginRefusesWhereItIsInClear(t *testing.T) {
	t.Setenv("STINT_HOME", t.TempDir())
	for _, where := range []string{"http://stint.example", "stint.example", "ftp://127.0.0.1", (&url.URL{Scheme: "http", Host: "10.0.0.1"}).String()} {
		if out := runOut(t, exitUsage, "login", where, "--no-browser"); !bytes.Contains(out, []byte("https://HOST")) {
			t.Errorf("%s: %s", where, out)
		}
	}
}

// inSandbox starts a sandbox for the time of a test.
func inSandbox(t *testing.T) *sandbox { return tracedSandbox(t, nil) }

// tracedSandbox is one that says what goes over the wire.
func tracedSandbox(t *testing.T, trace func(sample.Step)) *sandbox {
	t.Helper()
	box, err := openSandbox(t.Context(), sandboxOptions{Dir: filepath.Join(place(t), "box"), Postgres: postgresOff, Trace: trace})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return box
}

// lockedBuffer is written and read by several at a time.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
