package main

import "github.com/spf13/cobra"

func newInit(g *globals) *cobra.Command { return &cobra.Command{Use: "init"} }
