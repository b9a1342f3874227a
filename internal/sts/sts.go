// Package sts asks for temporary credentials by the query API that AWS's Security Token
// Service has, and object stores that speak like it: AssumeRole, signed, and
// AssumeRoleWithWebIdentity. It signs requests and URLs (Signature Version 4), and
// writes and reads session policies.
//
// It sends no request without a session policy: a session without one has everything
// that its role has.
package sts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
	"github.com/stint-dev/stint/internal/upstream"
)

// The shortest session that there is, and the longest.
const (
	MinLife = 15 * time.Minute
	MaxLife = 12 * time.Hour
)

// Keys are what requests are signed with.
type Keys struct {
	ID              string
	Secret, Session secret.String
}

// Service is a service that speaks the query API.
type Service struct {
	Endpoint, Region string
	Client           *upstream.Client
	Now              func() time.Time
}

// Tag is a session tag.
type Tag struct{ Key, Value string }

// Role is what is asked for: a session of a role, narrowed by a policy.
type Role struct {
	ARN, Session, Policy string
	Life                 time.Duration
	// ExternalID, SourceIdentity and Tags go with keys; with a web identity they stand
	// in its token. All tags are transitive.
	ExternalID, SourceIdentity string
	Tags                       []Tag
}

// Session is what was answered.
type Session struct {
	Keys    Keys
	Expires time.Time
	// ARN is that of the session, and ID the role's id with the session's name.
	ARN, ID, SourceIdentity string
	// Subject and Audience are those of the token, of a session by a web identity.
	Subject, Audience string
}

// name is what a session and a source identity may be called.
var name = regexp.MustCompile(`^[A-Za-z0-9_+=,.@-]{2,64}$`)

// form writes what both calls have in common.
func (r Role) form(action string) (url.Values, error) {
	switch {
	case r.Policy == "":
		return nil, errors.New("no session without a policy")
	case len(r.Policy) > MaxPolicy:
		return nil, fmt.Errorf("a policy of %d characters", len(r.Policy))
	case r.Life < MinLife || r.Life > MaxLife:
		return nil, fmt.Errorf("no session of %s", r.Life)
	case !name.MatchString(r.Session) || r.SourceIdentity != "" && !name.MatchString(r.SourceIdentity):
		return nil, fmt.Errorf("%q or %q is no name of a session", r.Session, r.SourceIdentity)
	}
	f := url.Values{
		"Action": {action}, "Version": {"2011-06-15"}, "Policy": {r.Policy}, "RoleSessionName": {r.Session},
		"DurationSeconds": {strconv.FormatInt(int64(r.Life/time.Second), 10)},
	}
	if r.ARN != "" {
		f.Set("RoleArn", r.ARN)
	}
	return f, nil
}

// AssumeRole asks for a session by a request that is signed.
func (s *Service) AssumeRole(ctx context.Context, k Keys, r Role) (*Session, error) {
	f, err := r.form("AssumeRole")
	if err != nil {
		return nil, err
	}
	if r.ExternalID != "" {
		f.Set("ExternalId", r.ExternalID)
	}
	if r.SourceIdentity != "" {
		f.Set("SourceIdentity", r.SourceIdentity)
	}
	for i, t := range r.Tags {
		n := strconv.Itoa(i + 1)
		f.Set("Tags.member."+n+".Key", t.Key)
		f.Set("Tags.member."+n+".Value", t.Value)
		f.Set("TransitiveTagKeys.member."+n, t.Key)
	}
	answer, err := s.Call(ctx, "sts", &k, f)
	if err != nil {
		return nil, err
	}
	return session(answer, "AssumeRole")
}

// AssumeRoleWithWebIdentity asks for a session by a token, which says who it is for.
func (s *Service) AssumeRoleWithWebIdentity(ctx context.Context, token secret.String, r Role) (*Session, error) {
	f, err := r.form("AssumeRoleWithWebIdentity")
	if err != nil {
		return nil, err
	}
	if r.ExternalID != "" || r.SourceIdentity != "" || len(r.Tags) > 0 {
		return nil, errors.New("whom it is for stands in the token")
	}
	f.Set("WebIdentityToken", token.Reveal())
	answer, err := s.Call(ctx, "sts", nil, f)
	if err != nil {
		return nil, err
	}
	return session(answer, "AssumeRoleWithWebIdentity")
}

// Call sends a form, signed for a service if there are keys, and returns what was
// answered with 200.
func (s *Service) Call(ctx context.Context, service string, k *Keys, f url.Values) ([]byte, error) {
	body := []byte(f.Encode())
	header := http.Header{"Content-Type": {"application/x-www-form-urlencoded; charset=utf-8"}, "Accept": {"application/xml"}}
	if k != nil {
		signed, err := s.sign(ctx, service, *k, header, body)
		if err != nil {
			return nil, err
		}
		header = signed
	}
	a, err := s.Client.Do(ctx, upstream.Request{Method: http.MethodPost, URL: s.Endpoint, Header: header, Body: body})
	if err != nil {
		return nil, err
	}
	if a.Status != http.StatusOK {
		return nil, refusal(a)
	}
	return a.Body, nil
}

