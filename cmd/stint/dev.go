package main

import "github.com/spf13/cobra"

func newDev(g *globals) *cobra.Command { return &cobra.Command{Use: "dev"} }
