package main

import "github.com/spf13/cobra"

func newProviders(g *globals) *cobra.Command { return &cobra.Command{Use: "providers"} }
