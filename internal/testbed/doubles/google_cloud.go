package doubles

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

func s256(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

const (
	cloudPlatform = "https://www.googleapis.com/auth/cloud-platform"
	accessType    = "urn:ietf:params:oauth:token-type:access_token"
)

// camel are the members of the discovery document by the parameters of the form.
var camel = map[string]string{
	"grant_type": "grantType", "requested_token_type": "requestedTokenType", "subject_token": "subjectToken",
	"subject_token_type": "subjectTokenType", "audience": "audience", "scope": "scope", "options": "options",
}

// exchange is STS: it makes a pool's token of an assertion, or draws a boundary.
func (g *Google) exchange(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "" {
		g.odd(w, "sts: there is a header Authorization")
		return
	}
	if err := r.ParseForm(); err != nil {
		g.odd(w, "sts: %v", err)
		return
	}
	names := []string{"grant_type", "requested_token_type", "subject_token", "subject_token_type"}
	if r.PostForm.Get("subject_token_type") == accessType {
		names = append(names, "options")
	} else {
		names = append(names, "audience", "scope")
	}
	f, err := form(r, names...)
	if err == nil && g.STS != nil {
		body := make(map[string]any)
		for name := range f {
			body[camel[name]] = f.Get(name)
		}
		err = g.STS.Check("GoogleIdentityStsV1ExchangeTokenRequest", body)
	}
	if err != nil || f.Get("grant_type") != "urn:ietf:params:oauth:grant-type:token-exchange" || f.Get("requested_token_type") != accessType {
		g.odd(w, "sts: %v: %v", f, err)
		return
	}
	if len(names) == 5 {
		g.bound(w, f)
		return
	}
	g.federate(w, f)
}

func (g *Google) federate(w http.ResponseWriter, f url.Values) {
	claims, err := g.Assertion(f.Get("subject_token"))
	switch {
	case f.Get("audience") != g.Provider:
		refuse(w, "invalid_target")
		return
	case err != nil || claims["aud"] != "https:"+g.Provider || claims["sub"] == "":
		refuse(w, "invalid_grant")
		return
	}
	subject, _ := claims["sub"].(string)
	g.stsAnswer(w, &GoogleToken{Scopes: strings.Split(f.Get("scope"), " "), Account: "principal", Subject: subject, Ends: g.Now().Add(time.Hour)}, true)
}

func (g *Google) stsAnswer(w http.ResponseWriter, t *GoogleToken, says bool) {
	token := "ya29.d." + random()
	g.tokens[token] = t
	body := map[string]any{"access_token": token, "issued_token_type": accessType, "token_type": "Bearer"}
	if says {
		body["expires_in"] = float64(int(t.Ends.Sub(g.Now()) / time.Second))
	}
	if g.STS != nil {
		if err := g.STS.Check("GoogleIdentityStsV1ExchangeTokenResponse", body); err != nil {
			g.strange = append(g.strange, "our own answer: "+err.Error())
		}
	}
	answer(w, http.StatusOK, body)
}

// bound draws a boundary around a token that has none.
func (g *Google) bound(w http.ResponseWriter, f url.Values) {
	var raw any
	var o struct {
		AccessBoundary struct {
			AccessBoundaryRules []BoundaryRule `json:"accessBoundaryRules"`
		} `json:"accessBoundary"`
	}
	text := []byte(f.Get("options"))
	if err := json.Unmarshal(text, &raw); err != nil || json.Unmarshal(text, &o) != nil {
		g.odd(w, "options: %v", err)
		return
	}
	if g.STS != nil {
		if err := g.STS.Check("GoogleIdentityStsV1Options", raw); err != nil {
			g.odd(w, "%v", err)
			return
		}
	}
	rules := o.AccessBoundary.AccessBoundaryRules
	if len(rules) == 0 || len(rules) > 10 || len(text) > 2048+20 {
		g.odd(w, "a boundary of %d rules and %d characters", len(rules), len(text))
		return
	}
	for i := range rules {
		if err := rules[i].compile(); err != nil {
			g.odd(w, "%v", err)
			return
		}
	}
	source := g.good(f.Get("subject_token"))
	if source == nil || source.Boundary != nil || !slices.Contains(source.Scopes, cloudPlatform) {
		refuse(w, "invalid_grant")
		return
	}
	if g.over == GoogleDropsBoundary {
		answer(w, http.StatusOK, map[string]any{"access_token": f.Get("subject_token"), "issued_token_type": accessType, "token_type": "Bearer"})
		return
	}
	bounded := *source
	bounded.Boundary = rules
	if g.over == GoogleBoundaryLasts {
		bounded.Ends = g.Now().Add(2 * time.Hour)
	}
	g.stsAnswer(w, &bounded, true)
}

// credentials is IAM Credentials.
func (g *Google) credentials(w http.ResponseWriter, r *http.Request) {
	account, method, _ := strings.Cut(r.PathValue("call"), ":")
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	as := g.good(bearer)
	denied := func(status int, code string) {
		answer(w, status, map[string]any{"error": map[string]any{"code": status, "message": "upstream text", "status": code}})
	}
	switch {
	case as == nil:
		denied(http.StatusUnauthorized, "UNAUTHENTICATED")
		return
	case as.Subject == "" || account != g.Account:
		denied(http.StatusForbidden, "PERMISSION_DENIED")
		return
	}
	var body map[string]any
	err := json.NewDecoder(r.Body).Decode(&body)
	schema := map[string]string{"generateAccessToken": "GenerateAccessTokenRequest", "signJwt": "SignJwtRequest"}[method]
	if err == nil && g.IAM != nil {
		err = g.IAM.Check(schema, body)
	}
	if err != nil {
		g.strange = append(g.strange, fmt.Sprintf("%s: %v", method, err))
		denied(http.StatusBadRequest, "INVALID_ARGUMENT")
		return
	}
	if method == "signJwt" {
		g.sign(w, as, body, denied)
		return
	}
	g.generate(w, as, body, denied)
}

func (g *Google) generate(w http.ResponseWriter, as *GoogleToken, body map[string]any, denied func(int, string)) {
	text, _ := body["lifetime"].(string)
	life, err := time.ParseDuration(text)
	list, _ := body["scope"].([]any)
	if err != nil || !strings.HasSuffix(text, "s") || strings.ContainsAny(text, "mh.") || life <= 0 || life > time.Hour || len(list) == 0 {
		denied(http.StatusBadRequest, "INVALID_ARGUMENT")
		return
	}
	t := &GoogleToken{Account: g.Account, Subject: "", Client: "117", Ends: g.Now().Add(life).Truncate(time.Second)}
	for _, s := range list {
		t.Scopes = append(t.Scopes, s.(string))
	}
	switch g.over {
	case GoogleAddsScope:
		t.Scopes = append(t.Scopes, "https://www.googleapis.com/auth/youtube")
	case GoogleLastsLonger:
		t.Ends = g.Now().Add(2 * time.Hour)
	}
	token := "ya29.c." + random()
	g.tokens[token] = t
	out := map[string]any{"accessToken": token, "expireTime": t.Ends.UTC().Format(time.RFC3339)}
	if g.IAM != nil {
		if err := g.IAM.Check("GenerateAccessTokenResponse", out); err != nil {
			g.strange = append(g.strange, "our own answer: "+err.Error())
		}
	}
	answer(w, http.StatusOK, out)
}

func (g *Google) sign(w http.ResponseWriter, _ *GoogleToken, body map[string]any, denied func(int, string)) {
	var claims map[string]any
	text, _ := body["payload"].(string)
	if json.Unmarshal([]byte(text), &claims) != nil {
		denied(http.StatusBadRequest, "INVALID_ARGUMENT")
		return
	}
	jwt := "e30." + random() + ".sig"
	g.signed[jwt] = claims
	answer(w, http.StatusOK, map[string]any{"keyId": "k1", "signedJwt": jwt})
}

// delegated makes a user's token of what the service account asserts.
func (g *Google) delegated(w http.ResponseWriter, r *http.Request) {
	f, err := form(r, "grant_type", "assertion")
	if err != nil {
		g.odd(w, "delegation: %v", err)
		return
	}
	c := g.signed[f.Get("assertion")]
	iat, _ := c["iat"].(float64)
	exp, _ := c["exp"].(float64)
	scope, _ := c["scope"].(string)
	sub, _ := c["sub"].(string)
	now := float64(g.Now().Unix())
	if c == nil || c["iss"] != g.Account || c["aud"] != g.URL+"/token" || iat > now || exp <= now || exp > iat+3600 || sub == "" {
		refuse(w, "invalid_grant")
		return
	}
	scopes := strings.Split(scope, " ")
	for _, s := range scopes {
		if !slices.Contains(g.Allowed, s) {
			answer(w, http.StatusUnauthorized, map[string]any{"error": "unauthorized_client", "error_description": "upstream text"})
			return
		}
	}
	g.give(w, &GoogleToken{Scopes: scopes, Account: sub, Client: "117"}, false, nil)
}

// BoundaryRule is a rule of a Credential Access Boundary.
type BoundaryRule struct {
	AvailableResource     string   `json:"availableResource"`
	AvailablePermissions  []string `json:"availablePermissions"`
	AvailabilityCondition struct {
		Expression string `json:"expression"`
	} `json:"availabilityCondition"`

	program cel.Program
}

// permissionsOf are those of Google's roles that are about objects and buckets, as its
// documentation lists them.
var permissionsOf = map[string][]string{
	"roles/storage.legacyObjectReader": {"storage.objects.get"},
	"roles/storage.legacyBucketReader": {"storage.buckets.get", "storage.objects.list", "storage.multipartUploads.list"},
	"roles/storage.legacyBucketWriter": {
		"storage.buckets.get", "storage.objects.create", "storage.objects.delete", "storage.objects.list", "storage.multipartUploads.abort",
		"storage.multipartUploads.create", "storage.multipartUploads.list", "storage.multipartUploads.listParts",
	},
	"roles/storage.objectViewer":  {"storage.objects.get", "storage.objects.list", "storage.managedFolders.get", "storage.managedFolders.list"},
	"roles/storage.objectCreator": {"storage.objects.create", "storage.managedFolders.create", "storage.multipartUploads.create"},
	"roles/storage.objectUser": {
		"storage.objects.get", "storage.objects.list", "storage.objects.create", "storage.objects.delete", "storage.objects.update",
		"storage.objects.restore", "storage.multipartUploads.create",
	},
	"roles/storage.objectAdmin": {
		"storage.objects.get", "storage.objects.list", "storage.objects.create", "storage.objects.delete", "storage.objects.update",
		"storage.objects.setIamPolicy", "storage.objects.getIamPolicy",
	},
}

// conditions is the language of conditions, with what Cloud Storage has in it.
var conditions = func() *cel.Env {
	attributes := cel.MapType(cel.StringType, cel.StringType)
	env, err := cel.NewEnv(
		cel.Variable("resource", cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable("api", attributes),
		cel.Function("getAttribute", cel.MemberOverload("attribute_or", []*cel.Type{attributes, cel.StringType, cel.StringType}, cel.StringType,
			cel.FunctionBinding(func(args ...ref.Val) ref.Val {
				v, found := args[0].(traits.Mapper).Find(args[1])
				if !found {
					return args[2]
				}
				return v
			}))),
	)
	if err != nil {
		panic(err)
	}
	return env
}()

// compile makes the condition ready.
func (b *BoundaryRule) compile() error {
	for _, p := range b.AvailablePermissions {
		if role, ok := strings.CutPrefix(p, "inRole:"); !ok || permissionsOf[role] == nil {
			return fmt.Errorf("%q names no role", p)
		}
	}
	text := b.AvailabilityCondition.Expression
	if len(text) > 2048 || text == "" || len(b.AvailablePermissions) == 0 {
		return fmt.Errorf("a condition of %d characters", len(text))
	}
	ast, issues := conditions.Compile(text)
	if issues.Err() != nil {
		return issues.Err()
	}
	var err error
	b.program, err = conditions.Program(ast)
	return err
}

// Boundary reads the parameter options, for those who only want to know what it allows.
func Boundary(options []byte) ([]BoundaryRule, error) {
	var o struct {
		AccessBoundary struct {
			AccessBoundaryRules []BoundaryRule `json:"accessBoundaryRules"`
		} `json:"accessBoundary"`
	}
	if err := json.Unmarshal(options, &o); err != nil {
		return nil, err
	}
	rules := o.AccessBoundary.AccessBoundaryRules
	for i := range rules {
		if err := rules[i].compile(); err != nil {
			return nil, err
		}
	}
	return rules, nil
}

// StorageRequest is a request to Cloud Storage, as its conditions see it: of an object,
// or of a bucket, with the prefix that is listed.
type StorageRequest struct {
	Permission, Bucket, Object, Prefix string
}

// Within reports whether rules let a request through.
func Within(rules []BoundaryRule, r StorageRequest) (bool, error) {
	name := "projects/_/buckets/" + r.Bucket
	attributes := map[string]string{}
	if r.Object != "" {
		name += "/objects/" + r.Object
	} else {
		attributes["storage.googleapis.com/objectListPrefix"] = r.Prefix
	}
	for _, b := range rules {
		has := slices.ContainsFunc(b.AvailablePermissions, func(p string) bool {
			return slices.Contains(permissionsOf[strings.TrimPrefix(p, "inRole:")], r.Permission)
		})
		if !has || b.AvailableResource != "//storage.googleapis.com/projects/_/buckets/"+r.Bucket {
			continue
		}
		out, _, err := b.program.Eval(map[string]any{"resource": map[string]string{"name": name}, "api": attributes})
		if err != nil {
			return false, err
		}
		if out == types.True {
			return true, nil
		}
	}
	return false, nil
}

// Storage reports whether Cloud Storage lets the holder of a token do something.
func (g *Google) Storage(token string, r StorageRequest) (bool, error) {
	t := g.Token(token)
	switch {
	case t == nil:
		return false, nil
	case t.Boundary == nil: // the service account may do everything
		return slices.Contains(t.Scopes, cloudPlatform), nil
	}
	return Within(t.Boundary, r)
}
