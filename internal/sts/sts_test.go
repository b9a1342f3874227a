package sts

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker"
)

func TestPoliciesAreMergedAndReadBack(t *testing.T) {
	all := []Permission{
		{Action: "s3:GetObject", Resource: "arn:aws:s3:::one/a/", Below: true},
		{Action: "s3:PutObject", Resource: "arn:aws:s3:::one/a/", Below: true},
		{Action: "s3:GetObject", Resource: "arn:aws:s3:::two/", Below: true},
		{Action: "s3:PutObject", Resource: "arn:aws:s3:::two/", Below: true},
		{Action: "s3:ListBucket", Resource: "arn:aws:s3:::one", Prefix: "a/"},
		{Action: "s3:ListBucket", Resource: "arn:aws:s3:::two"},
		{Action: "ec2:DescribeInstances", Resource: "*"},
	}
	text, err := Policy(all)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"Statement":[` +
		`{"Action":["ec2:DescribeInstances"],"Effect":"Allow","Resource":["*"]},` +
		`{"Action":["s3:GetObject","s3:PutObject"],"Effect":"Allow","Resource":["arn:aws:s3:::one/a/*","arn:aws:s3:::two/*"]},` +
		`{"Action":["s3:ListBucket"],"Effect":"Allow","Resource":["arn:aws:s3:::two"]},` +
		`{"Action":["s3:ListBucket"],"Condition":{"StringLike":{"s3:prefix":["a/*"]}},"Effect":"Allow","Resource":["arn:aws:s3:::one"]}` +
		`],"Version":"2012-10-17"}`
	if string(text) != want {
		t.Errorf("got %s", text)
	}
	back, err := ReadPolicy(text)
	if err != nil || !same(back, all) {
		t.Errorf("%+v, %v", back, err)
	}
}

// same reports whether two lists permit the same, in whatever order.
func same(a, b []Permission) bool {
	sorted := func(l []Permission) []Permission {
		l = slices.Clone(l)
		slices.SortFunc(l, func(x, y Permission) int {
			return strings.Compare(x.Action+"\x00"+x.pattern()+"\x00"+x.Prefix, y.Action+"\x00"+y.pattern()+"\x00"+y.Prefix)
		})
		return slices.Compact(l)
	}
	return slices.Equal(sorted(a), sorted(b))
}

func TestWhatIsNoPermission(t *testing.T) {
	for name, p := range map[string]Permission{
		"every action":                 {Action: "*", Resource: "arn:aws:s3:::x"},
		"every action of a service":    {Action: "s3:*", Resource: "arn:aws:s3:::x"},
		"some actions":                 {Action: "s3:Get?", Resource: "arn:aws:s3:::x"},
		"no action":                    {Resource: "arn:aws:s3:::x"},
		"no resource":                  {Action: "s3:GetObject"},
		"a wildcard in a resource":     {Action: "s3:GetObject", Resource: "arn:aws:s3:::*/x"},
		"a question mark":              {Action: "s3:GetObject", Resource: "arn:aws:s3:::x?"},
		"a variable":                   {Action: "s3:GetObject", Resource: "arn:aws:s3:::${aws:username}"},
		"a quote":                      {Action: "s3:GetObject", Resource: `arn:aws:s3:::x","arn:aws:s3:::y`},
		"a character beyond ASCII":     {Action: "s3:GetObject", Resource: "arn:aws:s3:::ä"},
		"a line":                       {Action: "s3:GetObject", Resource: "arn:aws:s3:::x\n"},
		"below everything":             {Action: "s3:GetObject", Resource: "*", Below: true},
		"a prefix of another action":   {Action: "s3:GetObject", Resource: "arn:aws:s3:::x", Prefix: "a/"},
		"a wildcard in what is listed": {Action: "s3:ListBucket", Resource: "arn:aws:s3:::x", Prefix: "*/"},
	} {
		if text, err := Policy([]Permission{p}); !errors.Is(err, broker.ErrInexpressible) {
			t.Errorf("%s: %s, %v", name, text, err)
		}
	}
	if text, err := Policy(nil); err == nil {
		t.Errorf("nothing is written as %s", text)
	}
}

func TestWhatIsNoPolicyOfOurs(t *testing.T) {
	one := func(statement string) string { return `{"Version":"2012-10-17","Statement":[` + statement + `]}` }
	good := one(`{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::x/*"}`)
	if _, err := ReadPolicy([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing":                       "",
		"no version":                    strings.Replace(good, `"Version":"2012-10-17",`, "", 1),
		"an old version":                strings.Replace(good, "2012-10-17", "2008-10-17", 1),
		"an id":                         strings.Replace(good, `"Version"`, `"Id":"x","Version"`, 1),
		"a member twice":                strings.Replace(good, `"Effect":"Allow"`, `"Effect":"Allow","Effect":"Allow"`, 1),
		"more after the end":            good + "{}",
		"what is denied":                strings.Replace(good, "Allow", "Deny", 1),
		"all but an action":             strings.Replace(good, `"Action"`, `"NotAction"`, 1),
		"all but a resource":            strings.Replace(good, `"Resource"`, `"NotResource"`, 1),
		"every action":                  strings.Replace(good, "s3:GetObject", "*", 1),
		"every action of a service":     strings.Replace(good, "s3:GetObject", "s3:*", 1),
		"a wildcard in a resource":      strings.Replace(good, ":::x/*", ":::*/x/*", 1),
		"a variable":                    strings.Replace(good, ":::x/*", ":::${aws:username}/*", 1),
		"a condition":                   one(`{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::x/*","Condition":{"Bool":{"aws:SecureTransport":"true"}}}`),
		"a condition of something else": one(`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::x","Condition":{"StringLike":{"s3:delimiter":"/*"}}}`),
		"a condition of nothing":        one(`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::x","Condition":{}}`),
		"a prefix of nothing":           one(`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::x","Condition":{"StringLike":{"s3:prefix":["*"]}}}`),
		"a prefix without an end":       one(`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::x","Condition":{"StringLike":{"s3:prefix":["a/"]}}}`),
		"no actions":                    strings.Replace(good, `"s3:GetObject"`, "[]", 1),
		"an action that is a number":    strings.Replace(good, `"s3:GetObject"`, "[1]", 1),
	} {
		if all, err := ReadPolicy([]byte(text)); err == nil {
			t.Errorf("%s is read as %+v", name, all)
		}
	}
}

func FuzzReadPolicy(f *testing.F) {
	f.Add(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::x/*"}]}`)
	f.Add(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:ListBucket"],"Resource":["arn:aws:s3:::x"],"Condition":{"StringLike":{"s3:prefix":["a/*"]}}}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		all, err := ReadPolicy([]byte(text))
		if err != nil {
			return
		}
		again, err := Policy(all)
		if err != nil {
			return // more than we would say
		}
		if back, err := ReadPolicy(again); err != nil || !same(back, all) {
			t.Errorf("%s is read as %+v, and written as %s", text, all, again)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(`<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>A</AccessKeyId><SecretAccessKey>B</SecretAccessKey>` +
		`<SessionToken>C</SessionToken><Expiration>2030-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`)
	f.Add(`<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>`)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := session([]byte(text), "AssumeRole")
		if err == nil && (s.Keys.ID == "" || s.Keys.Secret.Empty() || s.Keys.Session.Empty() || s.Expires.IsZero() && !strings.Contains(text, "0001")) {
			t.Errorf("%q is read as half a session", text)
		}
	})
}

func TestEndpoints(t *testing.T) {
	for text, ok := range map[string]bool{
		"https://sts.eu-west-1.amazonaws.com/": true, "https://store.example:9000": true, "http://127.0.0.1:9000": true, "http://[::1]:9000/": true, "http://localhost": true,
		"http://store.example": false, "https://store.example/path": false, "https://a@store.example": false, "https://store.example/?x": false,
		"ftp://store.example": false, "store.example": false, "": false, "https://": false, "http://127.0.0.1.example": false,
	} {
		if _, err := CheckEndpoint(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}
