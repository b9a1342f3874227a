package sample

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/stint-dev/stint/client"
	"github.com/stint-dev/stint/internal/secret"
)

// The scopes that the API and the tools of the MCP server need.
const (
	OrdersRead  = "orders:read"
	OrdersWrite = "orders:write"
	ReportsRead = "reports:read"
)

const maxOrders = 1000

// Order is what the API keeps.
type Order struct {
	ID       int    `json:"id"`
	Item     string `json:"item"`
	Quantity int    `json:"quantity"`
	// By is whom the token spoke for that added it, and Through who acted for them,
	// outermost first.
	By      string   `json:"by,omitempty"`
	Through []string `json:"through,omitempty"`
}

// APIConfig says what the API is, and how it asks Stint about tokens.
type APIConfig struct {
	// Listener is where it listens, on loopback; nil: a free port.
	Listener net.Listener
	// Resource is what it is called by tokens; empty: its URL.
	Resource string
	// Stint is asked about tokens; its Server may be left out.
	Stint StintConfig
	// Orders are there from the beginning.
	Orders []Order
	Log    *slog.Logger
}

// API is an HTTP API: GET /orders for tokens with the scope orders:read, POST
// /orders for those with orders:write. It takes nothing but tokens for itself.
type API struct {
	*server
	resource string
	stint    *asker
	log      *slog.Logger

	mu     sync.Mutex
	orders []Order
}

// StartAPI starts an API and returns when it listens. It ends with ctx, or when it
// is closed. An error says what is missing in cfg, or why it cannot listen.
func StartAPI(ctx context.Context, cfg APIConfig) (*API, error) {
	if cfg.Stint.Server == "" {
		cfg.Stint.Server = "api"
	}
	l, err := listen(cfg.Listener)
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	a := &API{resource: cfg.Resource, log: orDiscard(cfg.Log), orders: slices.Clone(cfg.Orders)}
	if a.resource == "" {
		a.resource = "http://" + l.Addr().String()
	}
	if a.stint, err = newAsker(cfg.Stint, a.resource); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("api: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /orders", a.require(OrdersRead, a.list))
	mux.Handle("POST /orders", a.require(OrdersWrite, a.add))
	a.server = serve(ctx, l, mux, a.log, a.stint.Close)
	return a, nil
}

// require lets through who has a token for this API with a scope, and tells the
// others what is wanted (RFC 6750 section 3).
func (a *API) require(scope string, next func(http.ResponseWriter, *http.Request, *client.Token)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		token, ok := bearer(r)
		if !ok {
			a.challenge(w, http.StatusUnauthorized) // no error: nothing was shown
			return
		}
		t, err := a.stint.check(r.Context(), token, "ask Stint about the token of "+r.Method+" "+r.URL.Path)
		if err == nil && !t.Has(scope) {
			a.challenge(w, http.StatusForbidden, "error", "insufficient_scope", "scope", scope)
			return
		}
		if err == nil && t.Once { // this is the call that it is for: whoever comes second is refused
			t, err = a.stint.Verify(because(r.Context(), "use up the token, which is for one call"), token.Reveal())
		}
		switch bad := (*client.InvalidToken)(nil); {
		case errors.As(err, &bad):
			a.challenge(w, http.StatusUnauthorized, "error", "invalid_token")
		case err != nil:
			a.unknown(w, r, err)
		default:
			next(w, r, t)
		}
	})
}

// bearer returns the token of a request: RFC 6750 section 2.1, and in no other
// place.
func bearer(r *http.Request) (secret.String, bool) {
	all := r.Header.Values("Authorization")
	if len(all) != 1 {
		return secret.String{}, false
	}
	scheme, token, _ := strings.Cut(all[0], " ")
	return secret.New(token), strings.EqualFold(scheme, "Bearer") && token != ""
}

// challenge refuses, with what is wanted as pairs of name and value.
func (a *API) challenge(w http.ResponseWriter, status int, pairs ...string) {
	text := `Bearer realm="orders"`
	for i := 0; i+1 < len(pairs); i += 2 {
		text += ", " + pairs[i] + "=" + strconv.Quote(pairs[i+1])
	}
	w.Header().Set("WWW-Authenticate", text)
	writeJSON(w, status, map[string]string{"error": strings.ToLower(http.StatusText(status))})
}

// unknown answers when Stint could not say whether a token is good: 503, and not
// 401, so that the caller keeps it and comes again.
func (a *API) unknown(w http.ResponseWriter, r *http.Request, err error) {
	a.log.WarnContext(r.Context(), "token could not be checked", "error", err)
	w.Header().Set("Retry-After", "1")
	writeJSON(w, http.StatusServiceUnavailable, map[string]string{"error": "the token could not be checked; try again"})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// orderList is what GET /orders answers.
type orderList struct {
	Orders []Order `json:"orders"`
}

func (a *API) list(w http.ResponseWriter, _ *http.Request, _ *client.Token) {
	a.mu.Lock()
	out := orderList{append([]Order{}, a.orders...)}
	a.mu.Unlock()
	writeJSON(w, http.StatusOK, out)
}

// newOrder is what POST /orders takes, and the tool add_order.
type newOrder struct {
	Item     string `json:"item" jsonschema:"what is ordered"`
	Quantity int    `json:"quantity" jsonschema:"how many of it, 1 to 1000"`
}

func (o newOrder) check() error {
	if o.Item == "" || len(o.Item) > 100 || o.Quantity < 1 || o.Quantity > 1000 {
		return fmt.Errorf("an order has an item of 1 to 100 bytes and a quantity of 1 to 1000")
	}
	return nil
}

func (a *API) add(w http.ResponseWriter, r *http.Request, t *client.Token) {
	var in newOrder
	body, err := io.ReadAll(r.Body) // bounded by the server
	if err == nil {
		err = json.Unmarshal(body, &in)
	}
	if err == nil {
		err = in.check()
	}
	if err != nil {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.orders) >= maxOrders {
		writeJSON(w, http.StatusConflict, map[string]string{"error": "no more orders are taken"})
		return
	}
	id := 1
	for _, o := range a.orders {
		id = max(id, o.ID+1)
	}
	o := Order{ID: id, Item: in.Item, Quantity: in.Quantity, By: t.Subject, Through: t.Actors}
	a.orders = append(a.orders, o)
	writeJSON(w, http.StatusCreated, o)
}
