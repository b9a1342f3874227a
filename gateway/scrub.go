package gateway

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"html"
	"slices"
	"strconv"
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
	add(html.EscapeString(text))
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

// bytes returns b without the secrets.
func (s *scrubber) bytes(b []byte) []byte {
	for _, n := range s.needles {
		if bytes.Contains(b, n) {
			b = bytes.ReplaceAll(b, n, []byte(mark))
		}
	}
	for _, e := range []escape{percent, backslash} {
		b = s.escaped(b, e)
	}
	return b
}

// escape reads one escaped byte at the beginning of b, and says how long its escape is;
// zero: there is none.
type escape struct {
	sign byte
	read func(b []byte) (c byte, length int)
}

var (
	// percent is percent-encoding (RFC 3986 section 2.1), of whatever bytes.
	percent = escape{'%', func(b []byte) (byte, int) {
		if len(b) < 3 {
			return 0, 0
		}
		n, err := strconv.ParseUint(string(b[1:3]), 16, 8)
		if err != nil {
			return 0, 0
		}
		return byte(n), 3
	}}
	// backslash is JSON's (RFC 8259 section 7), and what others make of it.
	backslash = escape{'\\', func(b []byte) (byte, int) {
		switch {
		case len(b) >= 6 && b[1] == 'u':
			if n, err := strconv.ParseUint(string(b[2:6]), 16, 8); err == nil {
				return byte(n), 6
			}
		case len(b) >= 4 && b[1] == 'x':
			if n, err := strconv.ParseUint(string(b[2:4]), 16, 8); err == nil {
				return byte(n), 4
			}
		case len(b) >= 2 && strings.IndexByte(`"\/'`, b[1]) >= 0:
			return b[1], 2
		}
		return 0, 0
	}}
)

// escaped cuts out what becomes a secret when escapes are read, whichever of its bytes
// have them.
func (s *scrubber) escaped(b []byte, e escape) []byte {
	if bytes.IndexByte(b, e.sign) < 0 {
		return b
	}
	plain, at := make([]byte, 0, len(b)), make([]int, 0, len(b)+1)
	for i := 0; i < len(b); {
		c, n := b[i], 1
		if c == e.sign {
			if read, length := e.read(b[i:]); length > 0 {
				c, n = read, length
			}
		}
		plain, at = append(plain, c), append(at, i)
		i += n
	}
	at = append(at, len(b))
	var out []byte
	done := 0 // of plain
	for _, n := range s.needles {
		if bytes.Contains(plain, n) {
			out = make([]byte, 0, len(b))
			break
		}
	}
	if out == nil {
		return b
	}
	for i := 0; i < len(plain); i++ {
		for _, n := range s.needles {
			if bytes.HasPrefix(plain[i:], n) {
				out = append(append(out, b[at[done]:at[i]]...), mark...)
				i += len(n) - 1
				done = i + 1
				break
			}
		}
	}
	return append(out, b[at[done]:]...)
}

func (s *scrubber) text(t string) string { return string(s.bytes([]byte(t))) }
