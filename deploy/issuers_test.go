package deploy_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// claims are those of a token; the header's typ is among them, as "typ".
type claims map[string]any

func (c claims) with(more claims) claims {
	out := maps.Clone(c)
	maps.Copy(out, more)
	return out
}

const (
	keycloak    = "https://keycloak.acme.example/realms/acme"
	okta        = "https://acme.okta.com/oauth2/default"
	entra       = "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0"
	google      = "https://accounts.google.com"
	actions     = "https://token.actions.githubusercontent.com"
	gitlab      = "https://gitlab.com"
	notesServer = "https://mcp.acme.example/notes"
)

// fromKeycloak and the others are tokens as these issuers make them.
var (
	fromKeycloak = claims{
		"typ": "at+jwt", "iss": keycloak, "aud": []string{notesServer, "account"}, "sub": "0c9f6f7e-0000-4000-8000-000000000001",
		"azp": "claude-desktop", "sid": "b1f0", "auth_time": -60, "jti": "onrtac:1", "scope": "openid email",
		"groups": []string{"engineering", "maintainers"}, "email": "alice@acme.example", "acr": "1",
	}
	fromOkta = claims{
		"ver": 1, "iss": okta, "aud": notesServer, "sub": "alice@acme.example", "uid": "00u1alice", "cid": "0oa1desktop",
		"scp": []string{"openid", "profile"}, "auth_time": -60, "jti": "AT.1", "groups": []string{"engineering", "maintainers"},
	}
	fromEntra = claims{
		"typ": "JWT", "ver": "2.0", "iss": entra, "aud": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "azp": "99999999-8888-7777-6666-555555555555",
		"azpacr": "0", "oid": "0c9f6f7e-0000-4000-8000-000000000002", "sub": "pairwise", "tid": "11111111-2222-3333-4444-555555555555",
		"scp": "Notes.Use", "roles": []string{"Engineering", "Maintainers"}, "preferred_username": "alice@acme.example", "uti": "x",
	}
	fromGoogle = claims{
		"typ": "JWT", "iss": google, "aud": "1234567890-server.apps.googleusercontent.com", "azp": "1234567890-server.apps.googleusercontent.com",
		"sub": "110169484474386276334", "hd": "acme.example", "email": "alice@acme.example", "email_verified": true, "at_hash": "x",
	}
	fromActions = claims{
		"typ": "JWT", "iss": actions, "aud": notesServer, "sub": "repo:acme/web:environment:production", "jti": "a1", "nbf": -30,
		"repository": "acme/web", "repository_id": "7700001", "repository_owner": "acme", "repository_owner_id": "9900001", "repository_visibility": "private",
		"ref": "refs/heads/main", "ref_type": "branch", "ref_protected": "true", "sha": "0f1e", "event_name": "push", "environment": "production",
		"workflow": "deploy", "job_workflow_ref": "acme/web/.github/workflows/deploy.yml@refs/heads/main", "runner_environment": "github-hosted",
		"run_id": "1", "run_number": "1", "run_attempt": "1", "actor": "alice", "actor_id": "1",
	}
	fromGitLab = claims{
		"typ": "JWT", "iss": gitlab, "aud": notesServer, "sub": "project_path:acme/web:ref_type:branch:ref:main", "jti": "g1", "nbf": -30,
		"project_id": "4200001", "project_path": "acme/web", "namespace_id": "42", "namespace_path": "acme", "user_id": "7", "user_login": "alice",
		"user_email": "alice@acme.example", "pipeline_id": "1", "pipeline_source": "push", "job_id": "2", "ref": "main", "ref_type": "branch",
		"ref_path": "refs/heads/main", "ref_protected": "true", "runner_environment": "gitlab-hosted", "sha": "0f1e",
	}
)

