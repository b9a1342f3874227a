package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/stint-dev/stint/audit"
)

const (
	policyEvery = 2 * time.Second // that the mappings are looked at
	// againAfter is how many looks at mappings that cannot be used it takes until they
	// are tried again as they are: what was wrong may have been around them, such as a
	// full disk or whose they are.
	againAfter = 15
)

// follower puts new versions of the mappings in force as they come.
type follower struct {
	*server
	tried string // the state of the folder that was read last
	looks int    // at mappings that cannot be used, since they were tried
}

// followPolicy looks at the mappings until ctx is done, and at once when somebody
// asks by a signal.
func (s *server) followPolicy(ctx context.Context, hup <-chan os.Signal) {
	f := &follower{server: s, tried: s.mappings}
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			f.look(ctx, true)
		case <-time.After(policyEvery):
			f.look(ctx, false)
		}
	}
}

// look reads the mappings again if they changed, or if that was asked for.
func (f *follower) look(ctx context.Context, asked bool) {
	state := folderState(f.cfg.Mappings)
	if f.PolicyProblem() != "" {
		f.looks++
	}
	if state == f.tried && !asked && f.looks < againAfter {
		return
	}
	f.tried, f.looks = state, 0
	if said := f.reload(ctx); asked && !said {
		f.log.Info("the mappings were read again: nothing is new", "version", f.broker.Judge().Policy().Version(), "problem", f.PolicyProblem())
	}
}

// reload puts the mappings in force as they are now, or says why not. It reports
// whether there was anything to say.
func (s *server) reload(ctx context.Context) (said bool) {
	before, problem := s.broker.Judge().Policy().Version(), s.PolicyProblem()
	p, err := s.compile()
	fresh := err == nil && p.Version() != before
	if fresh {
		err = s.broker.SetPolicy(ctx, p)
	}
	if err != nil {
		return s.keepPolicy(ctx, before, err)
	}
	s.broken.Store(nil)
	switch {
	case fresh:
		s.log.Info("new mappings are in force", "before", before, "version", p.Version())
	case problem != "":
		s.log.Info("the mappings can be used again, and are what is in force", "version", before)
	}
	return fresh || problem != ""
}

// keepPolicy says why the newest mappings are not in force: once, until it is for
// another reason.
func (s *server) keepPolicy(ctx context.Context, version string, why error) (said bool) {
	text := why.Error()
	if s.PolicyProblem() == text {
		return false
	}
	s.broken.Store(&text)
	s.log.Error("the mappings cannot be used as they are now; the version in force stays", "version", version, "error", why)
	e := &audit.Event{Kind: audit.KindConfig, Outcome: audit.Refused, Reason: text, Change: &audit.Change{What: "mappings", Before: version}}
	if err := s.events.Record(ctx, e, audit.Personal{}); err != nil {
		s.log.Error("record", "error", err)
	}
	return true
}

// folderState is a digest of what a folder holds, by name, size, time and mode, or
// of why that cannot be told.
func folderState(dir string) string {
	h := sha256.New()
	entries, err := os.ReadDir(dir)
	if err != nil {
		_, _ = fmt.Fprintf(h, "%v", err)
	}
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		// Names that begin with a dot are no mappings; editors leave such links, which
		// lead nowhere, while a file is open.
		if strings.HasPrefix(e.Name(), ".") || ext != ".yaml" && ext != ".yml" && ext != ".cedar" {
			continue
		}
		info, err := os.Stat(filepath.Join(dir, e.Name())) // through links, as mounted volumes have them
		if err != nil {
			_, _ = fmt.Fprintf(h, "%s\x00%v\x00", e.Name(), err)
			continue
		}
		_, _ = fmt.Fprintf(h, "%s\x00%d\x00%d\x00%v\x00", e.Name(), info.Size(), info.ModTime().UnixNano(), info.Mode())
	}
	return string(h.Sum(nil))
}

// PolicyProblem implements [api.Operations].
func (s *server) PolicyProblem() string {
	if p := s.broken.Load(); p != nil {
		return *p
	}
	return ""
}
