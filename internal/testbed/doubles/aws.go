// Package doubles are upstreams that cannot be had for tests: strict ones, which refuse
// what the real ones refuse and what no request of ours should have, and which can be told
// to give more than they are asked for.
package doubles

import (
	"bytes"
	"crypto/rand"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// AWS is a double of STS and IAM. It knows roles, whose sessions are narrowed by session
// policies, which an engine that is not ours decides about, and denied by inline policies.
type AWS struct {
	URL string
	Now func() time.Time
	// Verify returns the claims of a token of the issuer that roles trust.
	Verify func(token string) (map[string]any, error)
	// Keys are the secrets of users, by the ids of their keys.
	Keys map[string]string
	// Issue makes the keys of a session, at a server that enforces its policy and is
	// asked the same; nil: they are good at this double alone, by [AWS.Allowed].
	Issue func(r *http.Request, body []byte) (id, key, token string, expires time.Time, err error)
	// MaxPacked is how many characters policy and tags may have together. Zero: 4096.
	MaxPacked int
	// Roles are by their ARNs.
	Roles map[string]AWSRole

	// Variant is what is wrong with the double's sessions, but for those that change
	// policies: see the constants.
	Variant string
	// Refuse is a code that the next requests are refused with, and Lose says that the
	// answers to policies that are written are lost.
	Refuse string
	Lose   bool

	mu       sync.Mutex
	sessions []*AWSSession
	inline   map[string]map[string]string // role name, policy name, document
	puts     int
	region   string
}

// AWSRole is a role.
type AWSRole struct {
	ID         string
	Longest    time.Duration
	ExternalID string
	// Policy is what the role itself allows; empty: everything at S3.
	Policy string
}

// AWSSession is a session of a role, with what it was asked for with.
type AWSSession struct {
	ARN, ID, SourceIdentity, Policy string
	Role, Name                      string
	Tags                            map[string]string
	Transitive                      []string
	Expires                         time.Time
	Key, Secret, Token              string
}

// What can be wrong with the double.
const (
	AWSLonger        = "a session that lives an hour longer"
	AWSOtherRole     = "a session of another role"
	AWSOtherLease    = "a session of another lease"
	AWSOtherIdentity = "a session of another subject"
	AWSNoIdentity    = "a session of nobody"
	AWSTwoKeys       = "two sessions in one answer"
	AWSNoExpiry      = "a session that does not say when it ends"
)

// NewAWS starts a double.
func NewAWS(t testing.TB) *AWS {
	t.Helper()
	a := &AWS{Now: time.Now, Keys: map[string]string{}, Roles: map[string]AWSRole{}, inline: map[string]map[string]string{}, region: "eu-west-1"}
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	a.URL = s.URL + "/"
	return a
}

// Sessions are those that there are.
func (a *AWS) Sessions() []*AWSSession {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.sessions)
}

// Inline returns a role's inline policy, and how often any was written.
func (a *AWS) Inline(role, name string) (document string, puts int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inline[role][name], a.puts
}

type refusal struct{ code, why string }

func (r refusal) Error() string { return r.code + ": " + r.why }

func invalid(format string, args ...any) error {
	return refusal{"ValidationError", fmt.Sprintf(format, args...)}
}

// ServeHTTP implements [http.Handler].
func (a *AWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := a.serve(r)
	w.Header().Set("Content-Type", "text/xml")
	if err != nil {
		no, ok := err.(refusal)
		if !ok {
			no = refusal{"InternalFailure", err.Error()}
		}
		status := http.StatusBadRequest
		if no.code == "InternalFailure" {
			status = http.StatusInternalServerError
		}
		if no.code == "AccessDenied" || no.code == "SignatureDoesNotMatch" {
			status = http.StatusForbidden
		}
		w.WriteHeader(status)
		answer = node{"ErrorResponse", []node{{"Error", []node{{"Type", "Sender"}, {"Code", no.code}, {"Message", no.why + " (a text that is to reach nobody)"}}}, {"RequestId", "0"}}}
	}
	_, _ = io.WriteString(w, answer.xml())
}

// node is an element of an answer.
type node struct {
	name string
	in   any // a text, or nodes
}

func (n node) xml() string {
	var b bytes.Buffer
	switch in := n.in.(type) {
	case string:
		_ = xml.EscapeText(&b, []byte(in))
	case []node:
		for _, c := range in {
			b.WriteString(c.xml())
		}
	}
	return "<" + n.name + ">" + b.String() + "</" + n.name + ">"
}

// parameters are those that each action takes: of those that end in a dot there are many.
var parameters = map[string][]string{
	"AssumeRole": {"RoleArn", "RoleSessionName", "DurationSeconds", "Policy", "ExternalId", "SourceIdentity",
		"Tags.member.", "TransitiveTagKeys.member."},
	"AssumeRoleWithWebIdentity": {"RoleArn", "RoleSessionName", "DurationSeconds", "Policy", "WebIdentityToken"},
	"PutRolePolicy":             {"RoleName", "PolicyName", "PolicyDocument"},
}

