package api_test

import (
	"context"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/storage"
	"github.com/chromedp/chromedp"

	"github.com/stint-dev/stint/api"
	"github.com/stint-dev/stint/broker"
)

// chromium is a real browser, without scripts.
type chromium struct {
	testing.TB
	ctx context.Context
}

// newChromium starts one, or skips the test where there is none and none has to be.
func newChromium(t *testing.T) *chromium {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("STINT_REQUIRE_SERVERS") == "all" {
			t.Fatal("there is no Chromium: make e2e installs it")
		}
		t.Skip("there is no Chromium: make e2e installs it")
	}
	alloc, stop := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox,
		chromedp.WindowSize(900, 700), chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"))...)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(alloc)
	t.Cleanup(cancel)
	ctx, cancelTime := context.WithTimeout(ctx, time.Minute)
	t.Cleanup(cancelTime)
	b := &chromium{t, ctx}
	b.do(network.Enable(), emulation.SetScriptExecutionDisabled(true))
	return b
}

func (b *chromium) do(actions ...chromedp.Action) {
	b.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		var where, said string
		_ = chromedp.Run(b.ctx, chromedp.Location(&where), chromedp.Text("body", &said, chromedp.ByQuery, chromedp.AtLeast(0)))
		b.Fatalf("%v, at %s: %s", err, where, said)
	}
}

// text is what the page says, and at is where it is.
func (b *chromium) text() (said string) {
	b.do(chromedp.WaitVisible(`body`, chromedp.ByQuery), chromedp.Text("body", &said, chromedp.ByQuery))
	return said
}

func (b *chromium) at() (where string) {
	b.do(chromedp.Location(&where))
	return where
}

func (b *chromium) picture(name string) {
	b.Helper()
	var shot []byte
	b.do(chromedp.FullScreenshot(&shot, 100))
	dir := filepath.Join("..", "build", "screenshots")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), shot, 0o644); err != nil {
		b.Fatal(err)
	}
}

// fits fails if the page is wider than the window.
func (b *chromium) fits(what string) {
	b.Helper()
	b.do(chromedp.ActionFunc(func(ctx context.Context) error {
		_, _, _, layout, _, content, err := page.GetLayoutMetrics().Do(ctx)
		if err == nil && content.Width > float64(layout.ClientWidth) {
			b.Errorf("%s: the page is %f wide, the window %d", what, content.Width, layout.ClientWidth)
		}
		return err
	}))
}

