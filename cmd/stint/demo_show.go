package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/stint-dev/stint/internal/sample"
	"github.com/stint-dev/stint/internal/secret"
)

// columns is how wide a demonstration is.
const columns = 100

// stage is where a demonstration is shown: in words, or a JSON object a step.
type stage struct {
	w      io.Writer
	json   bool
	colour bool
	pause  time.Duration // before each step but the first
	names  map[string]string

	number int
	now    *act
	shown  map[string][]field // by kind of request or answer: the last one's

	mu   sync.Mutex
	wire []sample.Step
	seen []secret.String // every secret that went over the wire
	kept []sample.Step   // everything that did
}

// act is one step of a demonstration, as it is shown.
type act struct {
	Number int    `json:"step"`
	Title  string `json:"title"`
	Text   string `json:"text"`
	// Calls are what went over the wire, in the order in which it began.
	Calls []call `json:"calls"`
	// Output is what a command printed, by lines.
	Output []string `json:"output,omitempty"`
	// Claims were checked.
	Claims []claim `json:"claims"`
	OK     bool    `json:"ok"`
	Error  string  `json:"error,omitempty"`
}

type claim struct {
	Text string `json:"claim"`
	OK   bool   `json:"ok"`
	Got  string `json:"got,omitempty"`
}

// call is a request with its answer. Secrets are shortened.
type call struct {
	From    string  `json:"from"`
	To      string  `json:"to"`
	What    string  `json:"what"`
	Method  string  `json:"method"`
	URL     string  `json:"url"`
	Request []field `json:"request"`
	Status  int     `json:"status,omitempty"`
	Answer  []field `json:"answer"`
	// Token is what a token in the answer says.
	Token []field `json:"token,omitempty"`
	Error string  `json:"error,omitempty"`

	began, ended time.Time
}

type field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func newStage(w io.Writer, asJSON, fast bool) *stage {
	s := &stage{w: w, json: asJSON, names: make(map[string]string), shown: make(map[string][]field)}
	if f, ok := w.(*os.File); ok && !asJSON {
		info, err := f.Stat()
		terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
		s.colour = terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		if terminal && !fast {
			s.pause = 700 * time.Millisecond
		}
	}
	return s
}

// see is told of what goes over the wire.
func (s *stage) see(step sample.Step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wire, s.kept = append(s.wire, step), append(s.kept, step)
	for _, f := range slices.Concat(step.Request, step.Answer) {
		if !f.Secret.Empty() {
			s.seen = append(s.seen, f.Secret)
		}
	}
}

// find returns the newest request with this text, of this step or one before.
func (s *stage) find(from, text string) (sample.Step, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, step := range slices.Backward(s.kept) {
		if step.Server == from && strings.Contains(step.Text, text) {
			return step, nil
		}
	}
	return sample.Step{}, fmt.Errorf("%s did not %s", from, text)
}

// begin begins a step.
func (s *stage) begin(title, text string) {
	s.number++
	s.now = &act{Number: s.number, Title: title, Text: text, Calls: []call{}, Claims: []claim{}}
	if s.json {
		return
	}
	if s.number > 1 {
		time.Sleep(s.pause)
	}
	s.print("")
	for i, line := range wrap(title, columns-4) {
		head := "    "
		if i == 0 {
			head = fmt.Sprintf("%-4s", strconv.Itoa(s.number)+".")
		}
		s.print(head + s.paint("1", line))
	}
	for _, line := range wrap(text, columns-4) {
		s.print("    " + line)
	}
}

// that states something, and whether it is so. What was found instead is said if
// it is not.
func (s *stage) that(ok bool, text string, got any) {
	c := claim{Text: text, OK: ok}
	if !ok {
		c.Got = fmt.Sprint(got)
	}
	s.now.Claims = append(s.now.Claims, c)
}

// output adds what a command printed.
func (s *stage) output(lines ...string) { s.now.Output = append(s.now.Output, lines...) }

// end shows a step, and returns an error if something in it did not come out as it
// was said to.
func (s *stage) end(err error) error {
	a := s.now
	a.Calls = s.calls()
	for _, c := range a.Claims {
		if err == nil && !c.OK {
			err = fmt.Errorf("%q is not so: %s", c.Text, c.Got)
		}
	}
	if a.OK = err == nil; !a.OK {
		a.Error = err.Error()
		err = fmt.Errorf("step %d (%s) did not come out as said: %w", a.Number, a.Title, err)
	}
	if s.json {
		enc := json.NewEncoder(s.w)
		enc.SetEscapeHTML(false)
		if failure := enc.Encode(a); err == nil {
			err = failure
		}
		return err
	}
	s.show(a)
	return err
}

// browsing are the parts of a sign-in that are shown once.
var browsing = []string{"ask to sign in", "fill in the form"}

