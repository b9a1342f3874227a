package static

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// Config is what the configuration says of one secret.
type Config struct {
	// Secret is a reference to the secret.
	Secret string `yaml:"secret" check:"required,reference"`
	// Header is how it goes into a request: a header in which {secret} stands for it.
	// Absent, and with neither query nor user: "Authorization: Bearer {secret}".
	Header string `yaml:"header,omitempty"`
	// Query is the parameter of the address that it goes into instead. It is better not
	// used: addresses end up in logs.
	Query string `yaml:"query,omitempty"`
	// User makes it the password of this user (RFC 7617).
	User string `yaml:"user,omitempty"`
	// Hosts are those that requests may go to, each as grants have it: a name in small
	// letters, with a port if it is not that of https. Plain HTTP is for loopback
	// addresses: http://127.0.0.1:8080.
	Hosts []string `yaml:"hosts" check:"required"`
	// Headers are further headers of the caller's requests that the upstream gets, such as
	// one that names a version of its API.
	Headers []string `yaml:"headers,omitempty"`
	// CA is a reference to the certificates, as PEM, that sign the hosts'. Absent: those of
	// the system.
	CA string `yaml:"ca,omitempty" check:"reference"`
}

const place = "{secret}"

// Check says what is wrong with the settings.
func (c *Config) Check() error {
	ways := 0
	for _, way := range []string{c.Header, c.Query, c.User} {
		if way != "" {
			ways++
		}
	}
	switch {
	case ways > 1:
		return errors.New("header, query and user: the secret goes into a request in one way")
	case ways == 0:
		c.Header = "Authorization: Bearer " + place
	case strings.ContainsAny(c.Query, "&=#[] ") || !printable(c.Query):
		return fmt.Errorf("query: %q is no name of a parameter", c.Query)
	case strings.Contains(c.User, ":") || !printable(c.User):
		return errors.New("user: no colon, and nothing that cannot be printed")
	}
	if c.Header != "" {
		if err := checkHeader(c.Header); err != nil {
			return err
		}
	}
	for _, h := range c.Headers {
		if !token(h) {
			return fmt.Errorf("headers: %q is no name of a header", h)
		}
	}
	if len(c.Hosts) == 0 || len(c.Hosts) > 64 {
		return errors.New("hosts: 1 to 64 are needed")
	}
	for i, h := range c.Hosts {
		host, err := hostOf(h)
		if err != nil {
			return fmt.Errorf("hosts: %q %w", h, err)
		}
		if slices.Contains(c.hosts()[:i], host) {
			return fmt.Errorf("hosts: %s is there twice", host)
		}
	}
	return nil
}

func checkHeader(text string) error {
	name, value, _ := strings.Cut(text, ":")
	switch {
	case !token(name) || strings.Count(value, place) != 1 || !printable(value):
		return fmt.Errorf("header: %q is no NAME: VALUE with %s in it once", text, place)
	case slices.Contains([]string{"host", "content-length", "transfer-encoding", "connection", "content-type", "user-agent", "te", "trailer", "upgrade", "cookie"}, strings.ToLower(name)):
		return fmt.Errorf("header: %s is not for a secret", name)
	}
	return nil
}

// token reports whether a text can name a header (RFC 9110 section 5.6.2).
func token(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r > '~' || r <= ' ' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// hostOf returns a host of the settings as grants have it.
func hostOf(text string) (string, error) {
	host, plain := strings.CutPrefix(text, "http://")
	u, err := url.Parse("https://" + host)
	if err != nil || u.Host != host || host == "" || u.Hostname() == "" || strings.HasSuffix(host, ":") {
		return "", errors.New("is no host, with or without a port")
	}
	name, port := u.Hostname(), u.Port()
	ip := net.ParseIP(name)
	loopback := name == "localhost" || ip != nil && ip.IsLoopback()
	switch {
	case plain && !loopback:
		return "", errors.New("is not on this machine: it has to be https")
	case port == "443" && !plain || port == "80" && plain:
		return "", errors.New("has a port that goes without saying")
	case strings.HasSuffix(name, "."):
		return "", errors.New("has a dot at its end")
	case ip == nil && strings.ContainsFunc(name, func(r rune) bool {
		return r != '.' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
	}):
		return "", errors.New("has something else than small letters, digits, dots and hyphens")
	}
	return host, nil
}

// hosts are those of grants.
func (c *Config) hosts() []string {
	out := make([]string, len(c.Hosts))
	for i, h := range c.Hosts {
		out[i] = strings.TrimPrefix(h, "http://")
	}
	return out
}

func (c *Config) origins() []string {
	out := make([]string, len(c.Hosts))
	for i, h := range c.Hosts {
		if out[i] = h; !strings.HasPrefix(h, "http://") {
			out[i] = "https://" + h
		}
	}
	return out
}
