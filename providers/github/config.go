package github

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// The modes.
const (
	modeApp  = "app"
	modeUser = "user"
)

// How long GitHub lets its tokens live.
const (
	appLife  = time.Hour
	userLife = 8 * time.Hour
)

// Config is what the configuration says of one GitHub.
type Config struct {
	// Mode is app, for installation tokens, or user, for tokens of the subject's own,
	// from an account that it has linked. Absent: app.
	Mode string `yaml:"mode,omitempty" check:"oneof=app|user"`
	// URL is the API's. Absent: https://api.github.com. Of GitHub Enterprise Server it
	// is https://HOST/api/v3.
	URL string `yaml:"url,omitempty" check:"https"`
	// Web is where people sign in. Absent: https://github.com.
	Web string `yaml:"web,omitempty" check:"https"`
	// CA is a reference to the certificates, as PEM, that sign the server's. Absent: the
	// system's.
	CA string `yaml:"ca,omitempty" check:"reference"`
	// Apps are the GitHub Apps that tokens are made by. Of several that are installed at
	// an owner, the one with most left of its rate limit is used.
	Apps []App `yaml:"apps" check:"required"`
	// Entitlement says how it is known what the subject may do by itself, in the mode
	// app: collaborator, by its permission on each repository; or none, where Apps act
	// for everybody alike. In the mode user GitHub sees to it.
	Entitlement string `yaml:"entitlement,omitempty" check:"oneof=none|collaborator"`
	// Logins are the subjects' names at GitHub, by ISSUER#SUB. Who is not there has to
	// link an account.
	Logins map[string]string `yaml:"logins,omitempty"`
}

// App is a GitHub App.
type App struct {
	// ClientID is the App's client id.
	ClientID string `yaml:"client_id" check:"required"`
	// PrivateKey is a reference to its private key, as PEM.
	PrivateKey string `yaml:"private_key,omitempty" check:"reference"`
	// TransitKey names an RSA key in Vault's transit engine instead, which never leaves
	// it.
	TransitKey string `yaml:"transit_key,omitempty"`
	// ClientSecret is a reference to its client secret, by which subjects link accounts.
	ClientSecret string `yaml:"client_secret,omitempty" check:"reference"`
}

// linked reports whether accounts can be linked by the App.
func (a App) linked() bool { return a.ClientSecret != "" }

// Check says what is wrong with the settings.
func (c *Config) Check() error {
	fill(&c.Mode, modeApp)
	fill(&c.URL, "https://api.github.com")
	fill(&c.Web, "https://github.com")
	c.URL, c.Web = strings.TrimSuffix(c.URL, "/"), strings.TrimSuffix(c.Web, "/")
	switch {
	case len(c.Apps) == 0:
		return errors.New("apps: there is none, so that nothing can be vended")
	case c.Mode == modeApp && c.Entitlement == "":
		return errors.New("entitlement: say collaborator, or none if Apps act for everybody alike")
	case c.Mode == modeUser && c.Entitlement != "":
		return errors.New("entitlement: goes with mode: app; GitHub holds a user's token to the user's rights")
	case c.Mode == modeUser && len(c.Apps) > 1:
		return errors.New("apps: a user's account is linked by one App")
	case c.Mode == modeUser && !c.Apps[0].linked():
		return errors.New("apps: client_secret: without it nobody can link an account")
	}
	for _, a := range c.Apps {
		if (a.PrivateKey == "") == (a.TransitKey == "") {
			return fmt.Errorf("apps: %s: either private_key or transit_key", a.ClientID)
		}
	}
	for subject, login := range c.Logins {
		if iss, sub, ok := strings.Cut(subject, "#"); !ok || iss == "" || sub == "" || !isName(login) {
			return fmt.Errorf("logins: %q: %q: write ISSUER#SUB: LOGIN", subject, login)
		}
	}
	return nil
}

func fill(field *string, absent string) {
	if *field == "" {
		*field = absent
	}
}

// isName reports whether a text can be the name of an owner or a repository.
func isName(s string) bool {
	return s != "" && len(s) <= 100 && s != "." && s != ".." && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '-' && r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}
