//go:build !linux

package main

// releaseProgram does nothing here: other systems do it by themselves or not at all.
func releaseProgram() {}