// sites are the organisation's provider and an upstream, each with a page of its own, at
// two origins; the upstream leads to another of its hosts first, as many do.
func (w *world) sites(account string) (idp, upstream string) {
	w.Helper()
	form := func(out http.ResponseWriter, r *http.Request, name string) {
		_, _ = fmt.Fprintf(out, `<!doctype html><meta name="viewport" content="width=device-width"><main><form method="post" action="/done?%s"><input name=%q><button>Go on</button></form></main>`,
			html.EscapeString(r.URL.RawQuery), name)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /authorize", func(out http.ResponseWriter, r *http.Request) { form(out, r, "user") })
	mux.HandleFunc("POST /done", func(out http.ResponseWriter, r *http.Request) {
		http.Redirect(out, r, w.self+"/connect/callback?"+url.Values{"state": {r.URL.Query().Get("state")}, "code": {r.FormValue("user")}}.Encode(), http.StatusSeeOther)
	})
	first := httptest.NewServer(mux)
	w.Cleanup(first.Close)
	site := http.NewServeMux()
	second := httptest.NewServer(site)
	w.Cleanup(second.Close)
	elsewhere := strings.Replace(second.URL, "127.0.0.1", "localhost", 1)
	site.HandleFunc("GET /authorize", func(out http.ResponseWriter, r *http.Request) {
		http.Redirect(out, r, elsewhere+"/consent?"+r.URL.RawQuery, http.StatusSeeOther)
	})
	site.HandleFunc("GET /consent", func(out http.ResponseWriter, r *http.Request) { form(out, r, "ok") })
	site.HandleFunc("POST /done", func(out http.ResponseWriter, r *http.Request) {
		back, err := w.code.Allow(second.URL+"/authorize?"+r.URL.RawQuery, broker.Account{ID: account, Name: "octocat", Scopes: []string{"repo", "read:user"}})
		if err != nil {
			http.Error(out, err.Error(), http.StatusBadRequest)
			return
		}
		http.Redirect(out, r, back, http.StatusSeeOther)
	})
	return first.URL, second.URL
}

// newBrowserWorld is a server at an address that a browser can reach, with its sites.
func newBrowserWorld(t *testing.T) (w *world, idp, upstream string) {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	address := l.Addr().String()
	_ = l.Close()
	w = newWorld(t, options{links: true, issuer: "http://" + address, listen: func(in *api.Listen) { in.Address = address }})
	idp, upstream = w.sites("583231")
	w.signIn.at = idp
	w.code.Site(upstream)
	return w, idp, upstream
}

// People link and unlink an account with a real browser, without any script: on a wide
// and on a narrow screen, through an upstream that leads from one host to another.
func TestBrowserLinksAnAccount(t *testing.T) {
	b := newChromium(t)
	w, idp, _ := newBrowserWorld(t)
	b.do(chromedp.Navigate(w.self+"/connect/code"), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery))
	if !strings.HasPrefix(b.at(), idp) {
		t.Fatalf("at %s", b.at())
	}
	b.do(chromedp.SendKeys(`input[name=user]`, "alice", chromedp.ByQuery), chromedp.Submit(`form`, chromedp.ByQuery), chromedp.WaitVisible(`dl`, chromedp.ByQuery))
	if said := b.text(); !strings.Contains(said, "https://idp.test#alice") || !strings.Contains(said, "read:user") {
		t.Fatalf("%s", said)
	}
	b.picture("connect-1-offer")
	b.do(emulation.SetDeviceMetricsOverride(375, 667, 2, true))
	b.fits("the offer")
	b.picture("connect-2-offer-narrow")
	b.do(emulation.ClearDeviceMetricsOverride(), chromedp.Click(`button`, chromedp.ByQuery), chromedp.WaitVisible(`input[name=ok]`, chromedp.ByQuery))
	if !strings.HasPrefix(b.at(), "http://localhost:") {
		t.Fatalf("at %s", b.at())
	}
	kept := b.cookies()
	if c := kept["__Host-stint-link-code"]; c == nil || !c.HTTPOnly || !c.Secure || c.SameSite != network.CookieSameSiteLax || c.Path != "/" {
		t.Errorf("what is kept of the attempt: %+v", c)
	}
	b.do(chromedp.Submit(`form`, chromedp.ByQuery), chromedp.WaitVisible(`ul.each`, chromedp.ByQuery))
	if said := b.text(); b.at() != w.self+"/connect" || !strings.Contains(said, "octocat") || !strings.Contains(said, "583231") {
		t.Fatalf("%s: %s", b.at(), said)
	}
	if c := b.cookies()["__Host-stint-link-code"]; c != nil {
		t.Error("what was kept of the attempt is still there")
	}
	b.picture("connect-3-accounts")
	b.do(emulation.SetDeviceMetricsOverride(375, 667, 2, true))
	b.fits("the accounts")
	b.picture("connect-4-accounts-narrow")
	b.do(emulation.ClearDeviceMetricsOverride())
	b.do(chromedp.Navigate(w.self+"/connect"), chromedp.Click(`form[action$="/unlink"] button`, chromedp.ByQuery), chromedp.WaitNotPresent(`ul.each`, chromedp.ByQuery), chromedp.WaitVisible(`h1`, chromedp.ByQuery))
	if said := b.text(); !strings.Contains(said, "Unlinked") || !strings.Contains(said, "has revoked it") {
		t.Fatalf("%s", said)
	}
	b.picture("connect-5-unlinked")
	if got := w.code.Revoked(); len(got) != 1 || got[0] != "583231" {
		t.Errorf("%v", got)
	}
	b.do(chromedp.Navigate(w.self+"/connect"), chromedp.Click(`form[action$="/end"] button`, chromedp.ByQuery), chromedp.WaitVisible(`a.button`, chromedp.ByQuery))
	if said := b.text(); !strings.Contains(said, "Sign in") || b.cookies()["__Host-stint-connect"] != nil {
		t.Errorf("%s", said)
	}
	b.picture("connect-6-sign-in")
}

// What another browser began does not end in this one, and no other site's page frames
// ours or sends its forms.
func TestBrowserLinksForNobodyElse(t *testing.T) {
	b, stranger := newChromium(t), newChromium(t)
	w, _, _ := newBrowserWorld(t)
	offer := func(b *chromium, who string) {
		b.do(chromedp.Navigate(w.self+"/connect/code"), chromedp.WaitVisible(`input[name=user]`, chromedp.ByQuery),
			chromedp.SendKeys(`input[name=user]`, who, chromedp.ByQuery), chromedp.Submit(`form`, chromedp.ByQuery), chromedp.WaitVisible(`dl`, chromedp.ByQuery))
	}
	offer(stranger, "mallory")
	stranger.do(chromedp.Click(`button`, chromedp.ByQuery), chromedp.WaitVisible(`input[name=ok]`, chromedp.ByQuery))
	trap := stranger.at() // the upstream's page, with mallory's state
	offer(b, "alice")
	b.do(chromedp.Navigate(trap), chromedp.WaitVisible(`input[name=ok]`, chromedp.ByQuery), chromedp.Submit(`form`, chromedp.ByQuery), chromedp.WaitVisible(`h1`, chromedp.ByQuery))
	if said := b.text(); !strings.Contains(said, "Nothing was linked") || !strings.Contains(said, "did not begin this in this browser") {
		t.Errorf("%s", said)
	}
	b.picture("connect-7-refused")
	evil := filepath.Join(t.TempDir(), "evil.html")
	attack := `<iframe src="` + w.self + `/connect"></iframe><form method="post" action="` + w.self + `/connect/code"><input name="csrf" value="x"><button id="link">x</button></form>`
	if err := os.WriteFile(evil, []byte(attack), 0o600); err != nil {
		t.Fatal(err)
	}
	b.do(chromedp.Navigate("file://"+evil), chromedp.Click(`#link`, chromedp.ByQuery), chromedp.WaitVisible(`h1`, chromedp.ByQuery))
	if said := b.text(); !strings.Contains(said, "Nothing was linked") {
		t.Errorf("%s", said)
	}
	w.unlinked("by other sites")
}

// cookies are those that the browser keeps, by name.
func (b *chromium) cookies() map[string]*network.Cookie {
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
