package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

const (
	// answersKept is how long an answer is repeated to whoever sends the same request
	// with the same key.
	answersKept = 24 * time.Hour
	// claimed is how long a request that is being carried out keeps its key, if nothing
	// is heard of it again.
	claimed = time.Minute
)

// kept is what is remembered of a request with an idempotency key.
type kept struct {
	// Request is a digest of what was asked.
	Request string `json:"request"`
	// Status is that of the answer; 0 while there is none.
	Status int    `json:"status,omitempty"`
	ETag   string `json:"etag,omitempty"`
	// Answer is the document, sealed: it may hold a secret.
	Answer []byte `json:"answer,omitempty"`
}

// idempotent carries out a write of the admin API: once for each key that somebody
// gives, however often the request is sent. What failed may be tried again with the
// same key.
func (s *Server) idempotent(c echo.Context, key string, asked any, do func(context.Context) (int, any, error)) error {
	ctx := c.Request().Context()
	if c.Request().Header.Get("Idempotency-Key") == "" {
		status, out, err := do(ctx)
		if err != nil {
			return s.fail(c, err)
		}
		return c.JSON(status, out)
	}
	if len(key) < 8 || len(key) > 128 {
		return s.fail(c, bad("Idempotency-Key: 8 to 128 characters"))
	}
	what := c.Request().Method + " " + c.Path()
	text, err := json.Marshal(asked)
	if err != nil {
		return s.fail(c, err)
	}
	sum := sha256.Sum256(append([]byte(what+"\x00"), text...))
	k := kept{Request: hex.EncodeToString(sum[:])}
	name := operator(c) + "\x00" + key
	was, err := s.claim(ctx, name, k)
	if err != nil {
		return s.fail(c, err)
	}
	if was != nil {
		return s.repeat(c, name, k, *was)
	}
	status, out, err := do(ctx)
	// The caller may have gone: what was done is remembered all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err != nil {
		if failed := s.cfg.Answers.Answer(ctx, name, nil, time.Time{}); failed != nil {
			s.log.WarnContext(ctx, "an idempotency key stays claimed for a minute", "error", failed)
		}
		return s.fail(c, err)
	}
	document, err := json.Marshal(out)
	if err != nil {
		return s.fail(c, err)
	}
	k.Status, k.ETag = status, c.Response().Header().Get("ETag")
	if k.Answer, err = s.cfg.Sealer.Seal(document, answerContext(name)); err == nil {
		err = s.remember(ctx, name, k)
	}
	if err != nil {
		s.log.WarnContext(ctx, "the answer to a request with an idempotency key could not be kept", "error", err)
	}
	return c.JSONBlob(status, document)
}

func answerContext(name string) string { return "answer\x00" + name }

// claim takes a key, unless it is taken: then it returns what is known of it.
func (s *Server) claim(ctx context.Context, name string, k kept) (*kept, error) {
	doc, err := json.Marshal(k)
	if err != nil {
		return nil, err
	}
	found, err := s.cfg.Answers.Claim(ctx, name, doc, s.now().Add(claimed))
	if err != nil {
		e := broker.Fail(broker.Unavailable, err, "idempotency keys cannot be remembered now")
		e.RetryAfter = time.Second
		return nil, e
	}
	if found == nil {
		return nil, nil
	}
	var was kept
	if err := strictjson.DecodeKnown(found, &was); err != nil {
		return nil, fmt.Errorf("what is kept of an idempotency key: %w", err)
	}
	return &was, nil
}

func (s *Server) remember(ctx context.Context, name string, k kept) error {
	doc, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return s.cfg.Answers.Answer(ctx, name, doc, s.now().Add(answersKept))
}

// repeat answers a request again.
func (s *Server) repeat(c echo.Context, name string, now, was kept) error {
	switch {
	case was.Request != now.Request:
		p := toProblem(adminEndpoint, bad("Idempotency-Key: it was used for another request"))
		p.status = http.StatusUnprocessableEntity
		return s.answer(c, p)
	case was.Status == 0:
		p := toProblem(adminEndpoint, broker.Fail(broker.Conflict, nil, "Idempotency-Key: the request with this key is still being carried out"))
		p.retryAfter = time.Second
		return s.answer(c, p)
	}
	document, err := s.cfg.Sealer.Open(was.Answer, answerContext(name))
	if err != nil {
		return s.fail(c, fmt.Errorf("open a kept answer: %w", err))
	}
	h := c.Response().Header()
	h.Set("Idempotency-Replayed", "true")
	if was.ETag != "" {
		h.Set("ETag", was.ETag)
	}
	return c.JSONBlob(was.Status, document)
}
