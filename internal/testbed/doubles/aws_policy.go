package doubles

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/minio/pkg/v3/policy"
	"github.com/minio/pkg/v3/wildcard"
)

// putRolePolicy writes an inline policy, for a session that may.
func (a *AWS) putRolePolicy(r *http.Request, body []byte, f url.Values) (node, error) {
	id, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential="), "/")
	i := slices.IndexFunc(a.sessions, func(s *AWSSession) bool { return s.Key == id })
	if i < 0 {
		return node{}, refusal{"InvalidClientTokenId", "no such session"}
	}
	s := a.sessions[i]
	if err := a.signed(r, body, "iam", map[string]string{s.Key: s.Secret}, s.Token); err != nil {
		return node{}, err
	}
	target := ""
	for arn := range a.Roles {
		if arn[strings.LastIndex(arn, "/")+1:] == f.Get("RoleName") {
			target = arn
		}
	}
	var own struct {
		Statement []struct{ Action, Resource []string }
	}
	switch err := json.Unmarshal([]byte(s.Policy), &own); {
	case err != nil || len(own.Statement) != 1 || !slices.Equal(own.Statement[0].Action, []string{"iam:PutRolePolicy"}) || !slices.Equal(own.Statement[0].Resource, []string{target}):
		return node{}, refusal{"AccessDenied", "the session may not, or may more"}
	case s.Role == target:
		return node{}, refusal{"AccessDenied", "a role that changes itself"}
	case f.Get("Version") != "2010-05-08" || !json.Valid([]byte(f.Get("PolicyDocument"))) || len(f.Get("PolicyDocument")) > 10240:
		return node{}, refusal{"MalformedPolicyDocument", "no policy, or one of more than 10240 characters"}
	}
	name := f.Get("RoleName")
	if a.inline[name] == nil {
		a.inline[name] = map[string]string{}
	}
	a.inline[name][f.Get("PolicyName")] = f.Get("PolicyDocument")
	a.puts++
	if a.Lose {
		return node{}, refusal{"InternalFailure", "after it was written"}
	}
	return node{"PutRolePolicyResponse", []node{{"ResponseMetadata", []node{{"RequestId", "0"}}}}}, nil
}

// signed checks a signature by making it again.
func (a *AWS) signed(r *http.Request, body []byte, service string, keys map[string]string, token string) error {
	given := r.Header.Get("Authorization")
	id, rest, _ := strings.Cut(strings.TrimPrefix(given, "AWS4-HMAC-SHA256 Credential="), "/")
	scope := strings.Split(rest, "/")
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	secret, known := keys[id]
	switch {
	case !known:
		return refusal{"InvalidClientTokenId", "no such key"}
	case err != nil || a.Now().Sub(at).Abs() > 5*time.Minute:
		return refusal{"SignatureDoesNotMatch", "date"}
	case len(scope) < 4 || scope[2] != service:
		return refusal{"SignatureDoesNotMatch", "scope"}
	}
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+r.Host+r.URL.Path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	_, signed, _ := strings.Cut(given, "SignedHeaders=")
	signed, _, _ = strings.Cut(signed, ",")
	for name := range strings.SplitSeq(signed, ";") {
		if v := r.Header.Values(name); len(v) > 0 && !strings.EqualFold(name, "x-amz-security-token") {
			again.Header[http.CanonicalHeaderKey(name)] = v
		}
	}
	creds := awssdk.Credentials{AccessKeyID: id, SecretAccessKey: secret, SessionToken: token}
	if err := v4.NewSigner().SignHTTP(r.Context(), creds, again, hash, service, scope[1], at); err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(again.Header.Get("Authorization")), []byte(given)) != 1 {
		return refusal{"SignatureDoesNotMatch", "signature"}
	}
	return nil
}

// wellFormed holds a session policy to what every one of ours has to be.
func wellFormed(text string) error {
	var p struct {
		Version   string
		Statement []map[string]any
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return err
	}
	if p.Version != "2012-10-17" || len(p.Statement) == 0 {
		return fmt.Errorf("version or statements")
	}
	for _, s := range p.Statement {
		for _, k := range slices.Collect(maps.Keys(s)) {
			if !slices.Contains([]string{"Effect", "Action", "Resource", "Condition"}, k) {
				return fmt.Errorf("the member %s", k)
			}
		}
		if s["Effect"] != "Allow" {
			return fmt.Errorf("effect")
		}
		for _, k := range []string{"Action", "Resource"} {
			if list, _ := s[k].([]any); len(list) == 0 {
				return fmt.Errorf("no %s", k)
			}
		}
	}
	return nil
}

// Allowed reports whether a session may do something, by its token: it lives, its
// policy allows it, and no inline policy of its role denies it. conditions are those
// of the request, such as prefix.
func (a *AWS) Allowed(token, action, bucket, object string, conditions map[string][]string) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.sessions, func(s *AWSSession) bool { return s.Token == token })
	if i < 0 {
		return false, nil
	}
	s := a.sessions[i]
	if !a.Now().Before(s.Expires) || a.denied(s) {
		return false, nil
	}
	allows, err := Engine(s.Policy)
	return err == nil && allows(action, bucket, object, conditions), err
}

// denied evaluates the inline policies of a session's role, all of which have to be of
// the one form that there is: everything is denied to some.
func (a *AWS) denied(s *AWSSession) bool {
	for _, text := range a.inline[s.Role[strings.LastIndex(s.Role, "/")+1:]] {
		var p struct {
			Statement []struct {
				Effect, Action, Resource string
				Condition                struct{ StringLike map[string][]string }
			}
		}
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			return true
		}
		for _, st := range p.Statement {
			if st.Effect != "Deny" || st.Action != "*" || st.Resource != "*" || len(st.Condition.StringLike) != 1 {
				return true
			}
			for _, pattern := range st.Condition.StringLike["aws:userid"] {
				if wildcard.Match(pattern, s.ID) {
					return true
				}
			}
		}
	}
	return false
}

// Engine returns what MinIO's policy engine says of a policy.
func Engine(text string) (func(action, bucket, object string, conditions map[string][]string) bool, error) {
	p, err := policy.ParseConfig(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	return func(action, bucket, object string, conditions map[string][]string) bool {
		return p.IsAllowed(policy.Args{AccountName: "x", Action: policy.Action(action), BucketName: bucket, ObjectName: object, ConditionValues: conditions})
	}, nil
}
