package main

import (
	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/internal/config"
)

func newSchema(*globals) *cobra.Command {
	return &cobra.Command{
		Use: "schema [config|mapping]", Short: "Print a JSON Schema for editors",
		Long: `Prints the JSON Schema of stint.yaml, or of a mapping, by which editors complete, explain
and check what is written. ` + "`stint init`" + ` writes both beside the configuration. For
everything that can be wrong, ask ` + "`stint check`" + `.`,
		Example:   "  stint schema mapping > .schema/mapping.json",
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: config.Schemas(),
		RunE: func(c *cobra.Command, args []string) error {
			name := "config"
			if len(args) == 1 {
				name = args[0]
			}
			data, err := config.Schema(name)
			if err != nil {
				return usage("%v", err)
			}
			_, err = c.OutOrStdout().Write(data)
			return err
		},
	}
}
