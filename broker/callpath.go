package broker

import (
	"strings"
	"unicode/utf8"
)

// Paths and queries of requests that are made by a lease are sent as they came. What is
// held to a grant is the very text that the upstream gets, and each has to be a text in
// which no server finds another path: RFC 3986 section 6.2.2, in its normal form, and
// without what some servers undo once more.

// maxAddress bounds a path, and a query, in bytes.
const maxAddress = 4096

const (
	pathMarks  = "-._~!$&'()*+,;=:@/" // RFC 3986 section 3.3, without what has to be encoded
	queryMarks = pathMarks + "?"
	upperHex   = "0123456789ABCDEF"
)

// NotCanonical says why the path of a request by a lease is not taken; empty: it is.
func NotCanonical(path string) string {
	if len(path) > maxAddress {
		return "it is too long"
	}
	if !strings.HasPrefix(path, "/") {
		return "it begins with a slash"
	}
	decoded, why := decode(path, pathMarks)
	if why != "" {
		return why
	}
	if strings.ContainsAny(path, "*$") {
		return "* and $ are written %2A and %24: grants have none"
	}
	if strings.Contains(path, "//") {
		return "two slashes follow each other"
	}
	for segment := range strings.SplitSeq(decoded, "/") {
		// Some servers cut off what follows a semicolon, and then look for dots.
		name, _, _ := strings.Cut(segment, ";")
		if name == "." || name == ".." || name == "" && segment != "" {
			return "a segment is . or .., or nothing but parameters"
		}
	}
	return ""
}

// notQuery says why a query is not taken; empty: it is.
func notQuery(query string) string {
	if len(query) > maxAddress {
		return "it is too long"
	}
	if strings.Contains(query, ";") {
		return "a semicolon separates parameters for some, and is written %3B"
	}
	_, why := decode(query, queryMarks)
	return why
}

// decode takes percent-encoding off, once, and says why a text is not in normal form. In a
// path (which marks tells) nothing may come out that means something there.
func decode(text, marks string) (decoded, why string) {
	var b strings.Builder
	inPath := marks == pathMarks
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case alphanumeric(c) || strings.IndexByte(marks, c) >= 0:
			b.WriteByte(c)
			continue
		case c != '%':
			return "", "it has a character that has to be percent-encoded"
		case i+2 >= len(text) || strings.IndexByte(upperHex, text[i+1]) < 0 || strings.IndexByte(upperHex, text[i+2]) < 0:
			return "", "a percent sign is not followed by two digits, or letters A to F"
		}
		c = byte(strings.IndexByte(upperHex, text[i+1])<<4 | strings.IndexByte(upperHex, text[i+2]))
		i += 2
		switch {
		case c < ' ' && (inPath || c == 0) || c == 0x7f:
			return "", "it has a control character"
		case alphanumeric(c) || strings.IndexByte("-._~", c) >= 0:
			return "", "what needs no percent-encoding has it"
		case inPath && strings.IndexByte(`/\%;?#`, c) >= 0:
			return "", "an encoded / \\ % ; ? or # is not taken"
		}
		b.WriteByte(c)
	}
	decoded = b.String()
	if inPath && (!utf8.ValidString(decoded) || strings.ContainsAny(decoded, lookalikes)) {
		return "", "what is percent-encoded is not UTF-8, or looks like a dot or a slash"
	}
	return decoded, ""
}

// lookalikes become dots and slashes where names are brought into a compatible form
// (NFKC): full-width and small forms, and leaders of dots.
const lookalikes = "\uff0e\uff0f\uff3c\u2024\u2025\u2026\ufe52\ufe68\u2044\u2215"

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
