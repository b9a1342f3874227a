package sts

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	maxDepth    = 16
	maxElements = 1000
)

// element is an element of an answer: it has texts or other elements in it.
type element struct {
	name     string
	value    string
	children []*element
}

// parse reads an answer: one element, without directives, and with nothing after it.
func parse(data []byte) (*element, error) {
	d := xml.NewDecoder(bytes.NewReader(data))
	d.Entity = map[string]string{}
	top := &element{}
	stack, n := []*element{top}, 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errors.New("the answer is no XML")
		}
		at := stack[len(stack)-1]
		switch t := token.(type) {
		case xml.StartElement:
			if n++; n > maxElements || len(stack) > maxDepth {
				return nil, errors.New("the answer is too large")
			}
			e := &element{name: t.Name.Local}
			at.children = append(at.children, e)
			stack = append(stack, e)
		case xml.EndElement:
			stack = stack[:len(stack)-1]
		case xml.CharData:
			at.value += string(t)
		case xml.Directive:
			return nil, errors.New("the answer has directives")
		}
	}
	if len(top.children) != 1 || strings.TrimSpace(top.value) != "" {
		return nil, errors.New("the answer is not one element")
	}
	return top.children[0], nil
}

// only returns the one child of a name, of an element that has to have a name itself.
func (e *element) only(own, child string) (*element, error) {
	if e.name != own {
		return nil, fmt.Errorf("the answer is no %s", own)
	}
	var found *element
	for _, c := range e.children {
		if c.name != child {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s is there twice", child)
		}
		found = c
	}
	if found == nil {
		return nil, fmt.Errorf("%s is missing", child)
	}
	return found, nil
}

// text is what the one child of a name holds; empty if there is none, there are two, or
// it holds more than a text.
func (e *element) text(child string) string {
	c, err := e.only(e.name, child)
	if err != nil || len(c.children) > 0 {
		return ""
	}
	return strings.TrimSpace(c.value)
}
