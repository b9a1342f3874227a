package doubles

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// Behind has the double ask a real STS for each session, such as MinIO's, by the very
// request that it was asked by: MinIO knows nothing of roles, names and tags, which the
// double checks, and enforces the policy, which the double does not. role is what MinIO
// calls the role of a web identity.
func (a *AWS) Behind(addr, role string, ask func(*http.Request) (int, []byte, error)) {
	a.Issue = func(r *http.Request, body []byte) (id, key, token string, expires time.Time, err error) {
		f, err := url.ParseQuery(string(body))
		if err != nil {
			return id, key, token, expires, err
		}
		if f.Get("Action") == "AssumeRoleWithWebIdentity" { // which nothing is signed of
			f.Set("RoleArn", role)
			body = []byte(f.Encode())
		}
		again, err := http.NewRequestWithContext(r.Context(), http.MethodPost, addr+"/", bytes.NewReader(body))
		if err != nil {
			return id, key, token, expires, err
		}
		again.Header, again.Host = r.Header.Clone(), r.Host
		again.Header.Del("Content-Length")
		status, answer, err := ask(again)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d: %s", status, answer)
		}
		var got struct {
			Made  made `xml:"AssumeRoleResult>Credentials"`
			Token made `xml:"AssumeRoleWithWebIdentityResult>Credentials"`
		}
		if err == nil {
			err = xml.Unmarshal(answer, &got)
		}
		if got.Made.AccessKeyID == "" {
			got.Made = got.Token
		}
		return got.Made.AccessKeyID, got.Made.SecretAccessKey, got.Made.SessionToken, got.Made.Expiration, err
	}
}

type made struct {
	AccessKeyID     string `xml:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string
	Expiration      time.Time
}
