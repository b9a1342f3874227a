package aws_test

import (
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stint-dev/stint/providers/aws"
)

// models is the folder of AWS's own descriptions of its services, which a module of
// theirs has. It is not had where there is no module proxy.
func models(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", "github.com/aws/aws-sdk-go@v1.55.8")
	cmd.Dir = t.TempDir()
	out, err := cmd.Output()
	var got struct{ Dir, Sum string }
	if err != nil || json.Unmarshal(out, &got) != nil || got.Sum != "h1:JRmEUbU52aJQZ2AjX4q4Wu7t4uZjOu71uyNmaWlUkJQ=" {
		t.Skipf("the descriptions of AWS's services are not to be had: %v, %s", err, got.Sum)
	}
	return filepath.Join(got.Dir, "models", "apis")
}

// description is what is read of one.
type description struct {
	Operations map[string]struct {
		Input struct{ Shape string }
	}
	Shapes map[string]shape
}

type shape struct {
	Type     string
	Required []string
	Members  map[string]struct{ Shape string }
	Member   struct{ Shape string }
	Pattern  string
	Min, Max *float64
}

func describe(t *testing.T, dir, service string) (d description) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, service, "*", "api-2.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no description of %s", service)
	}
	data, err := os.ReadFile(files[len(files)-1])
	if err := errors.Join(err, json.Unmarshal(data, &d)); err != nil {
		t.Fatalf("%s: %v", service, err)
	}
	return d
}

// holds checks a form against a shape, and takes out of it what the shape knows.
func (d description) holds(t *testing.T, f url.Values, at, name string) {
	t.Helper()
	s := d.Shapes[name]
	switch s.Type {
	case "structure":
		for _, r := range s.Required {
			if !f.Has(at+r) && !anyBelow(f, at+r+".") {
				t.Errorf("%s%s is missing", at, r)
			}
		}
		for member, m := range s.Members {
			if f.Has(at+member) || anyBelow(f, at+member+".") {
				d.holds(t, f, at+member, m.Shape)
			}
		}
	case "list":
		for n := 1; ; n++ {
			one := at + ".member." + strconv.Itoa(n)
			if inner := d.Shapes[s.Member.Shape]; inner.Type == "structure" && anyBelow(f, one+".") {
				d.holds(t, f, one+".", s.Member.Shape)
			} else if f.Has(one) {
				d.holds(t, f, one, s.Member.Shape)
			} else {
				break
			}
		}
	default:
		v := f.Get(at)
		f.Del(at)
		size := utf8.RuneCountInString(v)
		if s.Type == "integer" {
			size, _ = strconv.Atoi(v)
		}
		if s.Min != nil && float64(size) < *s.Min || s.Max != nil && float64(size) > *s.Max {
			t.Errorf("%s: %q is too long or too short", at, v)
		}
		if s.Pattern == "" {
			return
		}
		// The descriptions have escapes of another language.
		pattern := strings.NewReplacer(`\u0009`, `\x09`, `\u000A`, `\x0A`, `\u000D`, `\x0D`, `\u0020`, `\x20`, `\u0085`, `\x85`, `\u00A0`, `\xA0`, `\u007E`, `\x7E`,
			`\u00FF`, `\x{FF}`, `\uD7FF`, `\x{D7FF}`, `\uE000`, `\x{E000}`, `\uFFFD`, `\x{FFFD}`, `\u10000`, `\x{10000}`, `\u10FFFF`, `\x{10FFFF}`).Replace(s.Pattern)
		if re, err := regexp.Compile("^(?:" + pattern + ")$"); err != nil || !re.MatchString(v) {
			t.Errorf("%s: %q does not match %s (%v)", at, v, s.Pattern, err)
		}
	}
}

func anyBelow(f url.Values, stem string) bool {
	for k := range f {
		if strings.HasPrefix(k, stem) {
			return true
		}
	}
	return false
}

func TestRequestsAreAsAWSDescribesThem(t *testing.T) {
	d := describe(t, models(t), "sts")
	i := newIssuer(t)
	for action, settings := range map[string]func(string) aws.Config{
		"AssumeRole": func(e string) aws.Config { c := byKeys(e); c.ExternalID = "agreed"; return c }, "AssumeRoleWithWebIdentity": byToken,
	} {
		endpoint, sent := wire(t)
		p := opened(t, settings(endpoint), deps(i, time.Now))
		_, _ = p.Mint(t.Context(), asked(t, p, reading(t)))
		f := sent()[0]
		if f.Get("Action") != action || f.Get("Version") != "2011-06-15" {
			t.Errorf("%v", f)
		}
		f.Del("Action")
		f.Del("Version")
		n := len(f)
		if d.holds(t, f, "", d.Operations[action].Input.Shape); len(f) > 0 || n < 5 {
			t.Errorf("%s: of %d there is left %v", action, n, f)
		}
	}
}

// elsewhere are services and actions that are called otherwise than their operations.
var elsewhere = map[string]string{
	"cloudwatch": "monitoring", "s3:ListAllMyBuckets": "ListBuckets", "s3:ListBucketVersions": "ListObjectVersions", "s3:GetObjectVersion": "GetObject",
	"s3:ListBucketMultipartUploads": "ListMultipartUploads", "s3:ListMultipartUploadParts": "ListParts",
}

func TestWhatIsSaidToReadIsWhatAWSHas(t *testing.T) {
	dir := models(t)
	known := map[string]description{}
	for _, action := range aws.Describe().Schema.Dimensions()[0].Reads {
		service, name, _ := strings.Cut(action, ":")
		if other, ok := elsewhere[service]; ok {
			service = other
		}
		if other, ok := elsewhere[action]; ok {
			name = other
		}
		if _, ok := known[service]; !ok {
			known[service] = describe(t, dir, service)
		}
		if _, ok := known[service].Operations[name]; !ok {
			t.Errorf("%s is no operation", action)
		}
	}
}
