package main

import "github.com/spf13/cobra"

func newSchema(g *globals) *cobra.Command { return &cobra.Command{Use: "schema"} }
