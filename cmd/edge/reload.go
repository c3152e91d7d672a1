package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"edge/admin"
)

func reloadCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Have a running edge read its configuration again, all or nothing",
		Long: "Have a running edge read its configuration again. It waits for the outcome: a configuration that is\n" +
			"refused changes nothing, its problems are printed, and the last good one stays in force.",
		Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			var result admin.Reloaded
			err := g.ask(func(c *admin.Client) (err error) {
				result, err = c.Reload(cmd.Context())
				return err
			})
			if err != nil {
				return err
			}
			if g.json {
				if err := printJSON(cmd.OutOrStdout(), result); err != nil {
					return err
				}
			}
			for _, w := range result.Warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			if len(result.Problems) > 0 {
				code := exitFailure
				if result.Invalid {
					code = exitConfig
				}
				return &failure{code, errors.New("reload refused, the last good configuration stays in force:\n" + strings.Join(result.Problems, "\n"))}
			}
			if !g.json {
				fmt.Fprintln(cmd.OutOrStdout(), "reloaded")
			}
			return nil
		}),
	}
}
