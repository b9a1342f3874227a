package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/stint-dev/stint/client"
)

// returnTime bounds how long it is tried to give a credential back.
const returnTime = 10 * time.Second

// passedOn are the signals that a command gets from this program.
var passedOn = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// lending is one command that runs with a credential.
type lending struct {
	asker  *asker
	client *client.Client
	wanted []wanted
	path   string
	args   []string
}

// run asks for the credential, runs the command, and gives the credential back.
// From the first step to the last no signal ends this program before.
func (l *lending) run(c *cobra.Command, x client.Exchange) error {
	signals := make(chan os.Signal, 16)
	for _, s := range passedOn {
		if !signal.Ignored(s) { // as nohup has it: the command ignores it, too
			signal.Notify(signals, s)
		}
	}
	defer signal.Stop(signals)
	if err := c.Context().Err(); err != nil {
		return stopped(syscall.SIGINT)
	}
	got, by, err := l.ask(c.Context(), signals, x)
	if err != nil {
		return l.asker.said(err)
	}
	if by != nil {
		err = stopped(by)
	} else {
		err = l.command(c, got, signals)
	}
	if kept := giveBack(l.client, got); kept != nil { // how the command ended stays the exit code
		c.PrintErrln("stint:", strings.ReplaceAll(kept.Error(), "\n", "\nstint: "))
	}
	return err
}

// ask asks for the credential. A signal is returned with it: what was asked for may
// have been made, and can be given back only by who has the answer. A second signal
// gives up waiting for that.
func (l *lending) ask(ctx context.Context, signals <-chan os.Signal, x client.Exchange) (got *client.Credential, by os.Signal, err error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		got, err = l.client.Exchange(ctx, x)
	}()
	for {
		select {
		case <-done:
			return got, by, err
		case s := <-signals:
			if s == syscall.SIGUSR1 || s == syscall.SIGUSR2 {
				continue // for the command, which there is not yet
			}
			if by != nil {
				cancel()
			}
			by = s
		}
	}
}

// command runs the command with the credential, and returns how it ended.
func (l *lending) command(c *cobra.Command, got *client.Credential, signals <-chan os.Signal) error {
	set, drop, err := variables(got, l.wanted)
	if err != nil {
		return &exitError{exitRefused, err}
	}
	cmd := exec.CommandContext(context.WithoutCancel(c.Context()), l.path, l.args[1:]...)
	cmd.Args[0] = l.args[0]
	cmd.Env = environment(os.Environ(), append(drop, l.asker.hidden()...), set)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr()
	if err := cmd.Start(); err != nil {
		return notRun(l.args[0], err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case err := <-done:
			return ending(cmd.ProcessState, err)
		case s := <-signals:
			if !byTerminal(s) {
				_ = cmd.Process.Signal(s) // if it has ended by now, nobody misses it
			}
		}
	}
}

// ending is nil for a command that ended well, and else an error with its exit code
// and no text: it has said itself what was wrong.
func ending(state *os.ProcessState, err error) error {
	if state == nil {
		return err
	}
	code := state.ExitCode()
	if w, ok := state.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		code = 128 + int(w.Signal())
	}
	if code == 0 {
		return nil
	}
	return &exitError{code, errors.New("")}
}

// byTerminal reports whether a signal is one that the terminal has sent the command
// as well: both are in the foreground.
func byTerminal(s os.Signal) bool {
	if s != syscall.SIGINT && s != syscall.SIGQUIT {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer func() { _ = tty.Close() }()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// stopped is the error for a signal that came before the command was run.
func stopped(by os.Signal) error {
	number := syscall.SIGINT
	if s, ok := by.(syscall.Signal); ok {
		number = s
	}
	return &exitError{128 + int(number), errors.New("stopped before the command was run")}
}

// giveBack gives a credential back. If that fails, the error says what is left of
// it, and what to do.
func giveBack(c *client.Client, got *client.Credential) error {
	ctx, cancel := context.WithTimeout(context.Background(), returnTime)
	defer cancel()
	err := c.Return(ctx, got)
	if err == nil {
		return nil
	}
	text := fmt.Sprintf("the credential was not given back, and lives until %s: %s", got.Expires.Local().Format(time.DateTime), harmless(err.Error()))
	if got.Lease != "" {
		text += "\nan administrator ends it now by: stint revoke --lease " + harmless(got.Lease)
	}
	return errors.New(text)
}
