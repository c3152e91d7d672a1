package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"edge/config"
	"edge/tlsmgr"
)

// A reason for a revocation that a subscriber may give (RFC 5280 section 5.3.1,
// Baseline Requirements 4.9.1.1).
type reason struct {
	word string
	code int
}

func reasons() []reason {
	return []reason{{"unspecified", 0}, {"keyCompromise", 1}, {"affiliationChanged", 3}, {"superseded", 4}, {"cessationOfOperation", 5}, {"privilegeWithdrawn", 9}}
}

func reasonCode(word string) (int, error) {
	words := make([]string, 0, len(reasons()))
	for _, r := range reasons() {
		if strings.EqualFold(r.word, word) {
			return r.code, nil
		}
		words = append(words, r.word)
	}
	return 0, usage(fmt.Sprintf("no reason %q (reasons: %s)", word, strings.Join(words, ", ")))
}

func certsRevokeCommand(g *globals) *cobra.Command {
	word := ""
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "Have the CA declare a certificate invalid, after its replacement serves",
		Long: "Have the CA declare a certificate invalid. One that the plan wants is replaced first, with a new key,\n" +
			"and revoked when every live replica serves the new one; so no client meets a revoked\n" +
			"certificate. That takes seconds, or minutes when a replica has just died.\n\n" +
			"Reasons: unspecified, keyCompromise (the key has leaked), affiliationChanged, superseded,\n" +
			"cessationOfOperation (the names are given up), privilegeWithdrawn.",
		Example: "  edge certs revoke example.com --reason keyCompromise",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			code, err := reasonCode(word)
			if err != nil {
				return err
			}
			return g.certificates(cmd, orders, func(ctx context.Context, _ *config.Config, m *tlsmgr.Manager) error {
				return revoke(ctx, g, cmd, m, args[0], code)
			})
		}),
	}
	cmd.Flags().StringVar(&word, "reason", "unspecified", "why: a `word` of RFC 5280")
	return cmd
}

func revoke(ctx context.Context, g *globals, cmd *cobra.Command, m *tlsmgr.Manager, id string, code int) error {
	all, err := m.Details(ctx)
	if err != nil {
		return err
	}
	was, _ := tlsmgr.Find(all, id)
	if err := m.Revoke(ctx, id, code); err != nil {
		return err
	}
	if all, err = m.Details(ctx); err != nil {
		return err
	}
	is, _ := tlsmgr.Find(all, id)
	replaced := ""
	if is.Serial != was.Serial {
		replaced = is.Serial
	}
	if g.json {
		return printJSON(cmd.OutOrStdout(), map[string]string{"id": id, "revoked": was.Serial, "replaced_by": replaced})
	}
	if replaced == "" {
		fmt.Fprintf(cmd.OutOrStdout(), "%s: serial %s is revoked\n", id, was.Serial)
		return nil
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: serial %s is revoked, %s serves in its place\n", id, was.Serial, replaced)
	return nil
}
