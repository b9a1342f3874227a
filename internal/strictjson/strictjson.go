// Package strictjson reads JSON the one way that leaves no room for two
// readings, and writes the one canonical form of it.
//
// encoding/json takes the last of two equal names, matches names whatever their
// case, and repairs broken UTF-8, so that two parties can see two documents in
// the same bytes. Whatever strangers send is read here instead. The package
// does not limit sizes: whoever reads the bytes does.
package strictjson

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// MaxDepth is how deep objects and arrays may nest.
const MaxDepth = 32

var errDepth = fmt.Errorf("nested more than %d deep", MaxDepth)

// Decode reads data, which must be exactly one JSON value, into v. Names match
// letter by letter; names that v does not know, repeated names, invalid UTF-8,
// trailing data and nesting deeper than [MaxDepth] are errors.
func Decode(data []byte, v any) error {
	return decode(data, v, json.RejectUnknownMembers(true))
}

// DecodeKnown is [Decode], except that names which v does not know are skipped.
// It is for documents that others may extend, such as tokens and metadata.
func DecodeKnown(data []byte, v any) error { return decode(data, v) }

func decode(data []byte, v any, opts ...json.Options) error {
	if err := checkDepth(data); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v, opts...); err != nil {
		return fmt.Errorf("json: %w", tidy(err))
	}
	return nil
}

var decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}

// Members calls each for every member of the JSON object in data, in order, with
// the value's own bytes, which must not be kept. It refuses what [DecodeKnown]
// refuses, and stops at the first error of each.
func Members(data []byte, each func(name string, value []byte) error) error {
	if err := checkDepth(data); err != nil {
		return err
	}
	dec := decoders.Get().(*jsontext.Decoder)
	defer decoders.Put(dec)
	dec.Reset(bytes.NewBuffer(data)) // a Buffer is read in place
	if dec.PeekKind() != '{' {
		return errors.New("json: no object")
	}
	if _, err := dec.ReadToken(); err != nil {
		return fmt.Errorf("json: %w", err)
	}
	for dec.PeekKind() != '}' {
		token, err := dec.ReadToken()
		if err != nil {
			return fmt.Errorf("json: %w", err)
		}
		name := token.String()
		value, err := dec.ReadValue()
		if err != nil {
			return fmt.Errorf("json: %w", err)
		}
		if err := each(name, value); err != nil {
			return err
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return fmt.Errorf("json: %w", err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return errors.New("json: data after the object")
	}
	return nil
}

// Later reports whether the JSON object in data says, in a member, that it is of a
// later version than the one that is known, and of which. It is for what could not be
// read: then this is why. What has no version, or none that is a number, is no later.
func Later(data []byte, member string, known int) (version int, later bool) {
	err := Members(data, func(name string, value []byte) (err error) {
		if name == member {
			version, err = strconv.Atoi(string(value))
		}
		return err
	})
	return version, err == nil && version > known
}

// Text returns the text that a JSON value is, if it is one.
func Text(value []byte) (string, bool) {
	if len(value) < 2 || value[0] != '"' {
		return "", false
	}
	text, err := jsontext.AppendUnquote(nil, value)
	return string(text), err == nil
}

// Canonical returns data in the form of RFC 8785 (JSON Canonicalization
// Scheme), leaving data as it is. It refuses what [Decode] refuses.
func Canonical(data []byte) ([]byte, error) {
	if err := checkDepth(data); err != nil {
		return nil, err
	}
	v := jsontext.Value(data).Clone()
	if err := v.Canonicalize(); err != nil {
		return nil, fmt.Errorf("json: %w", tidy(err))
	}
	return v, nil
}

// Encode returns v as JSON in the form of RFC 8785. Texts that are not UTF-8 are
// an error.
func Encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("json: %w", tidy(err))
	}
	return Canonical(data)
}

// AppendString appends s as a JSON string in the form of RFC 8785. Invalid
// UTF-8 in s is replaced by U+FFFD.
func AppendString(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s) // the error only reports the replacement
	return b
}

// checkDepth counts brackets outside strings. It runs before any parser does,
// so that no stranger chooses how deep a parser recurses.
func checkDepth(data []byte) error {
	depth, inString := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > MaxDepth {
				return errDepth
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// tidy drops the parts of an error that name Go types: they say nothing to
// whoever wrote the document.
func tidy(err error) error {
	if s := (*json.SemanticError)(nil); errors.As(err, &s) {
		where := string(s.JSONPointer)
		if where == "" {
			where = "/"
		}
		if s.Err != nil {
			return fmt.Errorf("at %s: %w", where, s.Err)
		}
		return fmt.Errorf("at %s: a JSON %s does not fit here", where, s.JSONKind)
	}
	return err
}
