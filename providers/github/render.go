package github

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
	"github.com/stint-dev/stint/scopes/grant"
)

// GitHub takes this many repositories in one request.
const maxRepositories = 500

// order is what GitHub is asked for, and whose. Body is sent as it stands.
type order struct {
	// Owner is the account's id, and All says that the token is for all repositories of
	// the installation there, so that the body names none.
	Owner string `json:"owner"`
	All   bool   `json:"all"`
	Body  body   `json:"body"`
}

// body is a request for a token. Nothing in it is left out: a list without repositories
// would be all of them.
type body struct {
	Permissions  map[string]string
	Repositories []int64  // by id
	Names        []string // for whoever asks what would be, and has no ids
}

// encode writes what is sent.
func (b body) encode() ([]byte, error) {
	out := map[string]any{"permissions": b.Permissions}
	switch {
	case len(b.Repositories) > 0 && len(b.Names) == 0:
		out["repository_ids"] = b.Repositories
	case len(b.Names) > 0 && len(b.Repositories) == 0:
		out["repositories"] = b.Names
	case len(b.Names) > 0:
		return nil, errors.New("repositories both by id and by name")
	}
	return strictjson.Encode(out)
}

// Render implements [broker.Provider].
func (p *provider) Render(g grant.Grant) ([]byte, error) {
	allRepositories, repositories := g.Dimension("repositories")
	allPermissions, permissions := g.Dimension("permissions")
	allAccount, account := g.Dimension("account")
	switch {
	case g.IsNothing():
		return nil, errors.New("nothing is never asked for")
	case allRepositories || allPermissions || allAccount:
		return nil, fmt.Errorf("everything has to be spelled: %w", broker.ErrInexpressible)
	case len(repositories) > maxRepositories:
		return nil, fmt.Errorf("more than %d repositories: %w", maxRepositories, broker.ErrInexpressible)
	}
	o := order{Body: body{Permissions: make(map[string]string)}}
	for _, a := range slices.Concat(permissions, account) {
		o.Body.Permissions[a[0]] = a[1]
	}
	for _, a := range repositories {
		who, what, _ := strings.Cut(a[0], "/")
		switch {
		case o.Owner != "" && who != o.Owner:
			return nil, fmt.Errorf("a token is of one owner, and these are of %s and %s: %w", o.Owner, who, broker.ErrInexpressible)
		case o.All:
			return nil, fmt.Errorf("all of an owner's and one more: %w", broker.ErrInexpressible)
		}
		o.Owner, o.All = who, what == "*"
		if id, err := strconv.ParseInt(what, 10, 64); err == nil && id > 0 && isID(who) && strconv.FormatInt(id, 10) == what {
			o.Body.Repositories = append(o.Body.Repositories, id)
		} else if !o.All {
			o.Body.Names = append(o.Body.Names, what)
		}
	}
	slices.Sort(o.Body.Repositories)
	sent, err := o.Body.encode()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, broker.ErrInexpressible)
	}
	return fmt.Appendf(nil, `{"all":%t,"body":%s,"owner":%s}`, o.All, sent, strictjson.AppendString(nil, o.Owner)), nil
}

func isID(s string) bool { return s != "" && len(s) < 20 && strings.Trim(s, "0123456789") == "" }

// Parse implements [broker.Provider].
func (p *provider) Parse(rendered []byte) (grant.Grant, error) {
	o, err := parseOrder(rendered)
	if err != nil {
		return grant.Grant{}, err
	}
	var repositories []any
	for _, id := range o.Body.Repositories {
		repositories = append(repositories, fmt.Sprintf("%s/%d", o.Owner, id))
	}
	for _, name := range o.Body.Names {
		repositories = append(repositories, o.Owner+"/"+name)
	}
	if o.All {
		repositories = []any{o.Owner + "/*"}
	}
	return grantOf(repositories, o.Body.Permissions)
}

// parseOrder reads what Render wrote, and refuses anything that is not in it.
func parseOrder(rendered []byte) (o order, err error) {
	var in struct {
		Owner *string        `json:"owner"`
		All   *bool          `json:"all"`
		Body  map[string]any `json:"body"`
	}
	if err := strictjson.Decode(rendered, &in); err != nil {
		return o, err
	}
	if in.Owner == nil || in.All == nil || *in.Owner == "" || strings.ContainsAny(*in.Owner, "/*") {
		return o, errors.New("the order is not complete")
	}
	o.Owner, o.All = *in.Owner, *in.All
	for name, v := range in.Body {
		switch name {
		case "permissions":
			err = o.Body.readPermissions(v)
		case "repository_ids":
			err = o.Body.readIDs(v)
		case "repositories":
			err = o.Body.readNames(v)
		default:
			err = fmt.Errorf("%q is none of the parameters", name)
		}
		if err != nil {
			return o, err
		}
	}
	if listed := len(o.Body.Repositories) + len(o.Body.Names); o.All != (listed == 0) || len(o.Body.Permissions) == 0 || listed > maxRepositories {
		return o, errors.New("all of an owner's are asked for by naming none, and nothing else is")
	}
	return o, nil
}

func (b *body) readPermissions(v any) error {
	m, ok := v.(map[string]any)
	b.Permissions = make(map[string]string, len(m))
	for key, level := range m {
		text, isText := level.(string)
		if b.Permissions[key] = text; !isText {
			ok = false
		}
	}
	if !ok {
		return errors.New("permissions are an object of levels")
	}
	return nil
}

func (b *body) readIDs(v any) error {
	list, ok := v.([]any)
	for _, e := range list {
		id, isNumber := e.(float64)
		if ok = ok && isNumber && id == float64(int64(id)) && id > 0 && id < 1<<53 && !slices.Contains(b.Repositories, int64(id)); !ok {
			break
		}
		b.Repositories = append(b.Repositories, int64(id))
	}
	if !ok || len(list) == 0 || !slices.IsSorted(b.Repositories) {
		return errors.New("repository_ids is a list of ids")
	}
	return nil
}

func (b *body) readNames(v any) error {
	list, ok := v.([]any)
	for _, e := range list {
		name, isText := e.(string)
		if ok = ok && isText && isName(name); !ok {
			break
		}
		b.Names = append(b.Names, name)
	}
	if !ok || len(list) == 0 {
		return errors.New("repositories is a list of names")
	}
	return nil
}

// grantOf is the grant of some repositories and permissions, as GitHub calls them.
func grantOf(repositories []any, permissions map[string]string) (grant.Grant, error) {
	on, account := make(map[string]any), make(map[string]any)
	for _, key := range slices.Sorted(maps.Keys(permissions)) {
		switch {
		case repositoryPermissions[key] != nil:
			on[key] = permissions[key]
		case accountPermissions[key] != nil:
			account[key] = permissions[key]
		default:
			return grant.Grant{}, fmt.Errorf("there is no permission %q", key)
		}
	}
	g, err := schema.ParseValue(map[string]any{"repositories": repositories, "permissions": on, "account": account})
	if err == nil && g.IsNothing() {
		err = errors.New("no repository, or no permission on one")
	}
	return g, err
}
