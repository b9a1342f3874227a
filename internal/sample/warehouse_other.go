//go:build !linux

package sample

import "syscall"

// endWithUs does nothing: this system has no way to end a process with another.
func endWithUs(*syscall.SysProcAttr) {}