// What the examples say of issuers is so: a token of theirs is worth what its groups
// are, and one that only looks like it is worth nothing.
func TestTokensOfIssuersAreTakenForWhatTheyAre(t *testing.T) {
	bin := built(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		issuer string
		token  claims
		reads  bool
		writes bool
	}{
		"keycloak":                                {"keycloak", fromKeycloak, true, true},
		"keycloak, an engineer":                   {"keycloak", fromKeycloak.with(claims{"groups": []string{"engineering"}}), true, false},
		"keycloak, another app":                   {"keycloak", fromKeycloak.with(claims{"azp": "account-console"}), false, false},
		"keycloak, full paths of groups":          {"keycloak", fromKeycloak.with(claims{"groups": []string{"/engineering"}}), false, false},
		"keycloak, no mapper for the audience":    {"keycloak", fromKeycloak.with(claims{"aud": "account"}), false, false},
		"keycloak, an access token called JWT":    {"keycloak", fromKeycloak.with(claims{"typ": "JWT"}), false, false},
		"keycloak, an ID token":                   {"keycloak", fromKeycloak.with(claims{"typ": "JWT", "aud": "claude-desktop", "nonce": "x"}), false, false},
		"okta":                                    {"okta", fromOkta, true, true},
		"okta, another app":                       {"okta", fromOkta.with(claims{"cid": "0oa1other"}), true, false},
		"okta, no claim groups":                   {"okta", fromOkta.with(claims{"groups": nil}), false, false},
		"okta, the organisation's own server":     {"okta", fromOkta.with(claims{"iss": "https://acme.okta.com", "aud": "https://acme.okta.com"}), false, false},
		"okta, an ID token":                       {"okta", fromOkta.with(claims{"aud": "0oa1desktop", "at_hash": "x"}), false, false},
		"okta, a token of an app and nobody":      {"okta", fromOkta.with(claims{"uid": nil, "sub": "0oa1desktop"}), false, false},
		"entra":                                   {"entra", fromEntra, true, true},
		"entra, no roles":                         {"entra", fromEntra.with(claims{"roles": nil}), false, false},
		"entra, version 1":                        {"entra", fromEntra.with(claims{"iss": "https://sts.windows.net/11111111-2222-3333-4444-555555555555/"}), false, false},
		"entra, another tenant":                   {"entra", fromEntra.with(claims{"iss": strings.Replace(entra, "1111", "2222", 1)}), false, false},
		"entra, for another application":          {"entra", fromEntra.with(claims{"aud": "00000003-0000-0000-c000-000000000000"}), false, false},
		"entra, a session that may be of any age": {"entra", fromEntra.with(claims{"sid": "x"}), false, false},
		"entra, one that says its age":            {"entra", fromEntra.with(claims{"sid": "x", "auth_time": -60}), true, true},
		"google":                                  {"google", fromGoogle, true, true},
		"google, by an app":                       {"google", fromGoogle.with(claims{"azp": "1234567890-phone.apps.googleusercontent.com"}), true, false},
		"google, another domain":                  {"google", fromGoogle.with(claims{"hd": "evil.example"}), false, false},
		"google, an address of the domain":        {"google", fromGoogle.with(claims{"hd": nil}), false, false},
		"GitHub Actions":                          {"github-actions", fromActions, true, true},
		"GitHub Actions, a branch":                {"github-actions", fromActions.with(claims{"ref": "refs/heads/feature"}), true, false},
		"GitHub Actions, a tag of that name":      {"github-actions", fromActions.with(claims{"ref": "refs/tags/main"}), true, false},
		"GitHub Actions, a pull request":          {"github-actions", fromActions.with(claims{"ref": "refs/pull/7/merge", "event_name": "pull_request"}), true, false},
		"GitHub Actions, no environment":          {"github-actions", fromActions.with(claims{"environment": nil}), true, false},
		"GitHub Actions, another repository":      {"github-actions", fromActions.with(claims{"repository": "evil/web", "repository_id": "6600001"}), false, false},
		"GitHub Actions, the name taken over":     {"github-actions", fromActions.with(claims{"repository_id": "6600001"}), false, false},
		"GitHub Actions, a subject made up":       {"github-actions", fromActions.with(claims{"sub": "repo:acme/web:ref:refs/heads/main", "repository_id": nil}), false, false},
		"GitHub Actions, ids in a list":           {"github-actions", fromActions.with(claims{"repository_id": []string{"7700001"}}), false, false},
		"GitHub Actions, nobody's audience":       {"github-actions", fromActions.with(claims{"aud": "https://github.com/acme"}), false, false},
		"GitHub Actions, an enterprise's issuer":  {"github-actions", fromActions.with(claims{"iss": actions + "/acme"}), false, false},
		"GitHub Actions, old":                     {"github-actions", fromActions.with(claims{"iat": -660}), false, false},
		"GitLab CI":                               {"gitlab-ci", fromGitLab, true, true},
		"GitLab CI, a branch":                     {"gitlab-ci", fromGitLab.with(claims{"ref": "feature", "ref_protected": "false"}), true, false},
		"GitLab CI, a tag of that name":           {"gitlab-ci", fromGitLab.with(claims{"ref_type": "tag"}), true, false},
		"GitLab CI, not protected":                {"gitlab-ci", fromGitLab.with(claims{"ref_protected": "false"}), true, false},
		"GitLab CI, another project":              {"gitlab-ci", fromGitLab.with(claims{"project_id": "1"}), false, false},
		"GitLab CI, for others":                   {"gitlab-ci", fromGitLab.with(claims{"aud": "https://vault.example"}), false, false},
		"google, for another client":              {"google", fromGoogle.with(claims{"aud": "other.apps.googleusercontent.com", "azp": "other.apps.googleusercontent.com"}), false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := example(t, bin, tc.issuer, key)
			token := filepath.Join(dir, "token")
			if err := os.WriteFile(token, []byte(sign(t, key, tc.token)), 0o600); err != nil {
				t.Fatal(err)
			}
			for scope, want := range map[string]bool{"notes:read": tc.reads, "notes:write": tc.writes} {
				out, err := exec.Command(bin, "explain", "-c", filepath.Join(dir, "stint.yaml"), "--client", "notes-mcp",
					"--token", token, "--resource", "https://api.acme.example/notes", "--scope", scope).CombinedOutput()
				verdict := regexp.MustCompile(`(?m)^(REFUSED |stint: the token is not accepted: )`)
				if want {
					verdict = regexp.MustCompile(`(?m)^ALLOWED`)
				}
				if (err == nil) != want || !verdict.Match(out) {
					t.Errorf("%s: wanted %v, got %v\n%s", scope, want, err, out)
				}
			}
		})
	}
}

