package aws_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/providers/aws"
)

func TestOnlyWhatIsKnownToReadReads(t *testing.T) {
	const table = "arn:aws:dynamodb:eu-west-1:123456789012:table/x"
	for action, reads := range map[string]bool{
		"dynamodb:GetItem": true, "dynamodb:Query": true, "logs:GetLogEvents": true,
		"dynamodb:PutItem": false, "dynamodb:getitem": false, "secretsmanager:GetSecretValue": false, "ssm:GetParameter": false, "kms:Decrypt": false,
		"iam:PassRole": false, "sts:AssumeRole": false, "unheard-of:GetThing": false,
	} {
		g := parse(t, map[string]any{"s3": []any{}, "actions": []any{map[string]any{"actions": action, "resource": table}}})
		if g.ReadOnly() != reads {
			t.Errorf("%s reads: %v", action, !reads)
		}
	}
	for verb, reads := range map[string]bool{"get": true, "list": true, "put": false, "delete": false} {
		if g := parse(t, objectsOf(entry(verb, "warehouse", ""))); g.ReadOnly() != reads {
			t.Errorf("%s reads: %v", verb, !reads)
		}
	}
}

func TestNamesInTheTableOfReads(t *testing.T) {
	list := aws.Describe().Schema.Dimensions()[0].Reads
	if len(list) < 100 || !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
		t.Errorf("%d reads, not sorted, or some twice", len(list))
	}
	for _, action := range list {
		_, name, _ := strings.Cut(action, ":")
		if !slices.ContainsFunc([]string{"BatchGet", "Describe", "Filter", "Get", "List", "Lookup", "Query", "Scan"}, func(stem string) bool { return strings.HasPrefix(name, stem) }) {
			t.Errorf("%s does not sound like reading", action)
		}
	}
}

// A mapping that can never be granted is an error when it is loaded.
func TestMappingsThatCannotBeGranted(t *testing.T) {
	i := newIssuer(t)
	d := opened(t, byToken("https://sts.eu-west-1.amazonaws.com/"), deps(i, nil)).Describe()
	if err := d.Check(reading(t)); err != nil {
		t.Error(err)
	}
	for name, v := range map[string]any{
		"a bucket that is none":  objectsOf(entry("get", "Ware/House", "")),
		"a prefix that climbs":   objectsOf(entry("get", "warehouse", "a/../")),
		"an action of s3":        map[string]any{"s3": []any{}, "actions": []any{map[string]any{"actions": "s3:GetObject", "resource": "arn:aws:s3:::x/"}}},
		"an action at all there": map[string]any{"s3": []any{}, "actions": []any{map[string]any{"actions": "dynamodb:GetItem", "resource": "*"}}},
	} {
		if err := d.Check(parse(t, v)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	everywhere := map[string]any{"s3": []any{}, "actions": []any{map[string]any{"actions": "ec2:DescribeInstances", "resource": "*"}}}
	if err := d.Check(parse(t, everywhere)); err != nil {
		t.Errorf("an action that knows no resource: %v", err)
	}
	if d.Class != broker.Exact || d.Revokes != "none" {
		t.Errorf("%+v", d)
	}
}
