package main

import "github.com/spf13/cobra"

func newCheck(g *globals) *cobra.Command { return &cobra.Command{Use: "check"} }