func (a *AWS) serve(r *http.Request) (node, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return node{}, err
	}
	f, err := url.ParseQuery(string(body))
	a.mu.Lock()
	defer a.mu.Unlock()
	switch action := f.Get("Action"); {
	case err != nil || r.Method != http.MethodPost || r.URL.Path != "/" || r.URL.RawQuery != "" ||
		!strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded"):
		return node{}, refusal{"InvalidAction", "this is no request"}
	case parameters[action] == nil:
		return node{}, refusal{"InvalidAction", action}
	case a.Refuse != "":
		return node{}, refusal{a.Refuse, "as it was told to"}
	}
	for name, values := range f {
		known := name == "Action" || name == "Version" || slices.ContainsFunc(parameters[f.Get("Action")], func(p string) bool {
			return p == name || strings.HasSuffix(p, ".") && strings.HasPrefix(name, p)
		})
		if !known || len(values) != 1 || values[0] == "" {
			return node{}, invalid("%s is not known, empty, or there twice", name)
		}
	}
	switch f.Get("Action") {
	case "PutRolePolicy":
		return a.putRolePolicy(r, body, f)
	case "AssumeRole":
		return a.assumeRole(r, body, f)
	}
	return a.assumeWebIdentity(r, body, f)
}

var (
	sessionName = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
	tagText     = regexp.MustCompile(`^[A-Za-z0-9 _.:/=+@-]+$`)
)

func (a *AWS) assumeRole(r *http.Request, body []byte, f url.Values) (node, error) {
	if err := a.signed(r, body, "sts", a.Keys, ""); err != nil {
		return node{}, err
	}
	s := &AWSSession{SourceIdentity: f.Get("SourceIdentity"), Tags: map[string]string{}}
	for i := 1; f.Has(fmt.Sprintf("Tags.member.%d.Key", i)); i++ {
		key := f.Get(fmt.Sprintf("Tags.member.%d.Key", i))
		s.Tags[key] = f.Get(fmt.Sprintf("Tags.member.%d.Value", i))
		if t := f.Get(fmt.Sprintf("TransitiveTagKeys.member.%d", i)); t != "" {
			s.Transitive = append(s.Transitive, t)
		}
	}
	n := 0
	for name := range f {
		if strings.HasPrefix(name, "Tags.") || strings.HasPrefix(name, "Transitive") {
			n++
		}
	}
	if n != 2*len(s.Tags)+len(s.Transitive) {
		return node{}, invalid("tags that are not counted from 1")
	}
	if role := a.Roles[f.Get("RoleArn")]; role.ExternalID != f.Get("ExternalId") {
		return node{}, refusal{"AccessDenied", "external id"}
	}
	return a.begin(r, body, f, s, "")
}

func (a *AWS) assumeWebIdentity(r *http.Request, body []byte, f url.Values) (node, error) {
	if r.Header.Get("Authorization") != "" {
		return node{}, invalid("this request is not signed")
	}
	claims, err := a.Verify(f.Get("WebIdentityToken"))
	if err != nil {
		return node{}, refusal{"InvalidIdentityToken", err.Error()}
	}
	sub, _ := claims["sub"].(string)
	exp, _ := claims["exp"].(float64)
	switch {
	case claims["aud"] != "sts.amazonaws.com":
		return node{}, refusal{"InvalidIdentityToken", "audience"}
	case sub == "" || claims["jti"] == nil || claims["iat"] == nil:
		return node{}, refusal{"InvalidIdentityToken", "claims are missing"}
	case exp <= float64(a.Now().Unix()):
		return node{}, refusal{"ExpiredTokenException", "exp"}
	case f.Has("DurationSeconds") && exp > float64(a.Now().Add(time.Hour).Unix()):
		return node{}, refusal{"IDPRejectedClaim", "a token that lives too long"}
	}
	s := &AWSSession{Tags: map[string]string{}}
	s.SourceIdentity, _ = claims["https://aws.amazon.com/source_identity"].(string)
	tags, _ := claims["https://aws.amazon.com/tags"].(map[string]any)
	principal, _ := tags["principal_tags"].(map[string]any)
	for key, v := range principal {
		list, _ := v.([]any)
		if len(list) != 1 {
			return node{}, refusal{"IDPRejectedClaim", "a tag has one value, in a list"}
		}
		s.Tags[key], _ = list[0].(string)
	}
	transitive, _ := tags["transitive_tag_keys"].([]any)
	for _, t := range transitive {
		key, _ := t.(string)
		s.Transitive = append(s.Transitive, key)
	}
	return a.begin(r, body, f, s, sub)
}

