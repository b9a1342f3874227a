package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stint-dev/stint/internal/secret"
)

const canary = "canary-7f31"

type outer struct {
	Public  secret.String
	private secret.String
	Pointer *secret.String
	List    []secret.String
	Map     map[string]secret.String
}

func TestNoWayOfPrintingShowsTheText(t *testing.T) {
	s := secret.New(canary)
	o := outer{Public: s, private: s, Pointer: &s, List: []secret.String{s}, Map: map[string]secret.String{"k": s}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%T"} {
		for _, v := range []any{s, &s, o, &o, []any{s, o}, map[string]any{"k": s}, struct{ s secret.String }{s}} {
			got := fmt.Sprintf(verb, v)
			if strings.Contains(got, canary) || strings.Contains(strings.ToLower(got), fmt.Sprintf("%x", canary)) {
				t.Errorf("%s of %T shows the text: %s", verb, v, got)
			}
		}
	}
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b bytes.Buffer
		slog.New(handler(&b)).Info("m", "s", s, "p", &s, "o", o, "op", &o)
		if strings.Contains(b.String(), canary) {
			t.Errorf("slog %s shows the text: %s", name, b.String())
		}
	}
	js, err := json.Marshal(o)
	if err != nil || strings.Contains(string(js), canary) {
		t.Errorf("json: %v: %s", err, js)
	}
	if s.String() != "[secret]" {
		t.Errorf("String() = %q", s.String())
	}
	if o.private.Reveal() != canary {
		t.Error("the unexported copy lost the text")
	}
}

func TestRevealEmptyEqualDigest(t *testing.T) {
	var zero secret.String
	if !zero.Empty() || zero.Reveal() != "" || zero.Len() != 0 || !secret.New("").Empty() {
		t.Error("the zero value is not empty")
	}
	s := secret.New(canary)
	if s.Empty() || s.Reveal() != canary || s.Len() != len(canary) {
		t.Error("the text is not kept")
	}
	if !s.Equal(secret.New(canary)) || s.Equal(secret.New(canary+"x")) || s.Equal(zero) || !zero.Equal(secret.New("")) {
		t.Error("Equal is wrong")
	}
	if got := secret.New("abc").Digest(); got != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("Digest = %s", got)
	}
}
