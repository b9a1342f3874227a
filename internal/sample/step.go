package sample

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strings"
	"time"

	"github.com/stint-dev/stint/internal/secret"
)

// Step is something that one of the servers did, as it went over the wire.
type Step struct {
	// Server is which of them: agent, mcp or api, or as [StintConfig] has it.
	Server string
	// Text says in a few words what was done.
	Text string
	// Method is that of HTTP, or SQL for a query.
	Method, URL string
	Request     []Field
	// Status is that of HTTP, 0 for a query or if there was no answer.
	Status int
	// Answer are the members of the answer, in its order; those of an object
	// within it as OUTER.INNER.
	Answer []Field
	// Err is why there is no answer.
	Err error
	// Began and Ended are when; what was done meanwhile for its sake is within.
	Began, Ended time.Time
}

// Field is a parameter, header or member.
type Field struct {
	Name string
	// Value may be shown as it is.
	Value string
	// Secret, if not empty, comes behind Value, and is for the caller to shorten.
	Secret secret.String
}

// trace is who is told of steps, if anybody: by whoever takes the step, who waits.
type trace func(Step)

func (t trace) step(s Step) {
	if t != nil {
		s.Ended = time.Now()
		t(s)
	}
}

// secrets are the parameters and members that are not to be shown.
var secrets = map[string]bool{
	"access_token": true, "refresh_token": true, "id_token": true, "credential.password": true, "credential.url": true,
	"password": true, "code": true, "code_verifier": true, "subject_token": true, "token": true,
}

// formFields lists the parameters of a form or query, in its order.
func formFields(encoded string) (out []Field) {
	for pair := range strings.SplitSeq(encoded, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(name)
		value, err2 := url.QueryUnescape(value)
		if name == "" || err1 != nil || err2 != nil {
			continue
		}
		f := Field{Name: name, Value: value}
		if secrets[name] {
			f.Value, f.Secret = "", secret.New(value)
		}
		out = append(out, f)
	}
	return out
}

// answerFields lists the members of a JSON object. What is no object is shown as
// a text without a name, if there is anything.
func answerFields(body []byte) []Field {
	fields, ok := members("", body)
	if !ok && len(body) > 0 {
		return []Field{{Value: strings.TrimSpace(string(body))}}
	}
	return fields
}

func members(prefix string, object []byte) (out []Field, ok bool) {
	dec := json.NewDecoder(bytes.NewReader(object))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, false
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, false
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, false
		}
		out = append(out, member(prefix+key.(string), value)...) // the keys of an object are texts
	}
	return out, true
}

func member(name string, value json.RawMessage) []Field {
	if inner, ok := members(name+".", value); ok && len(inner) > 0 {
		return inner
	}
	f := Field{Name: name, Value: string(value)}
	var text string
	if err := json.Unmarshal(value, &text); err == nil {
		f.Value = text
	}
	if secrets[name] {
		f.Value, f.Secret = "", secret.New(f.Value)
	}
	return []Field{f}
}
