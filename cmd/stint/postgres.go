package main

import "github.com/spf13/cobra"

func newPostgres(g *globals) *cobra.Command { return &cobra.Command{Use: "postgres"} }
