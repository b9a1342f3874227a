package entra_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/confidential"
)

// recorder takes the token request of Microsoft's own library, and answers nothing.
type recorder struct{ form url.Values }

func (r *recorder) Do(req *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(req.URL.Path, "/oauth2/v2.0/token") { // it looks for endpoints first
		body := `{"token_endpoint":"https://login.microsoftonline.com/` + tenant + `/oauth2/v2.0/token",
			"authorization_endpoint":"https://login.microsoftonline.com/` + tenant + `/oauth2/v2.0/authorize",
			"issuer":"https://login.microsoftonline.com/` + tenant + `/v2.0"}`
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewBufferString(body)), Request: req}, nil
	}
	data, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	if r.form, err = url.ParseQuery(string(data)); err != nil {
		return nil, err
	}
	return nil, errors.New("that is all that was wanted")
}

func (r *recorder) CloseIdleConnections() {}

// What is sent is what Microsoft's own library sends, but for what would ask for more: a
// refresh token, an ID token, and who the user is.
func TestRequestsAreThoseOfMicrosoftsLibrary(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	p := b.open(t).(asserting)
	own := b.SignIn("alice", b.cfg.Profiles["mail-write"].ClientID)
	p.token = func() string { return own }
	if _, err := mint(t, p, "mail-write"); err != nil {
		t.Fatal(err)
	}
	ours := b.Asked()[0]

	cred, err := confidential.NewCredFromSecret("secret of mail-write")
	if err != nil {
		t.Fatal(err)
	}
	seen := &recorder{}
	client, err := confidential.New("https://login.microsoftonline.com/"+tenant, b.cfg.Profiles["mail-write"].ClientID, cred,
		confidential.WithHTTPClient(seen), confidential.WithInstanceDiscovery(false))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.AcquireTokenOnBehalfOf(t.Context(), own, strings.Fields(ours.Get("scope"))); err == nil || seen.form == nil {
		t.Fatalf("%v, %v", seen.form, err)
	}
	theirs := strings.Fields(seen.form.Get("scope"))
	theirs = slices.DeleteFunc(theirs, func(s string) bool { return s == "openid" || s == "profile" || s == "offline_access" })
	if got := strings.Join(theirs, " "); got != ours.Get("scope") {
		t.Errorf("the scope is %q, theirs %q", ours.Get("scope"), got)
	}
	for name := range seen.form {
		switch name {
		case "scope", "client_info":
			continue
		}
		if ours.Get(name) != seen.form.Get(name) {
			t.Errorf("%s is %q, theirs %q", name, ours.Get(name), seen.form.Get(name))
		}
	}
	for name := range ours {
		if !seen.form.Has(name) {
			t.Errorf("%s is sent, and they do not", name)
		}
	}
}