// example copies an example to where its paths can be: the keys of the issuer, and
// the secrets, are in files beside it. Nothing else is changed.
func example(t *testing.T, bin, name string, key *rsa.PrivateKey) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("issuers", name))); err != nil {
		t.Fatal(err)
	}
	made := filepath.Join(dir, "made")
	if out, err := exec.Command(bin, "init", made).CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Use: "sig"}}})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "jwks.json"), set, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	edit(t, filepath.Join(dir, "stint.yaml"), "/var/lib/stint/secrets.age", "made/data/secrets.age",
		"/etc/stint/private/identity", "made/private/identity", "    accept:", "    jwks_file: jwks.json\n    accept:")
	return dir
}

// sign makes a token. Times are seconds from now; claims of nil are left out.
func sign(t *testing.T, key *rsa.PrivateKey, in claims) string {
	t.Helper()
	c, now := claims{"iat": -30, "exp": 300}.with(in), time.Now().Unix()
	opts := &jose.SignerOptions{}
	if typ, ok := c["typ"].(string); ok {
		opts.WithType(jose.ContentType(typ))
	}
	for name, v := range c {
		seconds, isTime := v.(int)
		switch {
		case v == nil || name == "typ":
			delete(c, name)
		case isTime && name != "ver":
			c[name] = now + int64(seconds)
		}
	}
	signer, err1 := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, opts)
	data, err2 := json.Marshal(c)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(data)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// The examples are configurations as they stand, without a word to say against.
func TestTheExamplesOfIssuersAreInOrder(t *testing.T) {
	bin := built(t)
	files, err := filepath.Glob("issuers/*/stint.yaml")
	if err != nil || len(files) != 6 {
		t.Fatalf("%v: %v", files, err)
	}
	for _, file := range files {
		out, err := exec.Command(bin, "check", "--no-secrets", "-c", file).CombinedOutput()
		if err != nil || strings.Contains(string(out), "warning") {
			t.Errorf("%v\n%s", err, out)
		}
	}
}
