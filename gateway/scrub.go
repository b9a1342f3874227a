package gateway

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/url"
	"slices"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/secret"
)

// minSecret is the shortest secret that can be told from other text.
const minSecret = 8

// mark takes a secret's place.
const mark = "[secret]"

// scrubber cuts what was injected out of what comes back: an upstream that echoes its
// requests, in a message about an error perhaps, would hand it out. It knows the spellings
// that servers use without being asked; one that is asked to turn a text around can still
// be made to show it.
type scrubber struct {
	lease   string
	needles [][]byte
}

func newScrubber(c *broker.Call) (*scrubber, error) {
	secrets := slices.Clone(c.Scrub)
	for _, in := range slices.Concat(c.Injection.Header, c.Injection.Query) {
		secrets = append(secrets, in.Value)
	}
	s := &scrubber{lease: c.Lease}
	for _, one := range secrets {
		if one.Len() < minSecret {
			return nil, errors.New("a secret is too short to be told from other text")
		}
		s.needles = append(s.needles, spellings(one)...)
	}
	if len(s.needles) == 0 {
		return nil, errors.New("there is nothing to inject")
	}
	slices.SortFunc(s.needles, func(a, b []byte) int { // the longer first: it may hold the shorter
		return cmp.Or(cmp.Compare(len(b), len(a)), bytes.Compare(a, b))
	})
	s.needles = slices.CompactFunc(s.needles, bytes.Equal)
	return s, nil
}

// spellings are the ways in which a secret is written.
func spellings(s secret.String) (out [][]byte) {
	text := s.Reveal()
	add := func(one string) {
		if one != "" {
			out = append(out, []byte(one))
		}
	}
	add(text)
	for _, escaped := range []string{url.QueryEscape(text), url.PathEscape(text), strings.ReplaceAll(url.QueryEscape(text), "+", "%20"), percented(text)} {
		add(escaped)
		add(lowered(escaped))
	}
	add(html.EscapeString(text))
	for _, htmlToo := range []bool{true, false} {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(htmlToo)
		if e.Encode(text) == nil {
			add(strings.Trim(strings.TrimSpace(b.String()), `"`))
			add(strings.ReplaceAll(strings.Trim(strings.TrimSpace(b.String()), `"`), "/", `\/`))
		}
	}
	add(hex.EncodeToString([]byte(text)))
	add(strings.ToUpper(hex.EncodeToString([]byte(text))))
	for before := range 3 {
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			add(within(enc, text, before))
		}
	}
	return out
}

// within is the part of an encoding that is a text's own, however the text goes on, where
// there are so many bytes before it in its group of three.
func within(enc *base64.Encoding, text string, before int) string {
	whole := enc.EncodeToString(append(make([]byte, before), text...))
	begin := (before*8 + 5) / 6
	end := (before + len(text)) * 8 / 6
	if begin >= end || end > len(whole) {
		return ""
	}
	return whole[begin:end]
}

// percented has every byte percent-encoded.
func percented(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		fmt.Fprintf(&b, "%%%02X", c)
	}
	return b.String()
}

// lowered has the digits of percent-encoding in small letters.
func lowered(text string) string {
	b := []byte(text)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

func (s *scrubber) bytes(b []byte) []byte {
	for _, n := range s.needles {
		if bytes.Contains(b, n) {
			b = bytes.ReplaceAll(b, n, []byte(mark))
		}
	}
	return b
}

func (s *scrubber) text(t string) string { return string(s.bytes([]byte(t))) }
