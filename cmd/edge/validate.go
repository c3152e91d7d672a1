package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"edge/config"
)

// validation is the JSON shape of edge validate.
type validation struct {
	File     string           `json:"file"`
	Valid    bool             `json:"valid"`
	Problems []config.Problem `json:"problems"`
	Warnings []config.Problem `json:"warnings"`
}

func validateCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "validate [FILE]",
		Short: "Check a configuration and say all that is wrong with it",
		Long: "Check a configuration without a network, a key or a certificate being touched.\n" +
			"All problems are printed at once as file:line:col: path: message (hint); exit code 3 when there are any.",
		Args: cobra.MaximumNArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			path := g.config
			if len(args) == 1 {
				path = args[0]
			}
			cfg, err := config.Load(path)
			problems, isProblems := errors.AsType[config.Problems](err)
			if err != nil && !isProblems {
				return invalid(err)
			}
			v := validation{File: path, Valid: err == nil, Problems: append([]config.Problem{}, problems...), Warnings: []config.Problem{}}
			if cfg != nil {
				v.Warnings = append(v.Warnings, cfg.Warnings...)
			}
			if g.json {
				if err := printJSON(cmd.OutOrStdout(), v); err != nil || v.Valid {
					return err
				}
				return &failure{exitConfig, fmt.Errorf("%s: %s", path, count(len(problems), "problem"))}
			}
			if err != nil {
				return err
			}
			for _, w := range cfg.Warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w.Error())
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: valid: %s, %s, %s\n", path,
				count(len(cfg.Routes), "route"), count(len(cfg.Pools), "pool"), count(len(cfg.Listeners), "listener"))
			return nil
		}),
	}
}