// session reads the answer to an action.
func session(answer []byte, action string) (*Session, error) {
	lost := func(err error) error {
		return fmt.Errorf("%s: %w: %w", action, err, upstream.ErrUncertain) // there is a session
	}
	root, err := parse(answer)
	if err != nil {
		return nil, lost(err)
	}
	result, err := root.only(action+"Response", action+"Result")
	if err != nil {
		return nil, lost(err)
	}
	c, err := result.only(result.name, "Credentials")
	if err != nil {
		return nil, lost(err)
	}
	out := &Session{
		Keys:           Keys{ID: c.text("AccessKeyId"), Secret: secret.New(c.text("SecretAccessKey")), Session: secret.New(c.text("SessionToken"))},
		SourceIdentity: result.text("SourceIdentity"), Subject: result.text("SubjectFromWebIdentityToken"), Audience: result.text("Audience"),
	}
	if who, err := result.only(result.name, "AssumedRoleUser"); err == nil {
		out.ARN, out.ID = who.text("Arn"), who.text("AssumedRoleId")
	}
	if out.Expires, err = time.Parse(time.RFC3339, c.text("Expiration")); err != nil {
		return nil, lost(errors.New("it does not say when it ends"))
	}
	if out.Keys.ID == "" || out.Keys.Secret.Empty() || out.Keys.Session.Empty() {
		return nil, lost(errors.New("keys are missing"))
	}
	return out, nil
}

// reasons are what refusals mean, by their codes, whose text reaches nobody.
var reasons = map[string]struct {
	code broker.Code
	why  string
}{
	"PackedPolicyTooLarge":       {broker.BadScope, "the session policy and the tags are too large together; name less"},
	"MalformedPolicyDocument":    {broker.BadScope, "the upstream cannot read the session policy"},
	"Throttling":                 {broker.Limited, "the upstream asks us to wait"},
	"ThrottlingException":        {broker.Limited, "the upstream asks us to wait"},
	"RequestLimitExceeded":       {broker.Limited, "the upstream asks us to wait"},
	"AccessDenied":               {broker.Unavailable, "the upstream does not let us assume this role"},
	"ExpiredToken":               {broker.Unavailable, "the upstream takes our token for expired"},
	"ExpiredTokenException":      {broker.Unavailable, "the upstream takes our token for expired"},
	"RegionDisabledException":    {broker.Unavailable, "the upstream's region is disabled"},
	"RegionDisabled":             {broker.Unavailable, "the upstream's region is disabled"},
	"IDPRejectedClaim":           {broker.Unavailable, "the upstream rejects a claim of our token"},
	"InvalidIdentityToken":       {broker.Unavailable, "the upstream does not accept our token"},
	"IDPCommunicationError":      {broker.Unavailable, "the upstream cannot reach our metadata"},
	"ValidationError":            {broker.Unavailable, "the upstream does not accept the request"},
	"InvalidParameterValue":      {broker.Unavailable, "the upstream does not accept the request"},
	"InvalidClientTokenId":       {broker.Unavailable, "the upstream does not know our keys"},
	"SignatureDoesNotMatch":      {broker.Unavailable, "the upstream does not accept our signature"},
	"NoSuchEntity":               {broker.Unavailable, "the upstream has no such role"},
	"LimitExceeded":              {broker.Unavailable, "the upstream has no room for the policy"},
	"ConcurrentModification":     {broker.Unavailable, "the upstream is being changed"},
	"UnmodifiableEntity":         {broker.Unavailable, "the upstream does not let us change the role"},
	"ServiceFailure":             {broker.Unavailable, "the upstream does not answer"},
	"InternalFailure":            {broker.Unavailable, "the upstream does not answer"},
	"IncompleteSignature":        {broker.Unavailable, "the upstream does not accept our signature"},
	"RequestExpired":             {broker.Unavailable, "the upstream's clock and ours differ"},
	"OptInRequired":              {broker.Unavailable, "the upstream does not let us in"},
	"MissingAuthenticationToken": {broker.Unavailable, "the upstream does not let us in"},
}

// ErrRefused is wrapped by errors for what was refused: nothing came of it.
var ErrRefused = errors.New("refused")

// refusal is the error for an answer that is none of success.
func refusal(a *upstream.Answer) error {
	code := ""
	if root, err := parse(a.Body); err == nil {
		if e, err := root.only("ErrorResponse", "Error"); err == nil {
			code = e.text("Code")
		}
	}
	known, ok := reasons[code]
	if !ok {
		known.code, known.why, code = broker.Unavailable, "the upstream refuses", "a code that is not known"
	}
	e := broker.Fail(known.code, fmt.Errorf("%w with status %d and %s", ErrRefused, a.Status, code), known.why)
	if known.code == broker.Limited {
		e.RetryAfter = max(upstream.RetryAfter(a.Header), time.Second)
	}
	return e
}

// CheckEndpoint says what is wrong with the address of a service: it is https, or http
// at loopback, with a path that is empty or "/".
func CheckEndpoint(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Path != "" && u.Path != "/":
		return nil, fmt.Errorf("%q is no address such as https://sts.eu-west-1.amazonaws.com/", text)
	case u.Scheme == "http" && !loopback(u.Hostname()), u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%q is not https", text)
	}
	return u, nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}
