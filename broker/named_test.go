package broker_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stint-dev/stint/audit"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// Who has client_id and secret the wrong way round has the secret in no log and no
// record, whichever way it authenticates.
func TestASecretInThePlaceOfAClientIDIsNotShown(t *testing.T) {
	w := newWorld(t)
	made := goodSecret.Reveal()
	for name, id := range map[string]string{
		"a secret": made, "cut short": made[:len(made)-1], "with a blank behind": made + " ", "a half": made[:20] + "aA0", "escaped": strings.ReplaceAll(made, "-", "%2D") + "%20",
		"a password": "correct horse battery", "of another make": "4fA81c29b07e43dE", "of 128 bits": "00112233445566778899aabbccddeeff", "a digest": strings.Repeat("0123456789abcdef", 4),
	} {
		for _, method := range []string{"client_secret_basic", "client_secret_post", "private_key_jwt", ""} {
			_, err := w.b.AuthenticateClient(t.Context(), broker.Credentials{Method: method, ID: id, Secret: secret.New("desktop"), Assertion: secret.New("x")})
			if broker.CodeOf(err) != broker.BadClient || !strings.Contains(err.Error(), "unknown:") {
				t.Errorf("%s, %s: %v", name, method, err)
			}
			w.b.Refuse(t.Context(), &broker.ExchangeRequest{}, id, err)
			e := w.record.last(t, audit.KindExchange)
			for _, text := range []string{fmt.Sprint(err), fmt.Sprintf("%+v", e)} {
				if strings.Contains(text, id) || strings.Contains(text, id[:12]) {
					t.Errorf("%s, %s: shown in %s", name, method, text)
				}
			}
			if !strings.HasPrefix(e.Party.Client, "unknown:") || len(e.Party.Client) != len("unknown:")+16 {
				t.Errorf("%s: recorded as %q", name, e.Party.Client)
			}
		}
	}
	// A name that nobody has is shown: it says what is wrong with the configuration.
	for id, want := range map[string]string{"file-mcp": "file-mcp", "nightly.job_2": "nightly.job_2", "": ""} {
		_, err := w.b.AuthenticateClient(t.Context(), broker.Credentials{Method: "client_secret_basic", ID: id})
		w.b.Refuse(t.Context(), &broker.ExchangeRequest{}, id, err)
		if e := w.record.last(t, audit.KindExchange); e.Party.Client != want || !strings.Contains(e.Reason, want) {
			t.Errorf("%q: recorded as %q, %q", id, e.Party.Client, e.Reason)
		}
	}
	// And so is one that somebody has, whatever it looks like.
	long := strings.Repeat("Name-of-1-client.", 3)
	w.reg.Clients[long] = &broker.Client{ID: long}
	w.b.Refuse(t.Context(), &broker.ExchangeRequest{}, long, errBroken)
	if e := w.record.last(t, audit.KindExchange); e.Party.Client != long {
		t.Errorf("recorded as %q", e.Party.Client)
	}
}