func (s *stage) show(a *act) {
	if len(a.Calls) > 0 {
		s.print("")
	}
	var open []call // whose answers are still to be shown
	closeUntil := func(t time.Time) {
		for len(open) > 0 && !open[len(open)-1].ended.After(t) {
			s.showAnswer(open[len(open)-1], len(open)-1)
			open = open[:len(open)-1]
		}
	}
	for _, c := range a.Calls {
		if a.Number > 1 && slices.Contains(browsing, c.What) {
			continue
		}
		closeUntil(c.began)
		s.showRequest(c, len(open))
		open = append(open, c)
	}
	closeUntil(time.Now())
	if len(a.Output) > 0 {
		s.print("")
	}
	for _, line := range a.Output {
		s.hang("      ", "        ", line, "36")
	}
	s.print("")
	for _, c := range a.Claims {
		mark := s.paint("32", "✓")
		if !c.OK {
			mark = s.paint("31;1", "✗")
		}
		for i, line := range wrap(c.Text, columns-6) {
			if i > 0 {
				mark = " "
			}
			s.print("    " + mark + " " + line)
		}
	}
}

func (s *stage) showRequest(c call, depth int) {
	bar := "    " + strings.Repeat("│ ", depth)
	s.hang(bar, bar+"    ", fmt.Sprintf("%s → %s: %s", c.From, c.To, c.What), "1")
	s.showPart(bar, c, c.Method+" "+c.URL, "", "request", c.Request)
}

func (s *stage) showAnswer(c call, depth int) {
	bar := "    " + strings.Repeat("│ ", depth)
	head, colour := "answer", "32"
	switch {
	case c.Error != "":
		head, colour = "no answer: "+c.Error, "33"
	case c.Status != 0:
		head = strings.TrimSpace(fmt.Sprintf("%d %s", c.Status, http.StatusText(c.Status)))
	}
	if c.Status >= http.StatusBadRequest {
		colour = "33"
	}
	s.showPart(bar, c, head, colour, strconv.Itoa(c.Status), c.Answer)
	if len(c.Token) > 0 {
		s.showPart(bar+"  ", c, "the token says", "2", "token", c.Token)
	}
}

// showPart shows a request or an answer. What is alike in the one of the same kind
// before it is left out: all of it is in the JSON.
func (s *stage) showPart(bar string, c call, head, colour, part string, all []field) {
	kind := c.From + " " + c.Method + " " + c.URL + " " + part
	before, again := s.shown[kind]
	var out []field
	for _, f := range all {
		alike := slices.Contains(before, f) && !slices.Contains(telling, f.Name) || part != "request" && f.Name == "authorization_details"
		if !again || !alike && !slices.Contains(noise, f.Name) {
			out = append(out, f)
		}
	}
	s.shown[kind] = all
	switch {
	case len(out) == 0 && len(all) > 0:
		head += "   …"
	case len(out) < len(all):
		out = append(out, field{"", "…"})
	}
	s.hang(bar+"  ", bar+"    ", head, colour)
	s.showFields(bar+"    ", out)
}

// noise are fields that differ each time, and say nothing to who has seen one;
// telling are those that say something even when they are the same.
var (
	noise = []string{
		"state", "nonce", "code_challenge", "code_verifier", "id_token", "iss", "jti", "iat", "exp", "exp-iat", "expires_in",
		"token_type_hint", "act.iss", "act.act.iss", "credential.url",
	}
	telling = []string{"scope", "resource", "active", "sub", "aud", "error", "error_description", "WWW-Authenticate"}
)

// showFields puts as many fields on a line as fit.
func (s *stage) showFields(indent string, fields []field) {
	room := columns - utf8.RuneCountInString(indent)
	var line string
	flush := func() {
		if line != "" {
			s.print(indent + s.paint("2", line))
		}
		line = ""
	}
	for _, f := range fields {
		text := f.Value
		if f.Name != "" {
			text = f.Name + "=" + f.Value
		}
		if line != "" && utf8.RuneCountInString(line)+3+utf8.RuneCountInString(text) <= room {
			line += "   " + text
			continue
		}
		flush()
		parts := wrap(text, room)
		for _, p := range parts[:len(parts)-1] {
			s.print(indent + s.paint("2", p))
		}
		line = parts[len(parts)-1]
		if len(parts) > 1 {
			flush()
		}
	}
	flush()
}

// hang prints a text whose further lines are indented more.
func (s *stage) hang(first, more, text, colour string) {
	for i, line := range wrap(text, columns-utf8.RuneCountInString(more)) {
		if i == 0 {
			s.print(first + s.paint(colour, line))
			continue
		}
		s.print(more + s.paint(colour, line))
	}
}

func (s *stage) print(line string) { _, _ = fmt.Fprintln(s.w, strings.TrimRight(line, " ")) }

// paint colours a text by an SGR parameter, if the stage has colours.
func (s *stage) paint(colour, text string) string {
	if !s.colour || colour == "" || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// wrap breaks a text into lines of at most width characters: at spaces, and within
// words that are longer.
func wrap(text string, width int) (lines []string) {
	for _, paragraph := range strings.Split(text, "\n") {
		words := strings.TrimLeft(paragraph, " ")
		line := paragraph[:len(paragraph)-len(words)] // what it is indented by, and no more of it
		indent := line
		for _, word := range strings.Split(words, " ") {
			for {
				joined := line + word
				if line != indent {
					joined = line + " " + word
				}
				if utf8.RuneCountInString(joined) <= width {
					line = joined
					break
				}
				if line != indent {
					lines, line, indent = append(lines, line), "", ""
					continue
				}
				r := []rune(word)
				lines, word = append(lines, string(r[:width])), string(r[width:])
			}
		}
		lines = append(lines, line)
	}
	return lines
}
