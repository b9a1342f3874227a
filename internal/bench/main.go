// Command bench measures Stint: the exchange over HTTP against a floor, and what
// it is made of. `make bench` runs it.
//
// The server under test and the floor run on one core, the load on the other. All
// targets are measured in short slices, interleaved, and reported as a ratio to
// the floor's slice of the same round, because machines change their speed within
// seconds.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// settings are those of a run.
type settings struct {
	stint  string // the binary under test
	report string
	rounds int
	slice  time.Duration
	dir    string // scratch
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "floor" {
		fail(floor(os.Args[2], os.Args[3]))
		return
	}
	var s settings
	flag.StringVar(&s.stint, "stint", "bin/stint", "the binary under test")
	flag.StringVar(&s.report, "report", "build/reports/bench.json", "where the figures go")
	flag.IntVar(&s.rounds, "rounds", 24, "rounds of slices")
	flag.DurationVar(&s.slice, "slice", 200*time.Millisecond, "length of a slice, at most 200ms; the first 30ms are not counted")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fail(run(ctx, s))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) (err error) {
	var out report
	if s.dir, err = os.MkdirTemp("", "stint-bench-"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(s.dir) }()
	if s.stint, err = filepath.Abs(s.stint); err != nil {
		return err
	}
	pinSelf(1)
	fmt.Printf("%s, %d cores, load on one and server on another: %v\n", runtime.Version(), runtime.NumCPU(), canPin())
	for _, part := range []struct {
		name string
		do   func(context.Context, settings, *report) error
	}{
		{"decisions", decisions}, {"revocation checks", checks}, {"journal", journal}, {"exchange", exchanges},
	} {
		fmt.Printf("\n%s\n", part.name)
		if err := part.do(ctx, s, &out); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return out.write(s.report)
}
