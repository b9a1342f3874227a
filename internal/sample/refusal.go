package sample

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// audience is a text or a list of them (RFC 7519 section 4.1.3).
type audience []string

func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if err := json.Unmarshal(b, &one); err == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// metadata is what is needed of an authorization server's metadata.
type metadata struct {
	Issuer                string   `json:"issuer"`
	AuthorizationEndpoint string   `json:"authorization_endpoint"`
	TokenEndpoint         string   `json:"token_endpoint"`
	IntrospectionEndpoint string   `json:"introspection_endpoint"`
	ChallengeMethods      []string `json:"code_challenge_methods_supported"`
	// IssParameter says that authorization responses name the issuer (RFC 9207).
	IssParameter bool `json:"authorization_response_iss_parameter_supported"`
}

func fetchMetadata(ctx context.Context, client *http.Client, address, issuer string) (*metadata, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := readBody(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("metadata of %s: %w", issuer, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metadata of %s: %w", issuer, refusal(resp, body))
	}
	var m metadata
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("metadata of %s: %w", issuer, err)
	}
	if m.Issuer != issuer { // RFC 8414 section 3.3
		return nil, fmt.Errorf("metadata of %s: it says it is of %q", issuer, m.Issuer)
	}
	return &m, nil
}

// Refusal is an answer that is an error: of an OAuth endpoint (RFC 6749 section
// 5.2), or of a resource (RFC 6750 section 3).
type Refusal struct {
	// Status is that of HTTP; 0 for an error that came in a redirect.
	Status int
	// Code and Description are error and error_description, empty if there are none.
	Code, Description string
	// Challenge is the header WWW-Authenticate, and RetryAfter the header of this
	// name.
	Challenge, RetryAfter string
}

func (r *Refusal) Error() string {
	text := "refused"
	if r.Status != 0 {
		text = fmt.Sprintf("%d %s", r.Status, http.StatusText(r.Status))
	}
	for _, more := range []string{r.Code, r.Description, r.Challenge} {
		if more != "" {
			text += ": " + more
		}
	}
	return text
}

func refusal(resp *http.Response, body []byte) *Refusal {
	r := &Refusal{
		Status: resp.StatusCode, RetryAfter: resp.Header.Get("Retry-After"),
		Challenge: strings.Join(resp.Header.Values("WWW-Authenticate"), ", "),
	}
	var in struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal(body, &in); err == nil {
		r.Code, r.Description = in.Error, in.Description
	}
	return r
}
