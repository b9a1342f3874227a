package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/strictjson"
)

// place is the path in Vault of a secret's data or metadata.
func (c *client) place(kind, path string) string {
	if path == "" {
		return c.mount + "/" + kind + "/" + c.prefix
	}
	return c.mount + "/" + kind + "/" + c.prefix + "/" + path
}

// kvData is what KV version 2 answers when it is read.
type kvData struct {
	Data     map[string]json.RawMessage `json:"data"`
	Metadata struct {
		Version int `json:"version"`
	} `json:"metadata"`
}

func (c *client) Read(ctx context.Context, path string) (Fields, int, error) {
	if err := checkPath(path); err != nil {
		return nil, 0, err
	}
	a, err := c.ask(ctx, c.timeout, request{method: http.MethodGet, path: c.place("data", path)})
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", path, gone(err))
	}
	var kv kvData
	if err := a.decode(&kv); err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", path, err)
	}
	if kv.Metadata.Version < 1 {
		return nil, 0, fmt.Errorf("read %s: %s is not KV version 2", path, c.mount)
	}
	return fieldsOf(kv.Data), kv.Metadata.Version, nil
}

// gone adds to a refusal whether there was something once: then a new one cannot
// simply be made, and somebody has to say what is meant.
func gone(err error) error {
	var kv kvData
	r := (*refusal)(nil)
	if errors.As(err, &r) && len(r.data) > 0 && strictjson.DecodeKnown(r.data, &kv) == nil && kv.Metadata.Version > 0 {
		return fmt.Errorf("version %d was deleted: undelete it, or remove its metadata: %w", kv.Metadata.Version, err)
	}
	return err
}

// fieldsOf takes texts as they are, and anything else as the JSON that it is.
func fieldsOf(data map[string]json.RawMessage) Fields {
	f := make(Fields, len(data))
	for name, value := range data {
		text, isText := strictjson.Text(value)
		if !isText {
			text = string(value)
		}
		f[name] = secret.New(text)
	}
	return f
}

func (c *client) Write(ctx context.Context, path string, f Fields, cas int) (int, error) {
	if err := errors.Join(checkPath(path), checkFields(f)); err != nil {
		return 0, err
	}
	r := request{method: http.MethodPut, path: c.place("data", path)}
	data := make(map[string]string, len(f))
	for name, value := range f {
		data[name] = value.Reveal()
		r.secrets = append(r.secrets, value)
	}
	r.body = map[string]any{"data": data, "options": map[string]int{"cas": cas}}
	a, err := c.ask(ctx, c.timeout, r)
	if says(err, http.StatusBadRequest, "check-and-set parameter did not match") {
		return 0, fmt.Errorf("write %s: not at version %d: %w: %w", path, cas, broker.ErrConflict, err)
	}
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", path, err)
	}
	var written struct {
		Version int `json:"version"`
	}
	if err := a.decode(&written); err != nil {
		return 0, fmt.Errorf("write %s: %w", path, err)
	}
	if written.Version != cas+1 {
		return 0, fmt.Errorf("write %s: made version %d of version %d", path, written.Version, cas)
	}
	return written.Version, nil
}

func (c *client) Delete(ctx context.Context, path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	// Deleting the data would only hide the last version.
	_, err := c.ask(ctx, c.timeout, request{method: http.MethodDelete, path: c.place("metadata", path)})
	if err != nil {
		return fmt.Errorf("delete %s: %w", path, err)
	}
	return nil
}

func (c *client) List(ctx context.Context, path string) ([]string, error) {
	if path != "" {
		if err := checkPath(path); err != nil {
			return nil, err
		}
	}
	a, err := c.ask(ctx, c.timeout, request{
		method: http.MethodGet, path: c.place("metadata", path) + "/", query: url.Values{"list": {"true"}},
	})
	if errors.Is(err, broker.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", path, err)
	}
	var list struct {
		Keys []string `json:"keys"`
	}
	if err := a.decode(&list); err != nil {
		return nil, fmt.Errorf("list %q: %w", path, err)
	}
	slices.Sort(list.Keys)
	return list.Keys, nil
}

var _ Store = (*client)(nil)