// begin makes a session, if all that is asked for can be.
func (a *AWS) begin(r *http.Request, body []byte, f url.Values, s *AWSSession, subject string) (node, error) {
	s.Role, s.Name, s.Policy = f.Get("RoleArn"), f.Get("RoleSessionName"), f.Get("Policy")
	role, known := a.Roles[s.Role]
	seconds, err := strconv.Atoi(f.Get("DurationSeconds"))
	life := time.Duration(seconds) * time.Second
	packed := len(s.Policy)
	for key, v := range s.Tags {
		packed += len(key) + len(v)
		if !tagText.MatchString(key) || !tagText.MatchString(v) || len(key) > 128 || len(v) > 256 {
			return node{}, invalid("the tag %q", key)
		}
	}
	for _, t := range s.Transitive {
		if _, ok := s.Tags[t]; !ok {
			return node{}, invalid("%s is transitive, and no tag", t)
		}
	}
	most := a.MaxPacked
	if most == 0 {
		most = 4096
	}
	switch {
	case !known:
		return node{}, refusal{"AccessDenied", "no such role"}
	case f.Get("Version") != "2011-06-15":
		return node{}, invalid("version")
	case err != nil || life < 15*time.Minute || life > role.Longest:
		return node{}, invalid("DurationSeconds %q", f.Get("DurationSeconds"))
	case !sessionName.MatchString(s.Name) || s.SourceIdentity != "" && !sessionName.MatchString(s.SourceIdentity):
		return node{}, invalid("names")
	case s.Policy == "":
		return node{}, fmt.Errorf("a session without a policy: no request of ours is to be one")
	case len(s.Policy) > 2048:
		return node{}, invalid("Policy has %d characters", len(s.Policy))
	case packed > most:
		return node{}, refusal{"PackedPolicyTooLarge", fmt.Sprintf("%d characters", packed)}
	}
	if err := wellFormed(s.Policy); err != nil {
		return node{}, refusal{"MalformedPolicyDocument", err.Error()}
	}
	s.Expires = a.Now().Add(life).Truncate(time.Second)
	s.Key, s.Secret, s.Token = "ASIA"+rand.Text()[:16], rand.Text(), rand.Text()+rand.Text()
	if a.Issue != nil {
		if s.Key, s.Secret, s.Token, s.Expires, err = a.Issue(r, body); err != nil {
			return node{}, err
		}
	}
	account := strings.Split(s.Role, ":")[4]
	s.ARN = "arn:aws:sts::" + account + ":assumed-role/" + s.Role[strings.LastIndex(s.Role, "/")+1:] + "/" + s.Name
	s.ID = role.ID + ":" + s.Name
	a.sessions = append(a.sessions, s)
	return a.answer(f.Get("Action"), *s, subject), nil
}

// answer writes what is said of a session, which with a variant is not what there is.
func (a *AWS) answer(action string, s AWSSession, subject string) node {
	variant := a.Variant
	if strings.Contains(s.Policy, "iam:PutRolePolicy") {
		variant = ""
	}
	switch variant {
	case AWSLonger:
		s.Expires = s.Expires.Add(time.Hour)
	case AWSOtherRole:
		s.ARN = strings.Replace(s.ARN, "/"+s.Role[strings.LastIndex(s.Role, "/")+1:]+"/", "/Administrator/", 1)
	case AWSOtherLease:
		s.ARN, s.ID = s.ARN+"x", s.ID+"x"
	case AWSOtherIdentity:
		s.SourceIdentity = "somebody-else"
	case AWSNoIdentity:
		s.SourceIdentity = ""
	}
	keys := node{"Credentials", []node{
		{"AccessKeyId", s.Key}, {"SecretAccessKey", s.Secret}, {"SessionToken", s.Token}, {"Expiration", s.Expires.UTC().Format(time.RFC3339)},
	}}
	if variant == AWSNoExpiry {
		keys.in = keys.in.([]node)[:3]
	}
	result := []node{keys, {"AssumedRoleUser", []node{{"Arn", s.ARN}, {"AssumedRoleId", s.ID}}}, {"PackedPolicySize", "10"}}
	if variant == AWSTwoKeys {
		result = append(result, keys)
	}
	if s.SourceIdentity != "" {
		result = append(result, node{"SourceIdentity", s.SourceIdentity})
	}
	if action == "AssumeRoleWithWebIdentity" {
		result = append(result, node{"SubjectFromWebIdentityToken", subject}, node{"Audience", "sts.amazonaws.com"}, node{"Provider", "stint.example"})
	}
	return node{action + "Response", []node{{action + "Result", result}, {"ResponseMetadata", []node{{"RequestId", "0"}}}}}
}
