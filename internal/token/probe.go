package token

import (
	"context"
	"net/http"
	"sync"

	"github.com/stint-dev/stint/broker"
)

// Probe fetches the keys of all issuers and clients that publish theirs, once and
// now, and says of each what is wrong; nil: nothing. It needs no service, and
// changes nothing.
func Probe(ctx context.Context, cfg Config, client *http.Client) (issuers, clients map[string]error) {
	issuers, clients = make(map[string]error), make(map[string]error)
	var wait sync.WaitGroup
	var mu sync.Mutex
	probe := func(of map[string]error, id string, s *source) {
		wait.Go(func() {
			_, _, _, err := s.fetch(ctx)
			mu.Lock()
			defer mu.Unlock()
			of[id] = err
		})
	}
	for _, i := range cfg.Issuers {
		if cfg.IssuerKeys[i.ID] == nil {
			probe(issuers, i.ID, &source{issuer: i.ID, jwksURI: i.JWKSURI, algs: i.Algorithms, client: client})
		}
	}
	for id, keys := range cfg.Clients {
		if keys.JWKSURI != "" {
			probe(clients, id, &source{jwksURI: keys.JWKSURI, algs: broker.ClientAlgorithms, kind: keys.Kind, client: client})
		}
	}
	for id, keys := range cfg.Certificates {
		if keys.JWKSURI != "" {
			probe(clients, id, &source{jwksURI: keys.JWKSURI, kind: keys.Kind, client: client})
		}
	}
	wait.Wait()
	return issuers, clients
}
