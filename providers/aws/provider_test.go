package aws_test

import (
	"testing"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/testbed/doubles"
	"github.com/stint-dev/stint/providers/aws"
	"github.com/stint-dev/stint/providers/providertest"
)

func TestProvider(t *testing.T) {
	for name, settings := range map[string]func(string) aws.Config{
		"keys":         byKeys,
		"token-denied": func(endpoint string) aws.Config { return denying(byToken(endpoint)) },
	} {
		t.Run(name, func(t *testing.T) {
			i := newIssuer(t)
			a := cloud(t, i)
			h := harness(t, a, opened(t, settings(a.URL), deps(i, time.Now)))
			h.Variant = name
			h.Overgrants = map[string]broker.Provider{}
			for _, variant := range []string{doubles.AWSLonger, doubles.AWSOtherRole, doubles.AWSOtherLease, doubles.AWSOtherIdentity,
				doubles.AWSNoIdentity, doubles.AWSTwoKeys, doubles.AWSNoExpiry} {
				wrong := cloud(t, i)
				wrong.Variant = variant
				h.Overgrants[variant] = opened(t, settings(wrong.URL), deps(i, time.Now))
			}
			providertest.Run(t, h)
		})
	}
}
