package vault

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/stint-dev/stint/internal/secret"
)

// revocability is what Vault can do about a credential when it revokes its lease.
type revocability string

const (
	ends    revocability = "ends"    // the credential ends too
	lasts   revocability = "lasts"   // nothing: it is a note in a book, or there is no lease
	depends revocability = "depends" // on how the engine's own role is set up: the settings say
)

// kind is what is known of one of Vault's engines. Engines that are not listed are taken
// at the administrator's word.
type kind struct {
	// choices are the parameters that a grant may choose. No other ever comes from a
	// grant: the rest of what an engine takes would be another credential.
	choices []string
	// paths says what becomes of what is asked for at a path, by one of its names; the
	// first that fits counts.
	paths []pathRule
	// lasting reports by the answer that what was made cannot be taken back, whatever the
	// settings say; nil: the answer does not tell.
	lasting func(fields map[string]secret.String) bool
	// until reads from what was made when it ends; zero: it does not say. Nil: no.
	until func(fields map[string]secret.String) time.Time
	// says fails if what was made is for something else than was chosen. Nil: it does not
	// tell.
	says func(fields map[string]secret.String, chosen map[string]string) error
}

type pathRule struct {
	name string
	what revocability
}

// engines is the truth about Vault's own, as their code has it (1.21).
var engines = map[string]kind{
	"database": {paths: []pathRule{{"creds", ends}}},
	"aws": {
		choices: []string{"role_arn"},
		paths:   []pathRule{{"sts", lasts}, {"creds", depends}}, // IAM users end, assumed roles and federation do not
		lasting: func(f map[string]secret.String) bool { return said(f, "session_token") || said(f, "security_token") },
	},
	"gcp": {
		paths:   []pathRule{{"token", lasts}, {"key", ends}},
		lasting: func(f map[string]secret.String) bool { return said(f, "token") },
	},
	"azure": {paths: []pathRule{{"creds", ends}}},
	"kubernetes": {
		// With an account that exists already nothing is removed, and the answer does not
		// tell it from one that was made.
		choices: []string{"kubernetes_namespace", "cluster_role_binding"},
		paths:   []pathRule{{"creds", depends}},
	},
	"ssh": {
		choices: []string{"valid_principals", "cert_type", "username", "ip"},
		paths:   []pathRule{{"creds", ends}, {"sign", lasts}, {"issue", lasts}},
		lasting: func(f map[string]secret.String) bool { return said(f, "signed_key") },
		until: func(f map[string]secret.String) time.Time {
			c, err := sshCertificate(f)
			if err != nil || c.ValidBefore > math.MaxInt64 {
				return time.Time{}
			}
			return time.Unix(int64(c.ValidBefore), 0)
		},
		says: func(f map[string]secret.String, chosen map[string]string) error {
			who, asked := chosen["valid_principals"]
			if !said(f, "signed_key") || !asked {
				return nil
			}
			c, err := sshCertificate(f)
			if err == nil && !slices.Equal(c.ValidPrincipals, []string{who}) {
				err = errors.New("it is for other principals than the one that was chosen")
			}
			return err
		},
	},
	"pki": {
		// With generate_lease it is on the CRL, for those who read it, or ask OCSP.
		choices: []string{"common_name", "alt_names", "ip_sans", "uri_sans"},
		paths:   []pathRule{{"issue", depends}, {"sign", depends}},
		says: func(f map[string]secret.String, chosen map[string]string) error {
			block, _ := pem.Decode([]byte(f["certificate"].Reveal()))
			if block == nil {
				return errors.New("there is no certificate in the answer")
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if name, asked := chosen["common_name"]; err == nil && asked && c.Subject.CommonName != name {
				err = errors.New("it is for another name than the one that was chosen")
			}
			return err
		},
	},
}

// sshCertificate reads a certificate of SSH's own form.
func sshCertificate(f map[string]secret.String) (*ssh.Certificate, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(f["signed_key"].Reveal()))
	if err != nil {
		return nil, errors.New("there is no certificate in the answer")
	}
	c, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, errors.New("there is a key in the answer, and no certificate")
	}
	return c, nil
}

// said reports whether an answer has a field that is not null.
func said(fields map[string]secret.String, name string) bool {
	v := fields[name]
	return !v.Empty() && v.Reveal() != "null"
}

// checkEngine holds a role against what is known of its engine.
func (r Role) checkEngine() error {
	k, known := engines[r.Engine]
	if !known {
		if len(r.Choose) > 0 {
			return fmt.Errorf("choose: say the engine: only of %s is it known what a grant may choose", strings.Join(choosing(), ", "))
		}
		return nil
	}
	i := slices.IndexFunc(k.paths, func(p pathRule) bool { return slices.Contains(strings.Split(r.Path, "/"), p.name) })
	if i < 0 {
		return fmt.Errorf("path: %s is nothing that the engine %s makes a credential of its own for", r.Path, r.Engine)
	}
	switch what := k.paths[i].what; {
	case what == ends && r.lasts():
		return fmt.Errorf("revoke: none: what %s makes at %s ends with its lease", r.Engine, k.paths[i].name)
	case what == lasts && !r.lasts():
		return fmt.Errorf("revoke: Vault cannot take back what %s makes at %s: the role wants revoke: none", r.Engine, k.paths[i].name)
	case what == depends && !r.spelled:
		return fmt.Errorf("revoke: whether Vault can take back what %s makes at %s depends on how it is set up there: say lease or none", r.Engine, k.paths[i].name)
	}
	return r.checkChoices(k)
}

// checkChoices refuses parameters that are not a grant's to choose.
func (r Role) checkChoices(k kind) error {
	for name, values := range r.Choose {
		_, fixed := r.Params[name]
		switch {
		case !slices.Contains(k.choices, name):
			return fmt.Errorf("choose: %s is not a grant's to choose of %s; these are: %s", name, r.Engine, strings.Join(k.choices, ", "))
		case fixed || name == r.LifetimeParam:
			return fmt.Errorf("choose: %s is set already", name)
		case len(values) == 0:
			return fmt.Errorf("choose: %s: list the values that may ever be chosen", name)
		case r.Method != "write":
			return fmt.Errorf("choose goes with method: write")
		}
		for _, v := range values {
			// A comma would be several to Vault, and a star or a brace a pattern.
			if v == "" || len(v) > 200 || strings.ContainsAny(v, ",*{}?$= \t\n\r\x00") {
				return fmt.Errorf("choose: %s: %q is not one plain value", name, v)
			}
		}
	}
	return nil
}

// choosing are the engines with something to choose.
func choosing() (names []string) {
	for name, k := range engines {
		if len(k.choices) > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
